"""One colour for each class, the same in overlays, curves and tables; and one number for each set of classes."""

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from medunet.errors import DataError

Labels: TypeAlias = npt.NDArray[np.uint8]

# middle tones for white, black and grey ground; neighbours differ in hue and lightness (hues after Okabe & Ito)
PALETTE = ("#e8890c", "#3b9be0", "#1ba87a", "#d16ba5", "#c7a30a", "#8a6fdf", "#d9502e", "#17a2b0")

GOLDEN_RATIO = 0.618034  # multiples of it, modulo 1, keep their distance from each other
MOST_CODES = 255  # a voxel of a packed label map is one byte


def class_colours(names: Iterable[str]) -> dict[str, str]:
    """Return a hexadecimal colour for each class but the background, by its position in the data set.

    Examples:
        >>> class_colours(["liver", "spleen"])
        {'liver': '#e8890c', 'spleen': '#3b9be0'}
    """
    colours = {}
    for place, name in enumerate(names):
        parts = colorsys.hls_to_rgb(place * GOLDEN_RATIO % 1.0, 0.55, 0.65)
        generated = "#" + bytes(round(part * 255) for part in parts).hex()
        colours[name] = PALETTE[place] if place < len(PALETTE) else generated
    return colours


class ClassCodes:
    """Numbers the sets of classes that a voxel can belong to, so that label maps with different values agree.

    Up to the number of classes, a number is the place of one class, from 1. A number above stands for several classes,
    which are listed in :attr:`unions`.

    Args:
        names: names of the classes.

    Examples:
        >>> codes = ClassCodes(["whole", "core"])
        >>> codes.encode([[0, 1, 2, 9]], {"whole": [1, 2], "core": [2]}).tolist(), codes.unions
        ([[0, 1, 3, 0]], [[1, 2]])
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._sets: list[tuple[int, ...]] = [(), *((place,) for place in range(1, len(names) + 1))]

    @property
    def unions(self) -> list[list[int]]:
        """Places of the classes of each number above those of single classes, in order."""
        return [list(places) for places in self._sets[len(self.names) + 1 :]]

    def encode(self, label_map: npt.ArrayLike, members: Mapping[str, Sequence[int]]) -> Labels:
        """Return a label map `(*spatial)` in these numbers; values that belong to no class become 0.

        `members` has the values of each class. More than `MOST_CODES` sets of classes are a DataError.
        """
        array = np.asarray(label_map)
        coded = np.zeros(array.shape, np.uint8)
        for value in sorted({value for values in members.values() for value in values}):
            places = tuple(place for place, name in enumerate(self.names, start=1) if value in members.get(name, ()))
            if places not in self._sets:
                self._sets.append(places)
            code = self._sets.index(places)
            if code > MOST_CODES:
                raise DataError("too many classes to be drawn", received=code, expected=f"at most {MOST_CODES}")
            coded[array == value] = code
        return coded

    def labels(self, background: str) -> dict[str, int | tuple[int, ...]]:
        """Return the numbers of each class by its name."""
        numbers = {
            name: tuple(code for code, places in enumerate(self._sets) if place in places)
            for place, name in enumerate(self.names, start=1)
        }
        return {background: 0, **numbers}
