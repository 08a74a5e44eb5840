"""Smooth maps of a patch into a volume, and resampling along them."""

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import CubicSpline

from medunet.errors import ConfigError

from .tensors import plain

# "bilinear" is trilinear in 3D; "onehot" interpolates each label by itself and takes the largest
INTERPOLATION_MODES = ("bilinear", "nearest", "bicubic", "onehot")
PADDING_MODES = ("reflection", "border", "zeros")  # "reflection" does not repeat the border voxel
EXACT_TOLERANCE = 1e-6  # voxels; positions this close to voxel centres are copied, so that crops and flips are exact
BOX_MARGIN = 3  # voxels read beyond the outermost sampled positions: a bicubic kernel reaches less than 3 farther
SLAB_PLANES = 8  # planes that `_sample_planes` samples at a time: fewer reach less of the box and are more exact


@dataclass(frozen=True, eq=False)
class Deformation:
    """A map from the voxels of a patch to positions in a volume, both in voxels.

    The source of the voxel at offset `u` from the middle of the patch is ``center + matrix @ u + d(u)``, where `d`
    interpolates `displacement`, vectors at control points spread evenly over the patch, `(*control_points, D)`, by
    natural cubic splines along each axis: the bicubic displacement field of Ronneberger et al. 2015, section 3.1.
    """

    size: tuple[int, ...]
    center: np.ndarray
    matrix: np.ndarray
    displacement: np.ndarray | None = None
    _positions: dict[torch.device, torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    _inside: dict[Any, tuple[torch.Tensor, list[tuple[int, int]]]] = field(default_factory=dict, init=False, repr=False)

    @staticmethod
    def crop(start: Sequence[int], size: Sequence[int]) -> "Deformation":
        """Return the map that copies the box of `size` whose first voxel is `start` (which may be outside)."""
        center = np.asarray(start, dtype=np.float64) + (np.asarray(size) - 1) / 2
        return Deformation(size=tuple(size), center=center, matrix=np.eye(len(center)))

    def positions(self, device: torch.device) -> torch.Tensor:
        """Return the source position of each voxel, `(D, *size)` float32; computed once for all keys of an item."""
        # splines reproduce linear functions, so interpolating the positions of the control points gives the whole map
        if device not in self._positions:
            points = (2,) * len(self.size) if self.displacement is None else self.displacement.shape[:-1]
            axes = [np.linspace(-(n - 1) / 2, (n - 1) / 2, p) for n, p in zip(self.size, points, strict=True)]
            offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
            control = self.center + offsets @ self.matrix.T + (0 if self.displacement is None else self.displacement)
            self._positions[device] = _interpolate(np.moveaxis(control, -1, 0), self.size, device)
        return self._positions[device]

    def positions_inside(
        self, device: torch.device, shape: tuple[int, ...]
    ) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """Return `positions` clamped to a volume (edges >= 2), and the first and last voxel per axis in reach."""
        if (device, shape) not in self._inside:
            parts, box = [], []
            for axis, size in zip(self.positions(device), shape, strict=True):
                low, high = (int(bound.floor()) for bound in axis.aminmax())  # int() alone would take -0.3 for 0
                first = min(max(low - 1, 0), size - 2)
                last = min(max(high + 2, first + 1), size - 1)
                parts.append(axis.clamp(first, last) if low < 0 or high >= size - 1 else axis)
                box.append((first, last))
            self._inside[device, shape] = torch.stack(parts), box
        return self._inside[device, shape]

    def voxel_axes(self) -> list[tuple[int, np.ndarray]] | None:
        """Return source axis and source indices per patch axis if the map copies voxels; else None."""
        if self.displacement is not None and np.any(self.displacement):
            return None
        turns = np.rint(self.matrix)
        extent = np.asarray(self.size).max()
        is_permutation = np.array_equal(turns @ turns.T, np.eye(len(turns)))  # with signs
        if np.abs(self.matrix - turns).max() * extent > EXACT_TOLERANCE or not is_permutation:
            return None
        axes = []
        for axis, size in enumerate(self.size):
            source = int(np.flatnonzero(turns[:, axis])[0])
            indices = self.center[source] + turns[source, axis] * (np.arange(size) - (size - 1) / 2)
            if np.abs(indices - np.rint(indices)).max() > EXACT_TOLERANCE:
                return None
            axes.append((source, np.rint(indices).astype(np.int64)))
        return axes


def resample(
    volume: torch.Tensor | np.ndarray,
    deformation: Deformation,
    *,
    mode: str = "bilinear",
    padding_mode: str = "reflection",
) -> torch.Tensor:
    """Sample a volume `(C, *spatial)` along a deformation; returns a new tensor `(C, *deformation.size)`.

    Maps that only crop, flip or make quarter turns copy voxels exactly. Only the part of the volume within reach of
    the patch is read, so a memory-mapped array is not loaded as a whole. Interpolated integers become float32.

    Examples:
        >>> row = torch.arange(5.0).reshape(1, 1, 5)
        >>> resample(row, Deformation.crop([0, -2], [1, 4]))
        tensor([[[2., 1., 0., 1.]]])
    """
    check_modes([mode], [padding_mode])
    if mode == "bicubic" and len(deformation.size) != 2:
        raise ConfigError("bicubic interpolation is for 2D images", received=f"{len(deformation.size)}D")
    if mode == "onehot" and len(volume) != 1:
        raise ConfigError("onehot resampling is for labels of one channel", received=f"{len(volume)} channels")
    keep_dtype = mode in ("nearest", "onehot")
    axes = deformation.voxel_axes()
    if axes is not None:
        copied = _copy_voxels(volume, axes, padding_mode)
        return copied if keep_dtype or copied.is_floating_point() else copied.float()

    # The box includes all that sampling can touch, also mirrored parts: grid_sample's own "reflection" takes more than
    # twice the time, and its box would have to end where the volume ends.
    device = volume.device if isinstance(volume, torch.Tensor) else torch.device("cpu")
    if padding_mode == "border" and mode != "bicubic" and min(volume.shape[1:]) > 1:
        # positions beyond the volume are moved to its border, so that the box ends there
        positions, bounds = deformation.positions_inside(device, tuple(volume.shape[1:]))
    else:
        positions = deformation.positions(device)
        bounds = [(int(low) - BOX_MARGIN, int(high) + BOX_MARGIN) for low, high in (one.aminmax() for one in positions)]
    origin = [first for first, _ in bounds]
    box = _copy_voxels(volume, [(axis, np.arange(a, b + 1)) for axis, (a, b) in enumerate(bounds)], padding_mode)
    if mode == "nearest":
        return _sample_nearest(box, positions, origin)
    if mode == "onehot":
        labels = torch.unique(box)
        channels = (box == labels.view(-1, *[1] * len(deformation.size))).float()
        return labels[_sample(channels, positions, origin, "bilinear").argmax(dim=0, keepdim=True)]
    if mode == "bilinear" and len(deformation.size) == 3 and device.type == "cpu":
        sampled = _sample_planes(box.float(), positions, origin)
    else:
        sampled = _sample(box.float(), positions, origin, mode)
    return sampled.to(box.dtype) if box.is_floating_point() else sampled


def check_modes(modes: Iterable[str], padding_modes: Iterable[str]) -> None:
    """Reject an unknown interpolation or padding mode with a ConfigError."""
    pairs = (("interpolation", modes, INTERPOLATION_MODES), ("padding", padding_modes, PADDING_MODES))
    for kind, given, known in pairs:
        for mode in given:
            if mode not in known:
                raise ConfigError(f"unknown {kind} mode", received=mode, expected=", ".join(known))


@functools.lru_cache(maxsize=64)
def _spline_matrix(size: int, points: int) -> np.ndarray:
    """Return weights `(size, points)` of a natural cubic spline from control points to `size` voxels."""
    if size == 1:
        return np.full((1, points), 1 / points)
    knots = np.linspace(0, size - 1, points)
    matrix: np.ndarray = CubicSpline(knots, np.eye(points), bc_type="natural")(np.arange(size))
    return matrix


def _interpolate(control: np.ndarray, size: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Interpolate control values `(K, *control_points)` to `(K, *size)`, one axis at a time, the last first."""
    # float64: autocast or TF32 may round products of float32, and a position of 200.3 voxels would become 200
    values = torch.tensor(np.ascontiguousarray(control), dtype=torch.float64, device=device)
    for axis in reversed(range(1, values.ndim)):
        weights = torch.tensor(_spline_matrix(size[axis - 1], control.shape[axis]), device=device)
        head, tail = values.shape[:axis], values.shape[axis + 1 :]
        product = weights @ values.reshape(*head, values.shape[axis], -1)
        values = product.reshape(*head, size[axis - 1], *tail)
    return values.float()


def _sample(box: torch.Tensor, positions: torch.Tensor, origin: list[int], mode: str) -> torch.Tensor:
    # grid_sample wants the last axis first, and -1 and 1 for the middle of the first and last voxel (align_corners).
    grid = torch.empty_like(positions)
    for axis, (first, size) in enumerate(zip(origin, box.shape[1:], strict=True)):
        scale = 2 / (size - 1)
        torch.mul(positions[axis], scale, out=grid[-1 - axis]).sub_(first * scale + 1)
    grid = grid.movedim(0, -1)
    return F.grid_sample(box[None], grid[None], mode=mode, padding_mode="border", align_corners=True)[0]


def _sample_planes(box: torch.Tensor, positions: torch.Tensor, origin: list[int]) -> torch.Tensor:
    """Sample trilinearly by two bilinear samplings, in the planes before and after: 2.5 times as fast on a CPU.

    Positions along the second axis are rounded to some thousandths of a voxel.
    """
    # The planes, one below the other, are one tall image, in which row r of plane p is row p * height + r:
    #
    #   plane 0  [----]    first channel   [----] 0    second channel   [----] 1    the same memory,
    #   plane 1  [----]                    [----] 1                     [----] 2    one plane on
    #   plane 2  [----]
    channels, _, height, width = box.shape
    strides = (box.stride(0), height * width, width, 1)
    below = positions[0].floor()
    sampled = torch.empty((channels, *positions.shape[1:]))
    # so that there is a plane before (rounding may leave a position just below the first) and one after it
    below.clamp_(min=origin[0], max=origin[0] + box.shape[1] - 2)
    for start in range(0, len(below), SLAB_PLANES):
        slab = slice(start, start + SLAB_PLANES)
        first, last = (int(bound) for bound in below[slab].aminmax())
        rows = (last - first + 1) * height
        picture = box[:, first - origin[0] :].as_strided((channels, 2, rows, width), strides)
        grid = torch.empty((2, *below[slab].shape))
        torch.sub(positions[2, slab], origin[2], out=grid[0]).mul_(2 / (width - 1)).sub_(1)
        torch.sub(positions[1, slab], origin[1], out=grid[1]).add_(below[slab] - first, alpha=height)
        grid[1].mul_(2 / (rows - 1)).sub_(1)
        points = grid.flatten(1, 2).movedim(0, -1).expand(channels, -1, -1, -1)
        pair = F.grid_sample(picture, points, mode="bilinear", padding_mode="border", align_corners=True)
        pair = pair.unflatten(2, below[slab].shape[:2])
        torch.lerp(pair[:, 0], pair[:, 1], positions[0, slab] - below[slab], out=sampled[:, slab])
    return sampled


def _sample_nearest(box: torch.Tensor, positions: torch.Tensor, origin: list[int]) -> torch.Tensor:
    """Look up the nearest voxels by index: exact for every type, unlike grid_sample, which needs floats."""
    flat = torch.zeros(positions.shape[1:], dtype=torch.int32, device=box.device)
    for axis, (first, size) in enumerate(zip(origin, box.shape[1:], strict=True)):
        flat.mul_(size).add_(positions[axis].round().int()).sub_(first)
    return box.flatten(1).index_select(1, flat.flatten()).reshape(-1, *flat.shape)


def _copy_voxels(
    volume: torch.Tensor | np.ndarray, axes: list[tuple[int, np.ndarray]], padding_mode: str
) -> torch.Tensor:
    """Copy the voxels at source indices along source axes, `(axis, indices)` per axis of the result."""
    slices: list[slice] = [slice(None)] * volume.ndim
    steps = []
    for source, indices in axes:
        size = volume.shape[1 + source]
        inside = _mirrored(indices, size) if padding_mode == "reflection" else np.clip(indices, 0, size - 1)
        first, last = int(inside.min()), int(inside.max())
        slices[1 + source] = slice(first, last + 1)
        steps.append((inside - first, np.flatnonzero((indices < 0) | (indices >= size))))
    # A memory-mapped array is read only here, where the part is known.
    if isinstance(volume, torch.Tensor):
        patch = plain(volume)[tuple(slices)]
    else:
        patch = torch.from_numpy(np.array(volume[tuple(slices)]))
    patch = patch.permute(0, *[1 + source for source, _ in axes])
    copied = False
    for axis, (indices, outside) in reversed(list(enumerate(steps, start=1))):  # the slowest, the last, while small
        if not np.array_equal(indices, np.arange(patch.shape[axis])):
            patch, copied = torch.cat(_runs(patch, axis, indices), dim=axis), True
        if padding_mode == "zeros" and len(outside):
            patch = patch if copied else patch.clone()
            patch.index_fill_(axis, torch.from_numpy(outside).to(patch.device), 0)
            copied = True
    return patch.contiguous() if copied else patch.clone(memory_format=torch.contiguous_format)


def _runs(patch: torch.Tensor, axis: int, indices: np.ndarray) -> list[torch.Tensor]:
    """Return parts of the patch whose concatenation has these indices along the axis.

    Padded ranges are few runs that rise, fall or stay constant; slices are up to ten times as fast as `index_select`.
    """
    # mirrored   2 1 0 | 1 2 3 4 5 | 4 3        border   0 0 0 | 1 2 3 4 5 | 5 5
    starts = [0, *(np.flatnonzero(np.diff(indices, n=2)) + 2).tolist(), len(indices)]
    parts = []
    for start, stop in itertools.pairwise(starts):
        first, last, count = int(indices[start]), int(indices[stop - 1]), stop - start
        if first == last:
            parts.append(patch.narrow(axis, first, 1).expand(*patch.shape[:axis], count, *patch.shape[axis + 1 :]))
        elif first < last:
            parts.append(patch.narrow(axis, first, count))
        else:
            parts.append(patch.narrow(axis, last, count).flip(axis))
    return parts


def _mirrored(indices: np.ndarray, size: int) -> np.ndarray:
    """Fold indices back into 0 .. size-1 about the first and last voxel: -1 becomes 1, size becomes size-2."""
    if size == 1:
        return np.zeros_like(indices)
    period = 2 * (size - 1)
    folded = np.abs(indices) % period
    return np.minimum(folded, period - folded)
