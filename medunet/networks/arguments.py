"""Checks of arguments from JSON: short forms are expanded, and wrong values are rejected. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from medunet.errors import ConfigError

PerAxis = tuple[int, ...]  # one integer per spatial axis
PerRow = int | Sequence[int | Sequence[int]]  # one integer, one per row, or one per row and axis
Option = str | Sequence[Any]  # a layer's name, or (name, {keyword: value}); JSON gives the latter as a list


def choose(name: str, value: object, options: Sequence[object]) -> None:
    """Raise ConfigError unless `value` is one of `options`, and of its type: 2.0 is not 2, and True is not 1."""
    if not any(type(value) is type(option) and value == option for option in options):
        raise ConfigError(f"unknown {name}", received=repr(value), expected=" | ".join(map(repr, options)))


def integer(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """Return `value` if it is an integer from `least` to `most`, else raise ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        allowed = f">= {least}" if most is None else f"from {least} to {most}"
        raise ConfigError(f"{name} must be an integer {allowed}", received=repr(value))
    return value


def per_axis(name: str, value: int | Sequence[int], spatial_dims: int) -> PerAxis:
    """Expand one integer to all axes, or check a list over the axes."""
    return tuple(integer(name, n) for n in _expanded(name, value, spatial_dims, "spatial axis"))


def per_row(name: str, value: PerRow, rows: int, spatial_dims: int, row: str) -> tuple[PerAxis, ...]:
    """Expand a short form to one integer per row and axis.

    Examples:
        >>> per_row("strides", [2, [1, 2]], 2, 2, "transition")
        ((2, 2), (1, 2))
    """
    return tuple(per_axis(name, entry, spatial_dims) for entry in _expanded(name, value, rows, row))


def counts(name: str, value: int | Sequence[int], rows: int, row: str) -> tuple[int, ...]:
    """Expand one integer to all rows, or check a list with one integer per row."""
    return tuple(integer(name, n) for n in _expanded(name, value, rows, row))


def _expanded(name: str, value: Any, count: int, item: str) -> Sequence[Any]:
    if isinstance(value, int):
        return (value,) * count
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != count:
        expected = f"an integer, or {count} entries"
        raise ConfigError(f"{name} must have one entry per {item}", received=repr(value), expected=expected)
    return value


def parse_option(what: str, option: Option, names: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Split a layer's name and keywords.

    Examples:
        >>> parse_option("norm", ["group", {"num_groups": 4}], ["batch", "group"])
        ('group', {'num_groups': 4})
    """
    pair = [option, {}] if isinstance(option, str) else list(option) if isinstance(option, Sequence) else []
    if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], Mapping):
        expected = '"name" or ["name", {"keyword": value}]'
        raise ConfigError(f"{what} must be a name, or a name with keywords", received=repr(option), expected=expected)
    choose(what, pair[0].lower(), names)
    return pair[0].lower(), dict(pair[1])
