"""Labels on the source grid from logits on the network's grid, without logits on the source grid.

Trilinear interpolation is a convex combination: if the corners of a cell of the network's grid share their largest
class, that class is the largest everywhere in the cell. So only voxels in cells whose corners disagree are
interpolated, and the labels equal those of interpolating every class everywhere. The same holds for regions painted
over one another: if all corners show region k, it exceeds the threshold between them too, and no later region does::

    network's grid   o---------o---------o      o: argmax at the nodes
                     | 1     1 | 1     2 |
                     |  same   |  mixed  |      same: the label is copied; mixed: logits are interpolated
                     o---------o---------o
    source grid       . . . . . . . . . .
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from medunet.errors import GeometryError
from medunet.transforms import paint_regions

MIXED = 255
"""Mark of a cell whose corners disagree; so a label map has at most 255 classes."""

OUTSIDE_VOXELS = 1.0
"""Source voxels within this distance of the network's grid take the label at its border, as resampling with a repeated
border does; those beyond it were cropped away and are background."""

AXIS_TOLERANCE = 1e-4
"""Largest drift along a second axis, in voxels over the whole source grid, of a map that counts as parallel."""

_SLAB_VOXELS = 1 << 24  # source voxels per slab, which bounds the memory beside the result
_OBLIQUE_VOXELS = 1 << 21  # the same for oblique grids, which need coordinates for each voxel
_CHUNK_NUMBERS = 1 << 22  # interpolated logits held simultaneously


@dataclass(frozen=True, eq=False)
class GridMap:
    """Affine map from the voxels of a source grid to a network's grid.

    Args:
        matrix: `(n + 1, n + 1)`, source index to network index.
        source_size: voxels of the source grid.
        grid_size: voxels of the network's grid.

    Raises:
        GeometryError: the matrix is not finite.

    Example:
        >>> half = np.diag([0.5, 0.5, 1.0])  # the network saw the image at half its resolution
        >>> GridMap(half, (8, 6), (4, 3)).axes
        (0, 1)
    """

    matrix: npt.NDArray[np.float64]
    source_size: tuple[int, ...]
    grid_size: tuple[int, ...]

    def __post_init__(self) -> None:
        if not np.isfinite(self.matrix).all():
            raise GeometryError("the network's grid has no place on the source's", received=self.matrix.tolist())

    @classmethod
    def between(
        cls,
        source_affine: npt.ArrayLike,
        source_size: Sequence[int],
        grid_affine: npt.ArrayLike,
        grid_size: Sequence[int],
    ) -> GridMap:
        """Return the map from the affines of both grids, `(4, 4)` or `(n + 1, n + 1)`, voxel to mm."""
        keep = [*range(len(source_size)), -1]
        source, grid = (
            np.asarray(affine, dtype=np.float64)[np.ix_(keep, keep)] for affine in (source_affine, grid_affine)
        )
        return cls(np.linalg.inv(grid) @ source, tuple(map(int, source_size)), tuple(map(int, grid_size)))

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


class AxisSteps(NamedTuple):
    """Positions along an axis: the cell of the network's grid, the fraction within it, and whether outside the grid."""

    cell: torch.Tensor
    fraction: torch.Tensor
    outside: torch.Tensor

    @classmethod
    def of(cls, coordinate: torch.Tensor, size: int) -> AxisSteps:
        """Return the positions of coordinates on a network's axis of `size` voxels."""
        outside = (coordinate < -OUTSIDE_VOXELS) | (coordinate > size - 1 + OUTSIDE_VOXELS)
        clamped = coordinate.clamp(0, size - 1)
        cell = clamped.floor().to(torch.int64)
        return cls(cell, (clamped - cell).to(torch.float32), outside)

    def part(self, part: slice, *, start: int = 0) -> AxisSteps:
        """Return some of the positions, with cells counted from `start`."""
        return AxisSteps(self.cell[part] - start, self.fraction[part], self.outside[part])


def restore_labels(
    logits: torch.Tensor,
    grid: GridMap,
    *,
    threshold: float = 0.0,
    order: Sequence[int] = (),
    out: torch.Tensor | None = None,
    region: tuple[slice, ...] | None = None,
) -> torch.Tensor:
    """Return labels on the source grid: those of linear interpolation of the logits followed by argmax.

    Args:
        logits: `(classes, *grid)`, or one tile of it. The class of equal logits is the lowest. A single channel is
            class 1 if it exceeds `threshold`, else 0.
        grid: map from the source grid.
        threshold: of a single channel or of regions, on the scale of the logits.
        order: for regions the class index that each channel is painted with, all different, later over earlier; empty
            for exclusive classes.
        out: `(*source)`, uint8, to write into; by default a new tensor.
        region: region of the network's grid that the tile covers, for tiles of `OverlapTileInferer.tiles(extend=1)`, or
            of `tiles()` if both grids are equal. Default: the whole grid.

    Returns:
        `(*source)`, uint8, on the device of the logits or of `out`.

    Raises:
        GeometryError: more than 255 classes, or logits of another size than the grid or region.
    """
    region = check_region(logits, grid, region, classes=MIXED)
    if out is None:
        out = torch.zeros(grid.source_size, dtype=torch.uint8, device=logits.device)
    if grid.is_identity:  # nothing lies between voxels, so a tile needs no neighbour
        out[region] = decide(logits, threshold, order)
        return out
    core = core_of(region, grid)
    if (axes := grid.axes) is None:
        mixed, nodes = cells(decide(logits, threshold, order)), Nodes(logits)
        for voxels, steps in oblique_steps(grid, core, logits.device, at_once=_OBLIQUE_VOXELS):
            labels = mixed[tuple(step.cell for step in steps)]
            where = (labels == MIXED).nonzero()[:, 0]
            corners, fractions = [s.cell[where] for s in steps], [s.fraction[where] for s in steps]
            labels[where] = nodes.labels(corners, fractions, threshold, order)
            labels[torch.stack([step.outside for step in steps]).any(0)] = 0
            out.view(-1)[voxels.to(out.device)] = labels.to(out.device)
    elif (parallel := steps_along(grid, axes, core, logits.device)) is not None:
        spans, steps = parallel
        # the network's axes in the order of the source's
        aligned = logits.permute(0, *(1 + axis for axis in axes))
        _restore_parallel(aligned, steps, out[spans], threshold=threshold, order=order)
    return out


def check_region(
    logits: torch.Tensor, grid: GridMap, region: tuple[slice, ...] | None, *, classes: int | None = None
) -> tuple[slice, ...]:
    """Return the region of a tile of logits, by default the whole grid.

    Raises:
        GeometryError: logits of another size, or more channels than `classes`.
    """
    region = tuple(slice(0, n) for n in grid.grid_size) if region is None else region
    size = tuple(part.stop - part.start for part in region)
    if tuple(logits.shape[1:]) != size or (classes is not None and len(logits) > classes):
        most = "classes" if classes is None else f"at most {classes} classes"
        raise GeometryError("logits do not fit the grid", received=tuple(logits.shape), expected=f"({most}, *{size})")
    return region


def core_of(region: tuple[slice, ...], grid: GridMap) -> list[range]:
    """Return the cells of a region of its tile: the last voxels belong to the next tile, if there is one."""
    return [
        range(part.start, part.stop if part.stop == n else part.stop - 1)
        for part, n in zip(region, grid.grid_size, strict=True)
    ]


def steps_along(
    grid: GridMap, axes: tuple[int, ...], core: list[range], device: torch.device
) -> tuple[tuple[slice, ...], list[AxisSteps]] | None:
    """For parallel grids, return the source voxels whose cells are in a core, and their positions along each axis.

    Args:
        grid: map with `axes`.
        axes: the network's axis along each source axis.
        core: cells along the network's axes.
        device: of the positions.

    Returns:
        Slices of the source and the positions along them, cells counted from the core's start; None if it is empty.
    """
    spans: list[slice] = []
    steps: list[AxisSteps] = []
    for k, axis in enumerate(axes):
        index = torch.arange(grid.source_size[k], dtype=torch.float64)
        step = AxisSteps.of(grid.matrix[axis, k] * index + grid.matrix[axis, -1], grid.grid_size[axis])
        mine = ((step.cell >= core[axis].start) & (step.cell < core[axis].stop)).nonzero()[:, 0]
        if not len(mine):
            return None
        span = slice(int(mine[0]), int(mine[-1]) + 1)  # cells rise or fall along an axis, so this has no gap
        spans.append(span)
        steps.append(AxisSteps(*(tensor.to(device) for tensor in step.part(span, start=core[axis].start))))
    return tuple(spans), steps


def oblique_steps(
    grid: GridMap, core: list[range], device: torch.device, *, at_once: int
) -> Iterator[tuple[torch.Tensor, list[AxisSteps]]]:
    """For any affine map, yield flat indices of source voxels whose cells are in a core, and their positions.

    Cells are counted from the core's start.
    """
    matrix = torch.as_tensor(grid.matrix, device=device)
    count = int(np.prod(grid.source_size))
    for start in range(0, count, at_once):
        voxels = torch.arange(start, min(start + at_once, count), device=device)
        index = torch.stack(torch.unravel_index(voxels, grid.source_size)).to(torch.float64)
        steps = [AxisSteps.of(matrix[axis, :-1] @ index + matrix[axis, -1], n) for axis, n in enumerate(grid.grid_size)]
        inside = [(s.cell >= c.start) & (s.cell < c.stop) for s, c in zip(steps, core, strict=True)]
        mine = torch.stack(inside).all(0).nonzero()[:, 0]
        yield (
            voxels[mine],
            [
                AxisSteps(s.cell[mine] - c.start, s.fraction[mine], s.outside[mine])
                for s, c in zip(steps, core, strict=True)
            ],
        )


def decide(values: torch.Tensor, threshold: float = 0.0, order: Sequence[int] = ()) -> torch.Tensor:
    """Return the class of each position of `(classes, ...)`, uint8: the lowest of the largest, or one over a threshold.

    With `order` the channels are regions, see :func:`medunet.transforms.paint_regions`.

    Example:
        >>> decide(torch.tensor([[1.0, 2.0], [1.0, 3.0]])).tolist()
        [0, 1]
    """
    if order:
        return paint_regions(values, order, threshold=threshold)
    if values.shape[0] == 1:
        return (values[0] > threshold).to(torch.uint8)
    rows = values.movedim(0, -1)
    if len(values) > 3 and rows.is_contiguous():  # channels-last: the numbers to compare are adjacent
        label = torch.empty(values.shape[1:], dtype=torch.uint8, device=values.device)
        for row, result in zip(rows, label, strict=True):  # row by row, because the indices are int64
            result.copy_(row.argmax(dim=-1))
        return label
    label = (values[1] > values[0]).view(torch.uint8)
    best = torch.maximum(values[0], values[1]) if len(values) > 2 else values[0]
    for k in range(2, len(values)):  # a quarter of the time of torch.argmax over the first axis, without int64 results
        label.masked_fill_(values[k] > best, k)
        if k + 1 < len(values):
            torch.maximum(best, values[k], out=best)
    return label


def cells(labels: torch.Tensor) -> torch.Tensor:
    """Return the common label of the `2 ** n` nodes around each cell, or `MIXED`; cells at the far end are flat."""
    same, lowest = labels, labels
    for axis in range(labels.ndim):
        same, lowest = _with_next(same, axis, torch.maximum), _with_next(lowest, axis, torch.minimum)
    return same.masked_fill_(same != lowest, MIXED)


def _with_next(labels: torch.Tensor, axis: int, of_two: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Apply a function to each label and the next one along an axis; the last stays."""
    result, count = torch.empty_like(labels), labels.shape[axis] - 1
    of_two(labels.narrow(axis, 0, count), labels.narrow(axis, 1, count), out=result.narrow(axis, 0, count))
    result.narrow(axis, count, 1).copy_(labels.narrow(axis, count, 1))
    return result


def _restore_parallel(
    logits: torch.Tensor, steps: list[AxisSteps], out: torch.Tensor, *, threshold: float, order: Sequence[int]
) -> None:
    mixed, nodes = cells(decide(logits, threshold, order)), Nodes(logits)
    first, *others = steps
    at_once = max(1, _SLAB_VOXELS // max(1, out[0].numel()))
    for start in range(0, len(first.cell), at_once):
        part = slice(start, start + at_once)
        low, high = int(first.cell[part].min()), int(first.cell[part].max()) + 1
        labels = mixed[low:high]
        for axis in range(len(steps) - 1, 0, -1):  # the last axis first, while there are few planes
            labels = labels.index_select(axis, steps[axis].cell)
        labels = labels.index_select(0, first.cell[part] - low)
        where = (labels == MIXED).nonzero(as_tuple=True)
        if len(where[0]):
            index = (where[0] + start, *where[1:])
            corners = [step.cell[i] for step, i in zip(steps, index, strict=True)]
            fractions = [step.fraction[i] for step, i in zip(steps, index, strict=True)]
            labels[where] = nodes.labels(corners, fractions, threshold, order)
        for axis, step in enumerate([first.part(part), *others]):
            if step.outside.any():
                labels.index_fill_(axis, step.outside.nonzero()[:, 0], 0)
        out[part] = labels.to(out.device)


class Nodes:
    """Logits at the nodes of the network's grid, for interpolation between them."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.size = logits.shape[1:]
        self.classes = logits.shape[0]
        self._source = logits
        self._rows: torch.Tensor | None = None

    @property
    def rows(self) -> torch.Tensor:
        """`(nodes, classes)`: the numbers of one voxel are adjacent."""
        if self._rows is None:
            self._rows = self._source.movedim(0, -1).reshape(-1, self.classes).float()
        return self._rows

    def labels(
        self,
        corner: Sequence[torch.Tensor],
        fraction: Sequence[torch.Tensor],
        threshold: float,
        order: Sequence[int] = (),
    ) -> torch.Tensor:
        """Return the classes of `(voxels,)` between nodes, given the lower node and the fraction along each axis."""
        labels = torch.empty(len(corner[0]), dtype=torch.uint8, device=self._source.device)
        at_once = max(1, _CHUNK_NUMBERS // self.classes)
        for start in range(0, len(labels), at_once):
            part = slice(start, start + at_once)
            values = self.interpolated([c[part] for c in corner], [f[part] for f in fraction])
            if order or self.classes == 1:
                labels[part] = decide(values.T, threshold, order)
            else:
                labels[part] = values.argmax(dim=1)
        return labels

    def interpolated(self, corner: Sequence[torch.Tensor], fraction: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return `(voxels, classes)`: the weighted sum of the corners' rows, in one fused pass."""
        base = torch.zeros_like(corner[0])
        weight = torch.ones(len(base), 1, dtype=torch.float32, device=self._source.device)
        offset = torch.zeros(1, dtype=torch.int64, device=self._source.device)
        for low, high_share, size in zip(corner, fraction, self.size, strict=True):
            base = base * size + low
            offset = torch.stack([offset * size, offset * size + 1], dim=1).flatten()
            weight = (weight[:, :, None] * torch.stack([1 - high_share, high_share], dim=1)[:, None]).flatten(1)
        node = base[:, None] + offset
        node.clamp_(max=len(self.rows) - 1)  # beyond the last node of an axis the weight is zero
        return F.embedding_bag(node, self.rows, per_sample_weights=weight, mode="sum")
