"""Numbers for the voxels of label maps whose classes may overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from medunet.errors import DataError

from .stack import Labels

MOST_CODES = 255
"""A voxel of a packed label map is one byte."""


class ClassCodes:
    """A voxel's number tells which classes it belongs to.

    Up to the number of classes it is the place of the one class, from 1; a number above stands for several at once,
    which are listed in :attr:`unions`. So label maps of runs that write other values, of references and of predictions
    agree where they mean the same.

    Args:
        names: of the classes.

    Example:
        >>> codes = ClassCodes(["whole", "core"])
        >>> codes.encode([[0, 1, 2, 9]], {"whole": [1, 2], "core": [2]}).tolist(), codes.unions
        ([[0, 1, 3, 0]], [[1, 2]])
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._sets: list[tuple[int, ...]] = [(), *((place,) for place in range(1, len(names) + 1))]

    @property
    def unions(self) -> list[list[int]]:
        """Places of the classes that the numbers above those of single classes stand for, in order."""
        return [list(places) for places in self._sets[len(self.names) + 1 :]]

    def encode(self, found: npt.ArrayLike, members: Mapping[str, Sequence[int]]) -> Labels:
        """A label map in these numbers; values of no class become 0.

        Args:
            found: label map `(*spatial)`.
            members: values of each class in it.

        Raises:
            DataError: more classes, or more ways in which they overlap, than a byte can tell apart.
        """
        array = np.asarray(found)
        coded = np.zeros(array.shape, np.uint8)
        for value in sorted({value for values in members.values() for value in values}):
            places = tuple(place for place, name in enumerate(self.names, start=1) if value in members.get(name, ()))
            if places not in self._sets:
                self._sets.append(places)
            code = self._sets.index(places)
            if code > MOST_CODES:
                raise DataError("too many classes to be drawn", received=code, expected=f"{MOST_CODES} at most")
            coded[array == value] = code
        return coded

    def labels(self, background: str) -> dict[str, int | tuple[int, ...]]:
        """Numbers of each class by its name."""
        numbers = {
            name: tuple(code for code, places in enumerate(self._sets) if place in places)
            for place, name in enumerate(self.names, start=1)
        }
        return {background: 0, **numbers}
