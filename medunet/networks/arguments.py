"""Checks of arguments as JSON gives them: short forms are expanded, wrong values rejected. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from medunet.errors import ConfigError

PerAxis = tuple[int, ...]
"""One integer for each spatial axis."""


def choose(name: str, value: object, options: Sequence[object]) -> None:
    """Raise ConfigError unless `value` is one of `options`, and of its type: 2.0 is not 2, True is not 1."""
    if not any(type(value) is type(option) and value == option for option in options):
        raise ConfigError(
            f"unknown {name}",
            received=repr(value),
            expected=" | ".join(map(repr, options)),
        )


def flag(name: str, value: object) -> None:
    """Raise ConfigError unless `value` is True or False."""
    choose(name, value, (True, False))


def positive(name: str, value: object) -> int:
    """Return `value` if it is an integer >= 1, else raise ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be an integer >= 1", received=repr(value))
    return value


def per_axis(name: str, value: int | Sequence[int], spatial_dims: int) -> PerAxis:
    """Expand one integer to all axes, or check a list over the axes.

    Example:
        >>> per_axis("head_kernel_size", 3, 2), per_axis("head_kernel_size", [1, 3], 2)
        ((3, 3), (1, 3))
    """
    if isinstance(value, int):
        return (positive(name, value),) * spatial_dims
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != spatial_dims:
        raise ConfigError(
            f"{name} must have one value per spatial axis",
            received=repr(value),
            expected=f"an integer, or {spatial_dims} of them",
        )
    return tuple(positive(name, n) for n in value)


def per_row(
    name: str, value: int | Sequence[int | Sequence[int]], rows: int, spatial_dims: int, row_is_a: str
) -> tuple[PerAxis, ...]:
    """Expand one integer, one entry per row, or one entry per row and axis to the last form.

    Example:
        >>> per_row("strides", [2, [1, 2]], 2, 2, "transition")
        ((2, 2), (1, 2))
    """
    if isinstance(value, int):
        return (per_axis(name, value, spatial_dims),) * rows
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != rows:
        raise ConfigError(
            f"{name} must have one entry per {row_is_a}",
            received=repr(value),
            expected=f"an integer, or {rows} entries",
        )
    return tuple(per_axis(name, row, spatial_dims) for row in value)
