"""Labels and probabilities on the source grid from logits on the network's grid, without logits on the source grid.

Trilinear interpolation is a convex combination: if the corners of a cell of the network's grid share their largest
class, that class is the largest everywhere in the cell. So only voxels in cells whose corners disagree are
interpolated, and the labels equal those of interpolating every class everywhere. The same holds for regions painted
over one another: if all corners show region k, it exceeds the threshold between them too, and no later region does.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F

from medunet.errors import GeometryError
from medunet.transforms import paint_regions

from .grids import GridMap, Piece, find_pieces

MIXED = 255  # mark of a cell whose corners disagree; so a label map has at most 255 classes

_LABELS = 1 << 24  # source voxels per piece, which bounds the memory beside the result
_PROBABILITIES = 1 << 25  # probabilities per piece
_CHUNK_NUMBERS = 1 << 22  # interpolated logits held simultaneously


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
        logits: `(classes, *grid)`, or one tile of it. Of equal logits, the lowest class wins. A single channel is
            class 1 if it exceeds `threshold`, else 0.
        grid: map from the source grid.
        threshold: of a single channel or of regions, on the scale of the logits.
        order: for regions, the distinct class index that each channel is painted with, later over earlier; empty for
            exclusive classes.
        out: `(*source)`, uint8, to write into; by default a new tensor.
        region: region of the network's grid that the tile covers, for tiles of `OverlapTileInferer.tiles(extend=1)`, or
            of `tiles()` if both grids are equal. Default: the whole grid.

    Returns:
        `(*source)`, uint8, on the device of the logits or of `out`.

    Raises:
        GeometryError: more than 255 classes, or logits that differ in size from the grid or region.
    """
    region = _check_region(logits, grid, region, most=MIXED)
    if out is None:
        out = torch.zeros(grid.source_size, dtype=torch.uint8, device=logits.device)
    if grid.is_identity:  # nothing lies between voxels, so a tile needs no neighbour
        out[region] = decide(logits, threshold, order)
        return out
    nodes = Nodes(_aligned(logits, grid), half=grid.half)
    common = cells(decide(nodes.logits, threshold, order))
    for piece in find_pieces(grid, region, logits.device, voxels=_LABELS):
        labels = piece.take(common)
        mixed = (labels == MIXED).nonzero(as_tuple=True)
        if len(mixed[0]):
            labels[mixed] = nodes.labels(*piece.at(mixed), threshold, order)
        if (outside := piece.outside()) is not None:
            labels.masked_fill_(outside, 0)
        piece.write(labels, out)
    return out


def restore_probabilities(
    logits: torch.Tensor, grid: GridMap, *, activation: str, out: torch.Tensor, region: tuple[slice, ...] | None = None
) -> None:
    """Write probabilities on the source grid into `out`: interpolated logits, then the activation.

    `logits`, `grid` and `region` are those of :func:`restore_labels`; `out` is `(classes, *source)`, float32.
    """
    region = _check_region(logits, grid, region)
    activate = torch.sigmoid if activation == "sigmoid" else torch.nn.Softmax(dim=0)
    if grid.is_identity:
        whole = (slice(None), *region)
        out[whole] = activate(logits.float()).to(out.device)
        return
    nodes = Nodes(_aligned(logits, grid))
    for piece in find_pieces(grid, region, logits.device, voxels=_PROBABILITIES // len(logits)):
        if piece.is_parallel:
            values = _between(nodes.logits, piece)
        else:
            values = nodes.interpolated([s.cell for s in piece.steps], [s.fraction for s in piece.steps]).T
        values = activate(values)
        if (outside := piece.outside()) is not None:
            values.masked_fill_(outside, 0.0)
            if activation == "softmax":
                values[0].masked_fill_(outside, 1.0)
        piece.write(values, out)


def _check_region(
    logits: torch.Tensor, grid: GridMap, region: tuple[slice, ...] | None, *, most: int | None = None
) -> tuple[slice, ...]:
    """Return the region of a tile of logits, by default the whole grid."""
    region = tuple(slice(0, n) for n in grid.grid_size) if region is None else region
    size = tuple(part.stop - part.start for part in region)
    if tuple(logits.shape[1:]) != size or (most is not None and len(logits) > most):
        classes = "classes" if most is None else f"at most {most} classes"
        expected = f"({classes}, *{size})"
        raise GeometryError("logits do not fit the grid", received=tuple(logits.shape), expected=expected)
    return region


def _aligned(logits: torch.Tensor, grid: GridMap) -> torch.Tensor:
    """Return logits with the network's axes in the order of the source's, if the grids are parallel."""
    return logits if grid.axes is None else logits.permute(0, *(1 + axis for axis in grid.axes))


def _between(logits: torch.Tensor, piece: Piece) -> torch.Tensor:
    """Interpolate `(classes, *tile)` linearly, axis by axis."""
    low, high = piece.range_of_first()
    values = logits[:, low : high + 1].float()
    for axis, step in enumerate(piece.steps, start=1):
        cell = step.cell - low if axis == 1 else step.cell
        fraction = step.fraction.view([-1 if k == axis else 1 for k in range(values.ndim)])
        after = (cell + 1).clamp(max=values.shape[axis] - 1)
        values = torch.lerp(values.index_select(axis, cell), values.index_select(axis, after), fraction)
    return values


def decide(values: torch.Tensor, threshold: float = 0.0, order: Sequence[int] = ()) -> torch.Tensor:
    """Return the class of each position of `(classes, ...)`, uint8: the argmax (lowest of ties), or 1 over a threshold.

    With `order` the channels are regions, see :func:`medunet.transforms.paint_regions`.
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
    """Apply a function to each label and the next one along an axis; the last one is unchanged."""
    result, count = torch.empty_like(labels), labels.shape[axis] - 1
    of_two(labels.narrow(axis, 0, count), labels.narrow(axis, 1, count), out=result.narrow(axis, 0, count))
    result.narrow(axis, count, 1).copy_(labels.narrow(axis, count, 1))
    return result


class Nodes:
    """Logits `(classes, *tile)` at the nodes of the network's grid, for interpolation between them."""

    def __init__(self, logits: torch.Tensor, *, half: bool = False) -> None:
        self.logits = logits
        self.half = half  # round interpolated logits to float16

    @cached_property
    def rows(self) -> torch.Tensor:
        """`(nodes, classes)`: the values of one voxel are adjacent in memory."""
        return self.logits.movedim(0, -1).reshape(-1, len(self.logits)).float()

    def labels(
        self, corner: Sequence[torch.Tensor], fraction: Sequence[torch.Tensor], threshold: float, order: Sequence[int]
    ) -> torch.Tensor:
        """Return the classes of `(voxels,)` between nodes, given the lower node and the fraction along each axis."""
        labels = torch.empty(len(corner[0]), dtype=torch.uint8, device=self.logits.device)
        at_once = max(1, _CHUNK_NUMBERS // len(self.logits))
        for start in range(0, len(labels), at_once):
            part = slice(start, start + at_once)
            values = self.interpolated([c[part] for c in corner], [f[part] for f in fraction])
            values = values.half().float() if self.half else values
            is_argmax = not order and len(self.logits) > 1
            labels[part] = values.argmax(dim=1) if is_argmax else decide(values.T, threshold, order)
        return labels

    def interpolated(self, corner: Sequence[torch.Tensor], fraction: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return `(voxels, classes)`: the weighted sum of the corners' rows, in one fused pass."""
        base = torch.zeros_like(corner[0])
        weight = torch.ones(len(base), 1, dtype=torch.float32, device=self.logits.device)
        offset = torch.zeros(1, dtype=torch.int64, device=self.logits.device)
        for low, high_share, size in zip(corner, fraction, self.logits.shape[1:], strict=True):
            base = base * size + low
            offset = torch.stack([offset * size, offset * size + 1], dim=1).flatten()
            weight = (weight[:, :, None] * torch.stack([1 - high_share, high_share], dim=1)[:, None]).flatten(1)
        node = base[:, None] + offset
        node.clamp_(max=len(self.rows) - 1)  # beyond the last node of an axis the weight is zero
        return F.embedding_bag(node, self.rows, per_sample_weights=weight, mode="sum")
