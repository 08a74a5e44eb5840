"""From sizes and spacings to a network: integer arithmetic only, each value with its reason.

nnU-Net's rules (Isensee et al. 2021) are the start: the target spacing, patches of one physical side, an axis is halved
while its map is large enough and its spacing within twice the finest, kernels of 1 until then. Different here: batch
norm, narrower first levels on a CPU, and no more levels than the patch can feed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ANISOTROPY = 3.0
"""A volume whose coarsest spacing is more than this many times the others is treated as a stack of planes (nnU-Net)."""

SPACING_RATIO = 2.0
"""An axis is halved, and convolved across, once its spacing is within this factor of the finest (nnU-Net)."""

MIN_EDGE = {2: 16, 3: 4}
"""Smallest edge of the coarsest map. 4 is nnU-Net's; in the plane 16, which gives the five levels of the 256 x 256
patches measured on the ISBI cells (nnU-Net would take seven)."""

MAX_LEVELS = 6
"""More levels see nothing new: the patch is smaller than what they reach."""

MIN_THICKNESS = 3.0
"""Voxels: coarser target spacings than a third of a structure's thickness would lose it (see `measure.thickness`)."""

CONTEXT_THICKNESS = 5.0
"""Voxels that structures keep where images are made coarser only so that a patch shows more of them."""

MAX_COARSENING = 3.0
"""The target spacing is at most this many times the median one."""

BATCH_SHARE = 0.05
"""A batch holds at most this part of all voxels (nnU-Net), yet `FEW_PATCHES`, for batch norm's sake."""

FEW_PATCHES = 4
MAX_PATCHES = 12
"""More patches a batch make a step longer, and better by little."""


@dataclass(frozen=True)
class Decision:
    """One value of a bundle and why it was chosen.

    Args:
        id: of the value in the bundle's configs, such as ``network_def::channels``.
        value: ready for JSON.
        reason: one sentence.
        numbers: what it was computed from.
    """

    id: str
    value: Any
    reason: str
    numbers: str = ""


@dataclass(frozen=True)
class Budget:
    """What a training step may cost.

    Args:
        channels: of the levels, finest first; deeper networks repeat the last.
        patch_voxels: largest patch.
        batch_voxels: all patches of a batch together.
        image_patches: the target spacing is made coarser until the median image has at most so many patches.
        context_patches: and further until it has so many, as far as all structures stay thick.
        name: for reasons.
    """

    channels: tuple[int, ...]
    patch_voxels: int
    batch_voxels: int
    image_patches: int
    context_patches: float
    name: str


CPU_3D = Budget((16, 48, 96, 192, 256), 180_000, 360_000, 64, 2, "a CPU")
"""With 40 x 56 x 40 patches and batch 4 a step takes a quarter of what it takes with nnU-Net's 32 to 320 channels."""

CPU_3D_LONG = Budget((24, 64, 128, 256, 320), 262_144, 524_288, 64, math.inf, "a CPU and hours")
"""For budgets of `LONG_SECONDS` and more."""

GPU_3D = Budget((32, 64, 128, 256, 320), 128**3, 2 * 128**3, 512, math.inf, "a GPU")
"""nnU-Net's channels, patch and batch for a GPU of 11 GB."""

CPU_2D = Budget((32, 64, 128, 256, 512), 256 * 256, 4 * 256 * 256, 64, math.inf, "a CPU")
"""As measured on the ISBI cells: 256 x 256, batch 4, 0.4 s a step on two cores with AMX."""

GPU_2D = Budget((32, 64, 128, 256, 512), 512 * 512, 12 * 512 * 512, 512, math.inf, "a GPU")
"""nnU-Net's patch and batch in the plane."""

LONG_SECONDS = 2 * 3600
"""From here on a CPU can feed more channels."""


def choose_budget(spatial_dims: int, *, cuda: bool, seconds: float | None = None) -> Budget:
    """The cost that suits a device and the time there is (None: no limit)."""
    if spatial_dims == 2:
        return GPU_2D if cuda else CPU_2D
    if cuda:
        return GPU_3D
    return CPU_3D_LONG if seconds is not None and seconds >= LONG_SECONDS else CPU_3D


@dataclass(frozen=True)
class Spacing:
    """The grid that all images are brought to.

    Args:
        spacing_mm: along each axis.
        size: of the median image on it.
        reason: why.
        numbers: from which figures.
    """

    spacing_mm: tuple[float, ...]
    size: tuple[int, ...]
    reason: str
    numbers: str


def target_spacing(
    spacings_mm: Sequence[Sequence[float]],
    shapes: Sequence[Sequence[int]],
    *,
    max_voxels: float = math.inf,
    context_voxels: float = math.inf,
    thinnest_mm: float = math.inf,
) -> Spacing:
    """The median spacing; finer along a far coarser axis where some images are, coarser where images are huge.

    Args:
        spacings_mm: of each case.
        shapes: voxels along each axis, of each case.
        max_voxels: the median image is made coarser until it has no more voxels than this.
        context_voxels: and further until it has no more than this, while the thinnest class keeps `CONTEXT_THICKNESS`.
        thinnest_mm: thickness of the thinnest class, which limits how coarse that may be.

    Example:
        >>> target_spacing([[1, 1, 1]] * 3, [[35, 51, 35], [34, 52, 38], [36, 50, 36]]).size
        (35, 51, 36)
        >>> target_spacing([[0.8, 0.8, 5.0], [0.8, 0.8, 4.0]], [[512, 512, 40]] * 2).spacing_mm
        (0.8, 0.8, 4.1)
    """
    all_spacings, all_shapes = np.array(spacings_mm, dtype=float), np.array(shapes, dtype=float)
    target = np.median(all_spacings, axis=0)
    extent = np.median(all_spacings * all_shapes, axis=0)
    reason = "median of the cases, axis by axis, in RAS order"
    numbers = f"{len(all_spacings)} cases, {_times(all_spacings.min(axis=0))} to {_times(all_spacings.max(axis=0))} mm"
    worst = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != worst]
    size = extent / target
    if target[worst] > ANISOTROPY * target[others].max() and size[worst] * ANISOTROPY < size[others].min():
        finer = max(float(np.percentile(all_spacings[:, worst], 10)), float(target[others].max()))
        if finer < target[worst]:
            target[worst] = finer
            reason += "; the coarsest axis takes its 10th percentile, for it is thrice as coarse as the others"
    most = target * MAX_COARSENING
    fine = _coarsened(target, extent, max_voxels=max_voxels, limit=np.minimum(most, thinnest_mm / MIN_THICKNESS))
    if (fine > target).any():
        reason += f"; made coarser, for the median image has {_times(size)} voxels"
    wide = _coarsened(fine, extent, max_voxels=context_voxels, limit=np.minimum(most, thinnest_mm / CONTEXT_THICKNESS))
    if (wide > fine).any():
        reason += "; so coarse that a patch shows much of the image, while all structures stay thick"
    if (wide > target).any() and math.isfinite(thinnest_mm):
        numbers += f", thinnest class {thinnest_mm:.3g} mm"
    rounded = tuple(float(f"{value:.4g}") for value in wide)
    fitted = tuple(max(1, round(float(e) / s)) for e, s in zip(extent, rounded, strict=True))
    return Spacing(rounded, fitted, reason, numbers)


def _coarsened(target: np.ndarray, extent: np.ndarray, *, max_voxels: float, limit: np.ndarray) -> np.ndarray:
    """The finest axes grow first, so that the grid becomes isotropic before it becomes coarse."""
    result = target.copy()
    while np.prod(extent / result) > max_voxels:
        free = [axis for axis in range(len(result)) if result[axis] < limit[axis]]
        if not free:
            break
        finest = min(result[axis] for axis in free)
        for axis in free:
            if result[axis] < 1.01 * finest:
                result[axis] = min(result[axis] * 1.05, limit[axis])
    return result


@dataclass(frozen=True)
class Topology:
    """Patch, batch and the shape of the network.

    Args:
        patch_size: voxels along each axis.
        batch_size: patches a step.
        channels: of each level, finest first.
        strides: between levels, along each axis.
        kernel_sizes: of each level, along each axis.
        decisions: all of it with reasons.
    """

    patch_size: tuple[int, ...]
    batch_size: int
    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    decisions: tuple[Decision, ...] = field(default=(), repr=False)


def choose_topology(
    size: Sequence[int],
    spacing_mm: Sequence[float],
    *,
    budget: Budget,
    n_cases: int,
    patch_voxels: int | None = None,
    batch_size: int | None = None,
    flat_axis: int | None = None,
) -> Topology:
    """A network for images of this size.

    Args:
        size: voxels of the median image.
        spacing_mm: of its axes; equal ones where the format knows none.
        budget: what a step may cost.
        n_cases: number of images.
        patch_voxels: instead of the budget's, where memory is smaller.
        batch_size: the same.
        flat_axis: the axis along which patches are one voxel thick, for a network in the plane on volumes.

    Example:
        >>> hippocampus = choose_topology((36, 50, 35), (1, 1, 1), budget=CPU_3D, n_cases=200)
        >>> hippocampus.patch_size, hippocampus.batch_size, hippocampus.channels
        ((40, 56, 40), 4, (16, 48, 96, 192))
    """
    dims = 2 if flat_axis is not None else len(size)
    wanted = [1 if axis == flat_axis else n for axis, n in enumerate(size)]
    fits_four = 4 * math.prod(_rounded_up(wanted, spacing_mm, dims)) <= budget.batch_voxels
    limit = min(budget.patch_voxels, budget.batch_voxels // 4) if fits_four else budget.patch_voxels
    limit = min(limit, patch_voxels or limit)
    patch, strides, kernels = _fit(wanted, spacing_mm, dims=dims, voxels=limit)
    voxels = math.prod(patch)
    seen = int(BATCH_SHARE * n_cases * math.prod(size) / voxels)
    batch = max(2, min(budget.batch_voxels // voxels, max(seen, FEW_PATCHES), MAX_PATCHES))
    batch = min(batch, batch_size or batch)
    levels = len(kernels)
    channels = tuple(budget.channels[min(level, len(budget.channels) - 1)] for level in range(levels))
    return Topology(
        patch_size=patch,
        batch_size=batch,
        channels=channels,
        strides=strides,
        kernel_sizes=kernels,
        decisions=_decisions(
            patch, batch, channels, strides, kernels, size=size, budget=budget, spacing=spacing_mm, limit=limit
        ),
    )


def _rounded_up(size: Sequence[int], spacing_mm: Sequence[float], dims: int) -> list[int]:
    """The patch that holds the whole image."""
    strides, _ = pool(size, spacing_mm, min_edge=MIN_EDGE[dims])
    return [math.ceil(n / m) * m for n, m in zip(size, _products(strides, len(size)), strict=True)]


def _fit(
    size: Sequence[int], spacing_mm: Sequence[float], *, dims: int, voxels: int
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """The largest patch of at most so many voxels, cut where it is longest in millimetres, and its network."""
    edges = list(size)
    while True:
        strides, kernels = pool(edges, spacing_mm, min_edge=MIN_EDGE[dims])
        multiples = _products(strides, len(edges))
        patch = [math.ceil(n / m) * m for n, m in zip(edges, multiples, strict=True)]
        if math.prod(patch) <= voxels:
            return tuple(patch), strides, kernels
        room = [axis for axis in range(len(patch)) if patch[axis] > multiples[axis]]
        if not room:
            return tuple(patch), strides, kernels
        longest = max(room, key=lambda axis: (patch[axis] * spacing_mm[axis], patch[axis]))
        edges = list(patch)
        edges[longest] -= multiples[longest]


def pool(
    size: Sequence[int], spacing_mm: Sequence[float], *, min_edge: int, max_levels: int = MAX_LEVELS
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Strides and kernels of a network for patches of this size; at least two levels.

    Args:
        size: voxels along each axis.
        spacing_mm: of the axes.
        min_edge: smallest edge of the coarsest map.
        max_levels: limit.

    Example:
        >>> pool((64, 64, 16), (0.8, 0.8, 5.0), min_edge=4)[0]
        ((2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2))
    """
    edges, spacing = list(size), list(spacing_mm)
    kernel = [1] * len(edges)
    strides: list[tuple[int, ...]] = []
    kernels: list[tuple[int, ...]] = []
    while True:
        finest = min(s for s, n in zip(spacing, edges, strict=True) if n > 1 or max(edges) == 1)
        # a kernel of 3 sees nothing along an axis of one voxel
        kernel = [
            3 if k == 3 or (s < SPACING_RATIO * finest and n > 1) else 1
            for k, s, n in zip(kernel, spacing, edges, strict=True)
        ]
        kernels.append(tuple(kernel))
        free = [axis for axis, n in enumerate(edges) if n >= 2 * min_edge]
        if free:
            finest = min(spacing[axis] for axis in free)
            free = [axis for axis in free if spacing[axis] < SPACING_RATIO * finest]
        elif not strides:
            free = [axis for axis, n in enumerate(edges) if n > 1] or [0]  # too small, yet a U-Net has two levels
        if not free or len(kernels) == max_levels:
            return tuple(strides), tuple(kernels)
        strides.append(tuple(2 if axis in free else 1 for axis in range(len(edges))))
        for axis in free:
            edges[axis] = math.ceil(edges[axis] / 2)
            spacing[axis] *= 2


def _products(strides: Sequence[Sequence[int]], dims: int) -> list[int]:
    return [math.prod(row[axis] for row in strides) for axis in range(dims)]


def _decisions(
    patch: tuple[int, ...],
    batch: int,
    channels: tuple[int, ...],
    strides: tuple[tuple[int, ...], ...],
    kernels: tuple[tuple[int, ...], ...],
    *,
    size: Sequence[int],
    budget: Budget,
    spacing: Sequence[float],
    limit: int,
) -> tuple[Decision, ...]:
    share = math.prod(min(p, n) for p, n in zip(patch, size, strict=True)) / math.prod(size)
    cover = f"holds {100 * share:.3g} % of the median image; the longest side in mm was cut until it fits"
    if share == 1:
        cover = "holds the median image whole"
    elif 1 in patch and min(size) > 1:
        cover = "one plane, so that the network works in the plane"
    uneven = len({stride for row in strides for stride in row}) > 1
    flat = any(k == 1 for row in kernels for k in row)
    return (
        Decision(
            "patch_size",
            list(patch),
            f"{cover}; every edge is a multiple of the total stride",
            f"median image {_times(size)}, at most {limit:,} voxels on {budget.name}",
        ),
        Decision(
            "batch_size",
            batch,
            "batch norm needs two; more patches as long as a step stays cheap and the data are many",
            f"at most {budget.batch_voxels:,} voxels a step on {budget.name}, {100 * BATCH_SHARE:g} % of all voxels",
        ),
        Decision(
            "network_def::channels",
            list(channels),
            f"{len(channels)} levels: halving further would leave too small a map; widths measured for {budget.name}",
            f"coarsest map {_times(p // m for p, m in zip(patch, _products(strides, len(patch)), strict=True))}",
        ),
        Decision(
            "network_def::strides",
            [list(row) for row in strides] if uneven else 2,
            "an axis is halved only while it is long enough and no other is twice as fine"
            if uneven
            else "all axes are alike: halved",
            f"spacing {_times(spacing)}",
        ),
        Decision(
            "network_def::kernel_sizes",
            [list(row) for row in kernels] if flat else 3,
            "no convolution across an axis of one voxel, or twice as coarse as the finest"
            if flat
            else "all axes are alike",
            f"spacing {_times(spacing)}",
        ),
        Decision(
            "network_def::norm",
            "batch",
            "folds into the convolutions and is exact under tiling; instance norm is neither",
            f"{batch} patches a batch",
        ),
    )


def _times(values: Any) -> str:
    return " x ".join(f"{float(value):.4g}" for value in values)
