"""Positions of a source grid's voxels on a network's grid."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from medunet.errors import GeometryError
from medunet.runtime.cuda import upload

# Source voxels within this distance of the network's grid take the label at its border, as resampling with a repeated
# border does; those beyond it were cropped away and are background.
OUTSIDE_VOXELS = 1.0

# largest drift along a second axis, in voxels over the whole source grid, of a map that counts as parallel
AXIS_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class GridMap:
    """Affine map from the voxels of a source grid to a network's grid.

    Args:
        matrix: `(n + 1, n + 1)`, source index to network index.
        source_size: voxels of the source grid.
        grid_size: voxels of the network's grid.
        border: network's voxels beyond the grid's outermost centres that still take the values there.
        nearest: axis of the network's grid along which the nearest voxel counts, without interpolation; None if there
            is no such axis.
        half: whether interpolated logits are rounded to float16 before the largest is taken, as nnU-Net does.

    Raises:
        GeometryError: the matrix is not finite.

    Examples:
        >>> half = np.diag([0.5, 0.5, 1.0])  # the network saw the image at half its resolution
        >>> GridMap(half, (8, 6), (4, 3)).axes
        (0, 1)
    """

    matrix: npt.NDArray[np.float64]
    source_size: tuple[int, ...]
    grid_size: tuple[int, ...]
    border: float = OUTSIDE_VOXELS
    nearest: int | None = None
    half: bool = False

    def __post_init__(self) -> None:
        if not np.isfinite(self.matrix).all():
            raise GeometryError("the map between the grids must be finite", received=self.matrix.tolist())

    @classmethod
    def between(
        cls, source: npt.ArrayLike, source_size: Sequence[int], grid: npt.ArrayLike, grid_size: Sequence[int]
    ) -> "GridMap":
        """Return the map from the affines of both grids, `(4, 4)` or `(n + 1, n + 1)`, voxel to mm."""
        keep = np.ix_(*2 * [[*range(len(source_size)), -1]])
        from_source, from_grid = (np.asarray(affine, dtype=np.float64)[keep] for affine in (source, grid))
        matrix = np.linalg.inv(from_grid) @ from_source
        return cls(matrix, tuple(map(int, source_size)), tuple(map(int, grid_size)))

    @property
    def is_identity(self) -> bool:
        """Whether both grids are equal."""
        same = np.abs((self.matrix - np.eye(len(self.matrix))) * [*self.source_size, 1]).max() <= AXIS_TOLERANCE
        return self.source_size == self.grid_size and bool(same)

    @property
    def axes(self) -> tuple[int, ...] | None:
        """The network's axis that runs along each source axis, or None if the grids are oblique to each other."""
        drift = np.abs(self.matrix[:-1, :-1]) * self.source_size  # rows: axes of the network
        main = drift.argmax(axis=0)
        drift[main, range(len(main))] = 0
        if sorted(main) != list(range(len(main))) or drift.max() > AXIS_TOLERANCE:
            return None
        return tuple(int(axis) for axis in main)


class AxisPositions(NamedTuple):
    """Positions along an axis: the cell of the network's grid, the fraction within it, and whether it is outside."""

    cell: torch.Tensor
    fraction: torch.Tensor
    outside: torch.Tensor

    @classmethod
    def of(cls, coordinate: torch.Tensor, axis: int, grid: GridMap) -> "AxisPositions":
        """Return the positions of coordinates on an axis of a network's grid."""
        size = grid.grid_size[axis]
        outside = (coordinate < -grid.border) | (coordinate > size - 1 + grid.border)
        clamped = coordinate.clamp(0, size - 1)
        if axis == grid.nearest:
            clamped = (clamped + 0.5 + AXIS_TOLERANCE).floor().clamp(max=size - 1)
        cell = clamped.floor().to(torch.int64)
        return cls(cell, (clamped - cell).to(torch.float32), outside)

    def part(self, part: slice | torch.Tensor, *, start: int = 0) -> "AxisPositions":
        """Return some of the positions, with cells counted from `start`."""
        return AxisPositions(self.cell[part] - start, self.fraction[part], self.outside[part])


class Piece(NamedTuple):
    """Source voxels and their positions in a tile of the network's grid.

    Args:
        voxels: a region of the source if the grids are parallel, else flat indices.
        steps: positions along each source axis if the grids are parallel, else of each voxel along each network axis.
        on_host: the same steps in the memory of the CPU, for decisions that must not wait for a GPU.
    """

    voxels: tuple[slice, ...] | torch.Tensor
    steps: list[AxisPositions]
    on_host: list[AxisPositions]

    @property
    def is_parallel(self) -> bool:
        """Whether the grids are parallel."""
        return isinstance(self.voxels, tuple)

    def range_of_first(self) -> tuple[int, int]:
        """Return the nodes between which the positions along the first axis lie."""
        return int(self.on_host[0].cell.min()), int(self.on_host[0].cell.max()) + 1

    def take(self, cells: torch.Tensor) -> torch.Tensor:
        """Return the value of each voxel's cell from `(*tile)`."""
        if not self.is_parallel:
            return cells[tuple(step.cell for step in self.steps)]
        low, high = self.range_of_first()
        values = cells[low:high]
        for axis in range(len(self.steps) - 1, 0, -1):  # the last axis first, while there are few planes
            values = values.index_select(axis, self.steps[axis].cell)
        return values.index_select(0, self.steps[0].cell - low)

    def at(self, voxels: tuple[torch.Tensor, ...]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the cells and fractions of some voxels, given their indices in the result of `take`."""
        index = voxels if self.is_parallel else voxels * len(self.steps)
        pairs = [(step.cell[i], step.fraction[i]) for step, i in zip(self.steps, index, strict=True)]
        return [cell for cell, _ in pairs], [fraction for _, fraction in pairs]

    def outside(self) -> torch.Tensor | None:
        """Return a mask of the voxels outside the network's grid, broadcast to all; None if all are inside."""
        if not any(step.outside.any() for step in self.on_host):
            return None
        masks = [step.outside for step in self.steps]
        if self.is_parallel:
            masks = [mask.view([-1 if k == axis else 1 for k in range(len(masks))]) for axis, mask in enumerate(masks)]
        return functools.reduce(torch.logical_or, masks)

    def write(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """Write the voxels' values `(...)` or `(classes, ...)` into `(*source)` or `(classes, *source)`."""
        values = values.to(out.device)
        if isinstance(self.voxels, tuple):
            region: Any = (..., *self.voxels)
            out[region] = values
        else:
            flat = out.view(-1) if out.ndim == len(self.steps) else out.view(len(out), -1)
            flat[..., self.voxels.to(out.device)] = values


def find_pieces(grid: GridMap, region: tuple[slice, ...], device: torch.device, *, voxels: int) -> Iterator[Piece]:
    """Yield the source voxels whose cells are in a tile of the network's grid, at most `voxels` per piece.

    Pieces are smaller for oblique grids, which need coordinates for each voxel. Cells count from the tile's start.
    """
    # the last voxels of a tile belong to the next one, if there is one
    core = [range(part.start, part.stop - (part.stop < n)) for part, n in zip(region, grid.grid_size, strict=True)]
    if grid.axes is None:
        yield from _oblique(grid, core, device, max(1, voxels // 8))
        return
    spans: list[slice] = []
    on_host: list[AxisPositions] = []
    for k, axis in enumerate(grid.axes):
        index = torch.arange(grid.source_size[k], dtype=torch.float64)
        step = AxisPositions.of(grid.matrix[axis, k] * index + grid.matrix[axis, -1], axis, grid)
        mine = ((step.cell >= core[axis].start) & (step.cell < core[axis].stop)).nonzero()[:, 0]
        if not len(mine):
            return
        span = slice(int(mine[0]), int(mine[-1]) + 1)  # cells rise or fall along an axis, so this has no gap
        spans.append(span)
        on_host.append(step.part(span, start=core[axis].start))
    steps = _on_device(on_host, device)
    at_once = max(1, voxels // math.prod(span.stop - span.start for span in spans[1:]))
    for start in range(spans[0].start, spans[0].stop, at_once):
        span = slice(start, min(start + at_once, spans[0].stop))
        part = slice(span.start - spans[0].start, span.stop - spans[0].start)
        first, *others = on_host
        yield Piece((span, *spans[1:]), [steps[0].part(part), *steps[1:]], [first.part(part), *others])


def _on_device(steps: list[AxisPositions], device: torch.device) -> list[AxisPositions]:
    """Return positions on a device, copied as one tensor."""
    if device.type == "cpu":
        return steps
    packed = torch.cat([torch.stack([part.double() for part in step]) for step in steps], dim=1)
    parts = upload(packed, device).split([len(step.cell) for step in steps], dim=1)
    return [AxisPositions(cell.long(), fraction.float(), outside.bool()) for cell, fraction, outside in parts]


def _oblique(grid: GridMap, core: list[range], device: torch.device, at_once: int) -> Iterator[Piece]:
    matrix, count = torch.as_tensor(grid.matrix, device=device), math.prod(grid.source_size)
    for start in range(0, count, at_once):
        voxels = torch.arange(start, min(start + at_once, count), device=device)
        index = torch.stack(torch.unravel_index(voxels, grid.source_size)).to(torch.float64)
        rows = enumerate(matrix[:-1])
        steps = [AxisPositions.of(row[:-1] @ index + row[-1], axis, grid) for axis, row in rows]
        inside = [(s.cell >= c.start) & (s.cell < c.stop) for s, c in zip(steps, core, strict=True)]
        mine = torch.stack(inside).all(0).nonzero()[:, 0]
        mapped = [s.part(mine, start=c.start) for s, c in zip(steps, core, strict=True)]
        yield Piece(voxels[mine], mapped, mapped)
