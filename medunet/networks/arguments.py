"""Checks of arguments as JSON gives them: short forms are expanded, wrong values rejected. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medunet.errors import ConfigError

PerAxis = tuple[int, ...]
"""One integer per spatial axis."""

Option = str | Sequence[Any]
"""A layer's name, or (name, {keyword: value}); JSON gives the latter as a list."""


def choose(name: str, value: object, options: Sequence[object]) -> None:
    """Raise ConfigError unless `value` is one of `options`, and of its type: 2.0 is not 2, True is not 1."""
    if not any(type(value) is type(option) and value == option for option in options):
        raise ConfigError(f"unknown {name}", received=repr(value), expected=" | ".join(map(repr, options)))


def integer(name: str, value: object, least: int = 1) -> int:
    """Return `value` if it is an integer of at least `least`, else raise ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be an integer >= {least}", received=repr(value))
    return value


def per_axis(name: str, value: int | Sequence[int], spatial_dims: int) -> PerAxis:
    """Expand one integer to all axes, or check a list over the axes.

    Example:
        >>> per_axis("head_kernel_size", 3, 2), per_axis("head_kernel_size", [1, 3], 2)
        ((3, 3), (1, 3))
    """
    if isinstance(value, int):
        return (integer(name, value),) * spatial_dims
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != spatial_dims:
        expected = f"an integer, or {spatial_dims} of them"
        raise ConfigError(f"{name} must have one value per spatial axis", received=repr(value), expected=expected)
    return tuple(integer(name, n) for n in value)


def per_row(
    name: str, value: int | Sequence[int | Sequence[int]], rows: int, spatial_dims: int, row: str
) -> tuple[PerAxis, ...]:
    """Expand one integer, one entry per row, or one entry per row and axis to the last form.

    Example:
        >>> per_row("strides", [2, [1, 2]], 2, 2, "transition")
        ((2, 2), (1, 2))
    """
    if isinstance(value, int):
        return (per_axis(name, value, spatial_dims),) * rows
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != rows:
        expected = f"an integer, or {rows} entries"
        raise ConfigError(f"{name} must have one entry per {row}", received=repr(value), expected=expected)
    return tuple(per_axis(name, entry, spatial_dims) for entry in value)


def parse_option(what: str, option: Option, names: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Split a layer's name and keywords.

    Example:
        >>> parse_option("norm", ["group", {"num_groups": 4}], ["batch", "group"])
        ('group', {'num_groups': 4})
    """
    name, kwargs = option, {}
    if not isinstance(option, str):
        pair = list(option) if isinstance(option, Sequence) else []
        if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], Mapping):
            expected = '"name" or ["name", {"keyword": value}]'
            raise ConfigError(
                f"{what} must be a name, or a name with keywords", received=repr(option), expected=expected
            )
        name, kwargs = pair[0], dict(pair[1])
    name = str(name).lower()
    choose(what, name, names)
    return name, kwargs
