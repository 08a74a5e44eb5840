"""Regions with names in a file, whatever the file: what label readers have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medunet.errors import DataError
from medunet.geometry import Geometry

from .segments import BACKGROUND

Mask = npt.NDArray[np.bool_]


class Painting(NamedTuple):
    """Where a structure lies, and what was unusual."""

    mask: Mask
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Structure:
    """A segment, region of interest or label of a file.

    Args:
        name: in the file.
        number: in the file, from 1.
        paint: gives its voxels on a grid; raises GeometryError where it does not lie there.
    """

    name: str
    number: int
    paint: Callable[[Geometry], Painting]


class LabelMap(NamedTuple):
    """Voxels on a grid, the values that names have in them, and what was unusual."""

    voxels: npt.NDArray[np.float32]
    labels: dict[str, int]
    warnings: tuple[str, ...]


def paint_structures(
    structures: Iterable[Structure],
    reference: Geometry,
    *,
    labels: Mapping[str, int] | None,
    file: str | os.PathLike[str],
) -> LabelMap:
    """One label map of many structures.

    Voxels outside all of them are 0. Where two overlap the later one is kept: later in `labels` if given, else in the
    file; how many voxels that concerns is among the warnings.

    Args:
        structures: of the file.
        reference: grid to paint on.
        labels: name to value; structures without a name in it are left out, which is a warning. Upper and lower case
            and blanks around a name do not matter. None takes all, numbered as in the file.
        file: for errors.

    Raises:
        DataError: none of the names is there, or two structures have one name.
        GeometryError: a structure that does not lie on the reference.
    """
    found = list(structures)
    by_name: dict[str, Structure] = {}
    for structure in found:
        if by_name.setdefault(key := _key(structure.name), structure) is not structure:
            if labels is None:
                continue  # told apart by their numbers
            if key in map(_key, labels):
                raise DataError("two structures have one name", file=file, received=structure.name)
    warnings: list[str] = []
    chosen: list[tuple[Structure, str, int]]
    if labels is None:
        chosen = [(s, _unique(s, found), s.number) for s in found]
    else:
        wanted = {name: value for name, value in labels.items() if value != 0 and _key(name) != BACKGROUND}
        chosen = [(by_name[_key(name)], name, value) for name, value in wanted.items() if _key(name) in by_name]
        if wanted and not chosen:
            raise DataError(
                "none of the labels is among the file's structures",
                file=file,
                received=sorted(s.name for s in found),
                expected=sorted(wanted),
                remedy="give the labels the structures' names",
            )
        if left := sorted(set(by_name) - {_key(name) for name in wanted}):
            warnings.append(f"structures without a label left out: {', '.join(by_name[key].name for key in left)}")
        if absent := sorted(name for name in wanted if _key(name) not in by_name):
            warnings.append(f"no structure of the name {', '.join(absent)}")
    voxels = np.zeros(reference.shape, dtype=np.float32)
    for structure, name, value in chosen:
        mask, unusual = structure.paint(reference)
        warnings.extend(f"{name}: {text}" for text in unusual)
        if shared := int(np.count_nonzero(voxels[mask])):
            warnings.append(f"{name}: {shared} voxels belong to another structure too; the later one is kept")
        voxels[mask] = value
    return LabelMap(voxels, {BACKGROUND: 0, **{name: value for _, name, value in chosen}}, tuple(warnings))


def number_structures(structures: Sequence[Structure]) -> dict[str, int]:
    """Name to value where nobody has chosen values; names that are there twice get their number behind them.

    Example:
        >>> number_structures([Structure("lung", 1, print), Structure("Lung", 2, print), Structure("", 3, print)])
        {'background': 0, 'lung_1': 1, 'Lung_2': 2, 'structure_3': 3}
    """
    return {BACKGROUND: 0, **{_unique(s, structures): s.number for s in structures}}


def _key(name: str) -> str:
    return name.strip().casefold()


def _unique(structure: Structure, others: Sequence[Structure]) -> str:
    name = structure.name.strip() or f"structure_{structure.number}"
    twins = sum(_key(other.name) == _key(structure.name) for other in others)
    return f"{name}_{structure.number}" if twins > 1 else name
