"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the bundle's configs by name; repeatable."),
]
Preset = Annotated[
    list[str] | None,
    typer.Option("--preset", metavar="NAME", help="An overlay of the bundle, such as few or sgd_poly; repeatable."),
]

Trust = Annotated[
    bool,
    typer.Option("--trust", help="Run a bundle that could run code of its own; its exact content is remembered."),
]


SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Go on without cases that cannot be used; they are named. Else they stop it.")
]


def parse_settings(settings: Sequence[str] | None) -> dict[str, Any]:
    """`key=value` texts as a dictionary; values are YAML, or MONAI expressions that begin with `$` or `@`.

    Raises:
        ConfigError: a text without `=`.

    Example:
        >>> parse_settings(["epochs=3", "patch_size=[64,64]", "device=$torch.device('cpu')"])
        {'epochs': 3, 'patch_size': [64, 64], 'device': "$torch.device('cpu')"}
    """
    import yaml

    from medunet.errors import ConfigError

    values: dict[str, Any] = {}
    for text in settings or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError("--set takes KEY=VALUE", received=text, expected="for instance --set batch_size=2")
        try:
            values[key] = value if value[:1] in "$@" else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError("--set: not a YAML value", received=text) from error
        if isinstance(values[key], str) and value[:1] not in "$@":
            values[key] = _as_number(values[key])
    return values


def _as_number(text: str) -> str | float:
    """YAML takes `1e-3` for text."""
    try:
        return float(text)
    except ValueError:
        return text
