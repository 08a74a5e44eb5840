"""Class probabilities on the source grid, a slab at a time, into a file that is mapped to memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from monai.inferers import Inferer

from medunet.errors import GeometryError
from medunet.networks import check_activation

from .labels import SourceGridInferer
from .restore import AxisSteps, GridMap, Nodes, core_of, steps_along

SLAB_NUMBERS = 1 << 25
"""Probabilities worked on at once, which bounds the memory beside the logits of a tile."""


class ProbabilityInferer(SourceGridInferer):
    """Evaluate a network and bring its class probabilities to the source grid, tile by tile.

    Logits are interpolated linearly, then activated. The result lies in a temporary file that is mapped to memory and
    goes with the tensor, so that a volume of many classes need not fit into memory.

    Args:
        inferer: evaluates the network, `OverlapTileInferer` or another one.
        activation: `softmax`, or `sigmoid` of each channel. Outside of a cropped grid a softmax network says class 0,
            a sigmoid one nothing.
        to_source: whether to return to the grid that the image was read on.
        scratch_dir: where the temporary file lies; the system's folder for such by default.

    Raises:
        ConfigError: an unknown activation; when called, images of different source grids in one batch.
        GeometryError: when called, an image that does not know its source grid.

    Example:
        >>> from medunet.inferers import OverlapTileInferer
        >>> network = torch.nn.Conv2d(1, 3, kernel_size=3, padding=1)
        >>> inferer = ProbabilityInferer(OverlapTileInferer(None), to_source=False)
        >>> with torch.inference_mode():
        ...     found = inferer(torch.rand(1, 1, 33, 35), network)
        >>> found.shape, found.sum(dim=1).round(decimals=4).unique().tolist()
        (torch.Size([1, 3, 33, 35]), [1.0])
    """

    def __init__(
        self,
        inferer: Inferer,
        *,
        activation: str = "softmax",
        to_source: bool = True,
        scratch_dir: str | Path | None = None,
    ) -> None:
        super().__init__(inferer, to_source=to_source)
        self.activation = check_activation(activation)
        self.scratch_dir = scratch_dir

    def _empty(self, images: int, classes: int, size: tuple[int, ...]) -> torch.Tensor:
        # the file has no name, so that it is gone with the last reference to it, however the process ends
        with tempfile.TemporaryFile(dir=self.scratch_dir) as file:
            return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="w+", shape=(images, classes, *size)))

    def _put(self, logits: torch.Tensor, grid: GridMap, out: torch.Tensor, region: tuple[slice, ...]) -> None:
        restore_probabilities(logits, grid, activation=self.activation, out=out, region=region)


def restore_probabilities(
    logits: torch.Tensor,
    grid: GridMap,
    *,
    activation: str = "softmax",
    out: torch.Tensor,
    region: tuple[slice, ...] | None = None,
) -> torch.Tensor:
    """Bring probabilities back to the source grid: linear interpolation of the logits, then the activation.

    Args:
        logits: `(classes, *grid)`, or one tile of it.
        grid: where the source's voxels lie.
        activation: `softmax` or `sigmoid`.
        out: `(classes, *source)`, float32, to write into.
        region: as of :func:`restore_labels`.

    Returns:
        `out`.

    Raises:
        GeometryError: logits of another size than the grid or region.
    """
    region = tuple(slice(0, n) for n in grid.grid_size) if region is None else region
    size = tuple(part.stop - part.start for part in region)
    if tuple(logits.shape[1:]) != size:
        raise GeometryError("logits do not fit the grid", received=tuple(logits.shape), expected=f"(classes, *{size})")
    if grid.is_identity:
        place = (slice(None), *region)
        out[place] = _activated(logits.float(), activation).to(out.device)
        return out
    core = core_of(region, grid)
    if grid.axes is None:
        _oblique(logits, grid, core, out, activation)
        return out
    parallel = steps_along(grid, grid.axes, core)
    if parallel is not None:
        spans, steps = parallel
        place = (slice(None), *spans)
        _parallel(logits.permute(0, *(1 + axis for axis in grid.axes)), steps, out[place], activation)
    return out


def _parallel(logits: torch.Tensor, steps: list[AxisSteps], out: torch.Tensor, activation: str) -> None:
    device = logits.device
    steps = [AxisSteps(*(t.to(device) for t in (s.cell, s.fraction, s.outside))) for s in steps]
    first, *others = steps
    at_once = max(1, SLAB_NUMBERS // max(1, out[:, 0].numel()))
    for start in range(0, len(first.cell), at_once):
        part = slice(start, start + at_once)
        low = int(first.cell[part].min())
        here = AxisSteps(first.cell[part] - low, first.fraction[part], first.outside[part])
        values = logits[:, low : int(first.cell[part].max()) + 2].float()
        outside = torch.zeros((1,) * len(steps), dtype=torch.bool, device=device)
        for axis, step in enumerate([here, *others]):
            values = _between(values, step, axis + 1)
            shape = [-1 if k == axis else 1 for k in range(len(steps))]
            outside = outside | step.outside.view(shape)
        out[:, part] = _without(_activated(values, activation), outside, activation).to(out.device)


def _oblique(logits: torch.Tensor, grid: GridMap, core: list[range], out: torch.Tensor, activation: str) -> None:
    device, nodes = logits.device, Nodes(logits)
    matrix = torch.as_tensor(grid.matrix, device=device)
    flat = out.view(len(out), -1)
    at_once = max(1, SLAB_NUMBERS // len(logits) // 8)
    for start in range(0, flat.shape[1], at_once):
        voxel = torch.arange(start, min(start + at_once, flat.shape[1]))
        index = torch.stack(torch.unravel_index(voxel, grid.source_size)).to(device, torch.float64)
        steps = [AxisSteps.of(matrix[axis, :-1] @ index + matrix[axis, -1], n) for axis, n in enumerate(grid.grid_size)]
        inside = [(s.cell >= c.start) & (s.cell < c.stop) for s, c in zip(steps, core, strict=True)]
        mine = torch.stack(inside).all(0).nonzero()[:, 0]
        corners = [s.cell[mine] - c.start for s, c in zip(steps, core, strict=True)]
        values = nodes.interpolated(corners, [s.fraction[mine] for s in steps]).T
        outside = torch.stack([s.outside[mine] for s in steps]).any(0)
        found = _without(_activated(values, activation), outside, activation)
        flat[:, voxel[mine.cpu()]] = found.to(out.device)


def _between(values: torch.Tensor, step: AxisSteps, axis: int) -> torch.Tensor:
    """Linear interpolation along one axis."""
    fraction = step.fraction.view([-1 if k == axis else 1 for k in range(values.ndim)])
    after = (step.cell + 1).clamp(max=values.shape[axis] - 1)
    return torch.lerp(values.index_select(axis, step.cell), values.index_select(axis, after), fraction)


def _activated(logits: torch.Tensor, activation: str) -> torch.Tensor:
    return torch.softmax(logits, dim=0) if activation == "softmax" else torch.sigmoid(logits)


def _without(values: torch.Tensor, outside: torch.Tensor, activation: str) -> torch.Tensor:
    """Background where the network saw nothing."""
    if outside.any():
        values.masked_fill_(outside, 0.0)
        if activation == "softmax":
            values[0].masked_fill_(outside.expand_as(values[0]), 1.0)
    return values
