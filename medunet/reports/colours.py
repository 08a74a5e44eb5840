"""One colour for each class, the same in overlays, curves and tables."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable

PALETTE = ("#e8890c", "#3b9be0", "#1ba87a", "#d16ba5", "#c7a30a", "#8a6fdf", "#d9502e", "#17a2b0")
"""Middle tones for white, black and grey ground; neighbours differ in hue and lightness (hues after Okabe & Ito)."""

GOLDEN_RATIO = 0.618034
"""Step of the hue, in turns, for more classes than the palette has: never comes near an earlier hue soon."""


def class_colours(names: Iterable[str]) -> dict[str, str]:
    """Return a hexadecimal colour for each class, by its place.

    Args:
        names: class names without the background, in the order of the data set.

    Example:
        >>> class_colours(["liver", "spleen"])
        {'liver': '#e8890c', 'spleen': '#3b9be0'}
    """
    return {name: _colour(place) for place, name in enumerate(names)}


def _colour(place: int) -> str:
    if place < len(PALETTE):
        return PALETTE[place]
    red, green, blue = colorsys.hls_to_rgb(place * GOLDEN_RATIO % 1.0, 0.55, 0.65)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
