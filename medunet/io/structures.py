"""Named regions of a file in any format: what all label readers share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medunet.errors import DataError, GeometryError
from medunet.geometry import Geometry

from .segments import BACKGROUND

Mask = npt.NDArray[np.bool_]

# Largest distance of a voxel from its partner on the reference. Positions of slices are decimal strings and vary by up
# to `medunet.io.dicom.grid.GAP_TOLERANCE_MM`; a fifth of a voxel changes no label.
LATTICE_TOLERANCE_VOXELS = 0.2


class Painting(NamedTuple):
    """The voxels of a structure on a grid, and warnings."""

    mask: Mask
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Structure:
    """A segment, region of interest or label of a file."""

    name: str
    number: int  # in the file, from 1
    paint: Callable[[Geometry], Painting]  # raises GeometryError if the structure does not lie on the grid


def paint_structures(
    structures: Sequence[Structure], reference: Geometry, *, labels: Mapping[str, int] | None, file: Path
) -> tuple[npt.NDArray[np.float32], dict[str, int], tuple[str, ...]]:
    """Return the voxels of structures on a grid, the value of each name, and warnings.

    If two overlap, the later one wins, and a warning counts these voxels.
    `labels` (value by name) chooses structures and their order; names are compared without case and surrounding spaces.
    None uses all, numbered and ordered as in the file.
    """
    warnings: list[str] = []
    if labels is None:
        chosen = [(s, _unique(s, structures), s.number) for s in structures]
    else:
        required = {name: value for name, value in labels.items() if value != 0 and _key(name) != BACKGROUND}
        by_name: dict[str, Structure] = {}
        for structure in structures:
            key = _key(structure.name)
            if by_name.setdefault(key, structure) is not structure and key in map(_key, labels):
                raise DataError("two structures have the same name", file=file, received=structure.name)
        chosen = [(by_name[_key(name)], name, value) for name, value in required.items() if _key(name) in by_name]
        if required and not chosen:
            cause, names = "none of the labels is among the file's structures", sorted(s.name for s in structures)
            raise DataError(cause, file=file, received=names, expected=sorted(required))
        if unused := sorted(set(by_name) - {_key(name) for name in required}):
            warnings.append(f"structures without a label left out: {', '.join(by_name[key].name for key in unused)}")
        if absent := sorted(name for name in required if _key(name) not in by_name):
            warnings.append(f"no structure of the name {', '.join(absent)}")
    voxels = np.zeros(reference.shape, dtype=np.float32)
    for structure, name, value in chosen:
        mask, unusual = structure.paint(reference)
        warnings.extend(f"{name}: {text}" for text in unusual)
        if shared := int(np.count_nonzero(voxels[mask])):
            warnings.append(f"{name}: {shared} voxels belong to another structure too; the later one is kept")
        voxels[mask] = value
    return voxels, {BACKGROUND: 0, **{name: value for _, name, value in chosen}}, tuple(warnings)


def paint_voxels(
    indices: npt.NDArray[np.int64], source: Geometry, target: Mask, reference: Geometry, *, file: Path
) -> None:
    """Set voxels of `target`, a mask on `reference`, that are given by ``(3, N)`` indices on the grid `source`.

    The grids share voxel centres; the source may be mirrored, have permuted axes and extend beyond the reference. A
    voxel that is outside, or whose centre does not coincide, is a GeometryError.
    """
    if len(source.shape) != 3 or len(reference.shape) != 3:
        raise GeometryError("a segmentation in a patient needs an image volume", file=file, received=reference.shape)
    exact = np.linalg.inv(reference.affine) @ source.affine
    axes, offset = np.rint(exact[:3, :3]).astype(np.int64), np.rint(exact[:3, 3:]).astype(np.int64)
    corners = np.array(list(product(*[(0, n - 1) for n in source.shape]))).T
    distance = np.abs(exact[:3, :3] @ corners + exact[:3, 3:] - (axes @ corners + offset)).max()
    if not np.array_equal(np.abs(axes) @ np.abs(axes).T, np.eye(3)) or distance > LATTICE_TOLERANCE_VOXELS:
        cause = "segmentation does not lie on the image's grid"
        raise GeometryError(cause, file=file, received=source, expected=f"voxels of {reference}")
    mapped = axes @ indices + offset
    outside = ((mapped < 0) | (mapped >= np.reshape(target.shape, (3, 1)))).any(axis=0)
    if outside.any():
        received = f"{int(outside.sum())} of {outside.size} voxels outside"
        raise GeometryError("segmentation reaches outside the image", file=file, received=received)
    target[tuple(mapped)] = True


def number_structures(structures: Sequence[Structure]) -> dict[str, int]:
    """Return the value of each name, numbered as in the file; a name that occurs twice gets its number appended."""
    return {BACKGROUND: 0, **{_unique(s, structures): s.number for s in structures}}


def _key(name: str) -> str:
    return name.strip().casefold()


def _unique(structure: Structure, others: Sequence[Structure]) -> str:
    name = structure.name.strip() or f"structure_{structure.number}"
    twins = sum(_key(other.name) == _key(structure.name) for other in others)
    return f"{name}_{structure.number}" if twins > 1 else name
