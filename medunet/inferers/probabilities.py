"""Class probabilities on the source grid, slab by slab, in a memory-mapped file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from monai.inferers import Inferer

from medunet.networks import check_activation

from .labels import SourceGridInferer
from .restore import AxisSteps, GridMap, Nodes, check_region, core_of, oblique_steps, steps_along

SLAB_NUMBERS = 1 << 25
"""Probabilities per slab, which bounds the memory beside the logits of a tile."""


class ProbabilityInferer(SourceGridInferer):
    """Evaluate a network and bring its class probabilities to the source grid, tile by tile.

    Logits are interpolated linearly, then activated. The result is in a temporary memory-mapped file that is deleted
    with the tensor, so a volume of many classes need not fit into memory.

    Args:
        inferer: evaluates the network, `OverlapTileInferer` or another one.
        activation: `softmax`, or `sigmoid` of each channel. Outside of a cropped grid, softmax gives class 0, sigmoid
            zeros.
        to_source: whether to return to the grid that the image was read on.
        scratch_dir: folder of the temporary file; by default the system's.

    Raises:
        ConfigError: an unknown activation; when called, images of different source grids in one batch.
        GeometryError: when called, an image without the grid that it was read on.

    Example:
        >>> from medunet.inferers import OverlapTileInferer
        >>> network = torch.nn.Conv2d(1, 3, kernel_size=3, padding=1)
        >>> inferer = ProbabilityInferer(OverlapTileInferer(None), to_source=False)
        >>> with torch.inference_mode():
        ...     probabilities = inferer(torch.rand(1, 1, 33, 35), network)
        >>> probabilities.shape, probabilities.sum(dim=1).round(decimals=4).unique().tolist()
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
        # the file has no name, so it disappears with the last reference to it, even if the process crashes
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
    """Return probabilities on the source grid: linear interpolation of the logits, then the activation.

    Args:
        logits: `(classes, *grid)`, or one tile of it.
        grid: map from the source grid.
        activation: `softmax` or `sigmoid`.
        out: `(classes, *source)`, float32, to write into.
        region: region of the network's grid that the tile covers, see :func:`restore_labels`.

    Returns:
        `out`.

    Raises:
        GeometryError: logits of another size than the grid or region.
    """
    region = check_region(logits, grid, region)
    if grid.is_identity:
        place = (slice(None), *region)
        out[place] = _activated(logits.float(), activation).to(out.device)
        return out
    core = core_of(region, grid)
    if (axes := grid.axes) is None:
        nodes, flat = Nodes(logits), out.view(len(out), -1)
        for voxels, steps in oblique_steps(grid, core, logits.device, at_once=max(1, SLAB_NUMBERS // len(logits) // 8)):
            values = nodes.interpolated([step.cell for step in steps], [step.fraction for step in steps]).T
            outside = torch.stack([step.outside for step in steps]).any(0)
            values = _without(_activated(values, activation), outside, activation)
            flat[:, voxels.to(out.device)] = values.to(out.device)
    elif (parallel := steps_along(grid, axes, core, logits.device)) is not None:
        spans, steps = parallel
        place = (slice(None), *spans)
        _parallel(logits.permute(0, *(1 + axis for axis in axes)), steps, out[place], activation)
    return out


def _parallel(logits: torch.Tensor, steps: list[AxisSteps], out: torch.Tensor, activation: str) -> None:
    first, *others = steps
    at_once = max(1, SLAB_NUMBERS // max(1, out[:, 0].numel()))
    for start in range(0, len(first.cell), at_once):
        part = slice(start, start + at_once)
        low = int(first.cell[part].min())
        values = logits[:, low : int(first.cell[part].max()) + 2].float()
        outside = torch.zeros((1,) * len(steps), dtype=torch.bool, device=logits.device)
        for axis, step in enumerate([first.part(part, start=low), *others]):
            values = _between(values, step, axis + 1)
            outside = outside | step.outside.view([-1 if k == axis else 1 for k in range(len(steps))])
        out[:, part] = _without(_activated(values, activation), outside, activation).to(out.device)


def _between(values: torch.Tensor, step: AxisSteps, axis: int) -> torch.Tensor:
    """Interpolate linearly along one axis."""
    fraction = step.fraction.view([-1 if k == axis else 1 for k in range(values.ndim)])
    after = (step.cell + 1).clamp(max=values.shape[axis] - 1)
    return torch.lerp(values.index_select(axis, step.cell), values.index_select(axis, after), fraction)


def _activated(logits: torch.Tensor, activation: str) -> torch.Tensor:
    return torch.softmax(logits, dim=0) if activation == "softmax" else torch.sigmoid(logits)


def _without(values: torch.Tensor, outside: torch.Tensor, activation: str) -> torch.Tensor:
    """Set background outside of the network's grid."""
    if outside.any():
        values.masked_fill_(outside, 0.0)
        if activation == "softmax":
            values[0].masked_fill_(outside.expand_as(values[0]), 1.0)
    return values
