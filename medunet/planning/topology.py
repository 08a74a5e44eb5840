"""Choice of network, patch and batch from sizes and spacings, by integer arithmetic, each value with its reason.

The rules are nnU-Net's (Isensee et al. 2021), except for batch norm, narrower first levels on a CPU, and no more levels
than the patch allows.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

ANISOTROPY = 3.0  # an axis whose spacing is more than this many times the others' makes a stack of planes (nnU-Net)
SPACING_RATIO = 2.0  # an axis is halved and convolved once its spacing is within this factor of the finest (nnU-Net)
MAX_LEVELS = 6  # further levels reach beyond the patch
MIN_THICKNESS = 3.0  # voxels that every structure keeps at the target spacing (see `measure.thickness`)
CONTEXT_THICKNESS = 5.0  # the same if images are made coarser only so that a patch shows more of them
MAX_COARSENING = 3.0  # the target spacing is at most this many times the median one
BATCH_SHARE = 0.05  # a batch has at most this share of all voxels (nnU-Net), but `FEW_PATCHES` for batch norm
FEW_PATCHES = 4
MAX_PATCHES = 12  # more patches make a step longer and hardly better
MIN_CHANNELS = 8  # at the finest level; fewer do not fill the registers of a processor
LONG_SECONDS = 2 * 3600  # from this time on a CPU trains more channels, and a large GPU larger patches
GPU_BYTES, MAX_CARDS = 11e9, 4.0  # memory that `GPU_3D` is for, and most times that a larger one counts


@dataclass(frozen=True)
class Decision:
    """A value of a bundle and why it was chosen."""

    id: str  # id of the value in the bundle's configs, such as `network_def::channels`
    value: Any
    reason: str
    numbers: str = ""  # figures it was computed from


@dataclass(frozen=True)
class Budget:
    """Limits of a training step."""

    channels: tuple[int, ...]  # channels of the levels, finest first; further levels repeat the last
    patch_voxels: int  # voxels of the largest patch
    batch_voxels: int  # voxels of all patches of a batch
    image_patches: int  # the target spacing is made coarser until the median image has at most this many patches
    context_patches: float  # it is made further coarser until there are this many, while all structures stay thick
    name: str  # name for reasons
    min_edge: int = 4  # smallest edge of the coarsest map; nnU-Net's


# with 40 x 56 x 40 patches and batch 4 a step takes a quarter of that with nnU-Net's 32 to 320 channels
CPU_3D = Budget((16, 48, 96, 192, 256), 180_000, 360_000, 64, 2, "a CPU")
CPU_3D_LONG = Budget((24, 64, 128, 256, 320), 262_144, 524_288, 64, math.inf, "a CPU and hours")
# nnU-Net's channels, patch and batch for a GPU of 11 GB
GPU_3D = Budget((32, 64, 128, 256, 320), 128**3, 2 * 128**3, 512, math.inf, "a GPU")
# measured on the ISBI cells: 256 x 256, batch 4, 0.4 s per step on two cores with AMX
CPU_2D = Budget((32, 64, 128, 256, 512), 256 * 256, 4 * 256 * 256, 64, math.inf, "a CPU", min_edge=16)
# nnU-Net's patch and batch in 2D
GPU_2D = Budget((32, 64, 128, 256, 512), 512 * 512, 12 * 512 * 512, 512, math.inf, "a GPU", min_edge=16)


def choose_budget(spatial_dims: int, *, cuda: bool, seconds: float | None = None, memory: float = GPU_BYTES) -> Budget:
    """Return the limits for a device, a time in seconds (None: no limit) and the free bytes of a GPU."""
    if spatial_dims == 2:
        return GPU_2D if cuda else CPU_2D
    if not cuda:
        return CPU_3D_LONG if seconds is not None and seconds >= LONG_SECONDS else CPU_3D
    factor = max(1, min(MAX_CARDS, memory / GPU_BYTES)) if seconds is None or seconds >= LONG_SECONDS else 1
    patch, batch = int(factor * GPU_3D.patch_voxels), int(factor * GPU_3D.batch_voxels)
    return replace(GPU_3D, patch_voxels=patch, batch_voxels=batch)


@dataclass(frozen=True)
class Spacing:
    """The grid to which all images are resampled."""

    spacing_mm: tuple[float, ...]  # spacing along each axis
    size: tuple[int, ...]  # voxels of the median image on it
    reason: str
    numbers: str  # figures it was computed from
    factor: float = 1.0  # by which 2D images with large objects are made smaller


def target_spacing(
    spacings_mm: Sequence[Sequence[float]],
    shapes: Sequence[Sequence[int]],
    *,
    max_voxels: float = math.inf,
    context_voxels: float = math.inf,
    thinnest_mm: float = math.inf,
) -> Spacing:
    """Return the median spacing, made finer along an axis that is much coarser, and coarser for huge images.

    The grid is made coarser until the median image has `max_voxels`, and further until it has `context_voxels` while
    the thinnest class keeps `CONTEXT_THICKNESS`.
    """
    all_spacings, all_shapes = np.array(spacings_mm, dtype=float), np.array(shapes, dtype=float)
    target = np.median(all_spacings, axis=0)
    extent = np.median(all_spacings * all_shapes, axis=0)
    reason = "median of the cases, axis by axis, in RAS order"
    numbers = f"{len(all_spacings)} cases, {times(all_spacings.min(axis=0))} to {times(all_spacings.max(axis=0))} mm"
    worst = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != worst]
    size = extent / target
    if target[worst] > ANISOTROPY * target[others].max() and size[worst] * ANISOTROPY < size[others].min():
        finer = max(float(np.percentile(all_spacings[:, worst], 10)), float(target[others].max()))
        if finer < target[worst]:
            target[worst] = finer
            reason += "; the coarsest axis takes its 10th percentile, because it is three times as coarse as the others"
    most = target * MAX_COARSENING
    fine = _coarsened(target, extent, max_voxels=max_voxels, limit=np.minimum(most, thinnest_mm / MIN_THICKNESS))
    if (fine > target).any():
        reason += f"; made coarser, because the median image has {times(size)} voxels"
    wide = _coarsened(fine, extent, max_voxels=context_voxels, limit=np.minimum(most, thinnest_mm / CONTEXT_THICKNESS))
    if (wide > fine).any():
        reason += "; so coarse that a patch shows much of the image, while all structures stay thick"
    if (wide > target).any() and math.isfinite(thinnest_mm):
        numbers += f", thinnest class {thinnest_mm:.3g} mm"
    rounded = tuple(float(f"{value:.4g}") for value in wide)
    fitted = tuple(max(1, round(float(e) / s)) for e, s in zip(extent, rounded, strict=True))
    return Spacing(rounded, fitted, reason, numbers)


def _coarsened(target: np.ndarray, extent: np.ndarray, *, max_voxels: float, limit: np.ndarray) -> np.ndarray:
    """Increase the finest spacings first, so that the grid becomes isotropic before it becomes coarse."""
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


Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Topology:
    """Patch, batch and the shape of the network."""

    patch_size: tuple[int, ...]  # voxels along each axis
    batch_size: int  # patches per step
    channels: tuple[int, ...]  # channels of each level, finest first
    strides: Rows  # strides between levels, along each axis
    kernel_sizes: Rows  # kernel sizes of each level, along each axis
    decisions: tuple[Decision, ...] = field(default=(), repr=False)  # all of it with reasons


def choose_topology(
    size: Sequence[int],
    spacing_mm: Sequence[float],
    *,
    budget: Budget,
    n_cases: int,
    patch_voxels: int | None = None,
    batch_size: int | None = None,
    width: float = 1.0,
    flat_axis: int | None = None,
) -> Topology:
    """Return a network for images of a size.

    `patch_voxels` and `batch_size` limit it if memory is small; `width` multiplies the channels if time is short.
    """
    wanted = [1 if axis == flat_axis else n for axis, n in enumerate(size)]
    whole = _rounded_up(wanted, pool(wanted, spacing_mm, min_edge=budget.min_edge)[0])
    limit = budget.patch_voxels
    if 4 * math.prod(whole) <= budget.batch_voxels:
        limit = min(limit, budget.batch_voxels // 4)
    limit = min(limit, patch_voxels or limit)
    patch, strides, kernels = _fit(wanted, spacing_mm, min_edge=budget.min_edge, voxels=limit)
    voxels = math.prod(patch)
    seen = int(BATCH_SHARE * n_cases * math.prod(size) / voxels)
    batch = max(2, min(budget.batch_voxels // voxels, max(seen, FEW_PATCHES), MAX_PATCHES))
    widest = (budget.channels[min(level, len(budget.channels) - 1)] for level in range(len(kernels)))
    channels = tuple(max(MIN_CHANNELS, int(width * count)) for count in widest)
    topology = Topology(patch, min(batch, batch_size or batch), channels, strides, kernels)
    return replace(topology, decisions=_decisions(topology, size, spacing_mm, budget=budget, limit=limit, width=width))


def _fit(
    size: Sequence[int], spacing_mm: Sequence[float], *, min_edge: int, voxels: int
) -> tuple[tuple[int, ...], Rows, Rows]:
    """Return the largest patch of at most `voxels` voxels, shortened where it is longest in mm, and its network."""
    edges = list(size)
    while True:
        strides, kernels = pool(edges, spacing_mm, min_edge=min_edge)
        patch, multiples = _rounded_up(edges, strides), _products(strides)
        longer = [axis for axis in range(len(patch)) if patch[axis] > multiples[axis]]
        if math.prod(patch) <= voxels or not longer:
            return patch, strides, kernels
        longest = max(longer, key=lambda axis: (patch[axis] * spacing_mm[axis], patch[axis]))
        edges = list(patch)
        edges[longest] -= multiples[longest]


def pool(size: Sequence[int], spacing_mm: Sequence[float], *, min_edge: int) -> tuple[Rows, Rows]:
    """Return strides and kernel sizes of a network for patches of a size; it has at least two levels.

    Examples:
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
        axes = zip(kernel, spacing, edges, strict=True)
        kernel = [3 if k == 3 or (s < SPACING_RATIO * finest and n > 1) else 1 for k, s, n in axes]
        kernels.append(tuple(kernel))
        free = [axis for axis, n in enumerate(edges) if n >= 2 * min_edge]
        if free:
            finest = min(spacing[axis] for axis in free)
            free = [axis for axis in free if spacing[axis] < SPACING_RATIO * finest]
        elif not strides:
            free = [axis for axis, n in enumerate(edges) if n > 1] or [0]  # too small, but a U-Net has two levels
        if not free or len(kernels) == MAX_LEVELS:
            return tuple(strides), tuple(kernels)
        strides.append(tuple(2 if axis in free else 1 for axis in range(len(edges))))
        for axis in free:
            edges[axis] = math.ceil(edges[axis] / 2)
            spacing[axis] *= 2


def _products(strides: Rows) -> list[int]:
    return [math.prod(column) for column in zip(*strides, strict=True)]


def _rounded_up(size: Sequence[int], strides: Rows) -> tuple[int, ...]:
    return tuple(math.ceil(n / m) * m for n, m in zip(size, _products(strides), strict=True))


def _decisions(
    topology: Topology, size: Sequence[int], spacing_mm: Sequence[float], *, budget: Budget, limit: int, width: float
) -> tuple[Decision, ...]:
    patch, batch, channels = topology.patch_size, topology.batch_size, topology.channels
    share = math.prod(min(p, n) for p, n in zip(patch, size, strict=True)) / math.prod(size)
    cover = f"contains {100 * share:.3g} % of the median image; the longest side in mm is shortened until it fits"
    if share == 1:
        cover = "contains the whole median image"
    elif 1 in patch and min(size) > 1:
        cover = "one plane, so the network works in the plane"
    spacing = f"spacing {times(spacing_mm)}"
    coarsest = times(p // m for p, m in zip(patch, _products(topology.strides), strict=True))
    strides, kernels = [list(row) for row in topology.strides], [list(row) for row in topology.kernel_sizes]
    is_uneven = len({stride for row in strides for stride in row}) > 1
    is_flat = any(kernel == 1 for row in kernels for kernel in row)
    limits = f"median image {times(size)}, at most {limit:,} voxels on {budget.name}"
    per_step = f"at most {budget.batch_voxels:,} voxels and {100 * BATCH_SHARE:g} % of all, on {budget.name}"
    more = "batch norm needs two; more patches while a step stays cheap and the data are many"
    levels = f"{len(channels)} levels: another one would leave too small a map; widths measured for {budget.name}"
    if width < 1:
        levels += f", times {width:g}, because more steps are worth more than more channels"
    halved = "an axis is halved while it is long and no other is twice as fine" if is_uneven else "all axes alike"
    flat = "no convolution across an axis of one voxel, or twice as coarse as others" if is_flat else "all axes alike"
    norm = "folds into the convolutions and is exact under tiling; instance norm is neither"
    return (
        Decision("patch_size", list(patch), f"{cover}; every edge is a multiple of the total stride", limits),
        Decision("batch_size", batch, more, per_step),
        Decision("network_def::channels", list(channels), levels, f"coarsest map {coarsest}"),
        Decision("network_def::strides", strides if is_uneven else 2, halved, spacing),
        Decision("network_def::kernel_sizes", kernels if is_flat else 3, flat, spacing),
        Decision("network_def::norm", "batch", norm, f"{batch} patches per batch"),
    )


def times(values: Iterable[float]) -> str:
    """Return sizes or spacings as text, such as `64 x 64 x 32`."""
    return " x ".join(f"{float(value):.4g}" for value in values)
