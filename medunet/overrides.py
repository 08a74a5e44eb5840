"""Values that a user gives by config id: parsed from text, and checked against the values they replace."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from medunet.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML has it, except that `1e-3` is a number, as in YAML 1.2 and JSON."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """Parse YAML.

    Raises:
        yaml.YAMLError: not YAML.

    Example:
        >>> parse_yaml("[1e-3, .5, 2, 1.2.3]")
        [0.001, 0.5, 2, '1.2.3']
    """
    return yaml.load(text, Loader=_Loader)


def parse_settings(settings: Sequence[str] | None) -> dict[str, Any]:
    """Parse `key=value` texts; values are YAML, or MONAI expressions that begin with `$` or `@`.

    Raises:
        ConfigError: a text without `=`, or a value that is not YAML.

    Example:
        >>> parse_settings(["learning_rate=1e-3", "patch_size=[64,64]", "device=$torch.device('cpu')"])
        {'learning_rate': 0.001, 'patch_size': [64, 64], 'device': "$torch.device('cpu')"}
    """
    values: dict[str, Any] = {}
    for text in settings or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError("--set takes KEY=VALUE", received=text, expected="for instance --set batch_size=2")
        try:
            values[key] = value if value[:1] in "$@" else parse_yaml(value)
        except yaml.YAMLError as error:
            raise ConfigError("--set: not a YAML value", received=text) from error
    return values


def check_type(id_: str, new: Any, old: Any) -> None:
    """Reject a value that cannot replace a number or a boolean.

    Lists, null and expressions (`$...`, `@...`) may replace either: `strides: 2` may become `[1, 2, 2]`.

    Raises:
        ConfigError: a text or a boolean in place of a number, or anything but a boolean in place of one.
    """
    if not isinstance(old, bool | int | float) or new is None or isinstance(new, list | dict):
        return
    if isinstance(new, str) and new[:1] in ("$", "@"):
        return
    if isinstance(old, bool) and not isinstance(new, bool):
        raise ConfigError(f"{id_} must be true or false", received=new)
    if not isinstance(old, bool) and (isinstance(new, bool) or not isinstance(new, int | float)):
        raise ConfigError(f"{id_} must be a number", received=new)
