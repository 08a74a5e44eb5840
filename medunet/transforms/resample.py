"""Resampling to a spacing as nnU-Net does: cubic splines, and slices of thick-sliced images by themselves."""

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep
from scipy.ndimage import zoom

from medunet.errors import ConfigError

from .tensors import plain

THICK = 3.0  # slices are thick if their distance exceeds this multiple of the smallest spacing


def thick_axis(*spacings: Sequence[float]) -> int | None:
    """Return the axis that is resampled by itself: the thickest of the first spacing that has thick slices.

    Examples:
        >>> thick_axis([0.8, 0.8, 5.0]), thick_axis([1, 1, 2], [5, 1, 1]), thick_axis([5, 5, 1], [1, 1, 9])
        (2, 0, None)
    """
    for spacing in spacings:
        largest = max(spacing)
        if largest / min(spacing) > THICK:
            thickest = [axis for axis, length in enumerate(spacing) if np.isclose(length, largest, rtol=1e-5)]
            return thickest[0] if len(thickest) == 1 else None
    return None


class SplineSpacingd(MapTransform):
    """Resample images to a spacing with cubic splines, as nnU-Net's `resample_data_or_seg_to_shape`.

    The first and last voxels keep their outer faces in place. Results stay within the range of the image. If the old or
    the new spacing has thick slices (`thick_axis`), slices are resampled in their plane, and the nearest one is taken.

    Args:
        keys: keys of images `(C, *spatial)` with an affine; results are float32.
        spacing: mm per axis; None keeps that of the image.
        mode: per key; with `nearest`, labels take the nearest voxel. Any other mode means cubic splines.

    Raises:
        ConfigError: a spacing that is not positive, or an image with a different number of axes.

    Examples:
        >>> image = MetaTensor(torch.rand(1, 20, 10, 9), affine=torch.diag(torch.tensor([1.0, 2, 2, 1])))
        >>> resampled = SplineSpacingd("image", [2, None, 1])({"image": image})["image"]
        >>> resampled.shape, resampled.pixdim.tolist()
        (torch.Size([1, 10, 10, 18]), [2.0, 2.0, 1.0])
    """

    def __init__(
        self, keys: KeysCollection, spacing: Sequence[float | None], mode: str | Sequence[str] = "bilinear"
    ) -> None:
        super().__init__(keys)
        if any(length is not None and length <= 0 for length in spacing):
            raise ConfigError("spacing must be positive", received=list(spacing))
        self.spacing = tuple(spacing)
        self.mode = ensure_tuple_rep(mode, len(self.keys))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with resampled images."""
        item = dict(data)
        for key, mode in self.key_iterator(item, self.mode):
            item[key] = self._resampled(item[key], labels=mode == "nearest")
        return item

    def _resampled(self, image: MetaTensor, *, labels: bool) -> MetaTensor:
        size, axes = image.shape[1:], range(len(self.spacing))
        if len(size) != len(axes):
            raise ConfigError("spacing must have one number per axis", received=self.spacing, expected=len(size))
        affine = image.affine.to(torch.float64)
        old = [float(affine[:3, axis].norm()) for axis in axes]
        new = [own if given is None else given for given, own in zip(self.spacing, old, strict=True)]
        target = [max(1, round(was / length * n)) for was, length, n in zip(old, new, size, strict=True)]
        values = plain(image)
        if target != list(size):
            thick = thick_axis(old, new)
            nearest = axes if labels else [] if thick is None else [thick]
            values = _resize(values if labels else values.float(), target, nearest)
        step = torch.eye(len(affine), dtype=torch.float64)
        for axis, (before, after) in enumerate(zip(size, target, strict=True)):
            step[axis, axis] = before / after
            step[axis, -1] = (before / after - 1) / 2
        result = MetaTensor(values.contiguous()).copy_meta_from(image)
        result.affine = affine @ step
        return result


def _resize(values: torch.Tensor, size: Sequence[int], nearest: Sequence[int]) -> torch.Tensor:
    """Resize `(C, *spatial)`: splines along all axes first, then the nearest voxels along those of `nearest`."""
    splines = [axis for axis in range(len(size)) if axis not in nearest and size[axis] != values.shape[axis + 1]]
    if splines:
        planes = [1 + axis for axis in range(len(size)) if axis not in nearest]
        low, high = values.amin(planes, keepdim=True), values.amax(planes, keepdim=True)
        for axis in sorted(splines, key=lambda axis: size[axis] / values.shape[axis + 1]):  # fewest voxels first
            matrix = torch.from_numpy(_spline_matrix(values.shape[axis + 1], size[axis])).to(values.device)
            values = torch.matmul(values.movedim(axis + 1, -1), matrix.T).movedim(-1, axis + 1)
        values = torch.minimum(torch.maximum(values, low), high)
    for axis in nearest:
        before, after = values.shape[axis + 1], size[axis]
        index = np.floor((np.arange(after) + 0.5) * (before / after)).astype(np.int64).clip(0, before - 1)
        values = values.index_select(axis + 1, torch.from_numpy(index).to(values.device))
    return values


@lru_cache(maxsize=32)
def _spline_matrix(before: int, after: int) -> np.ndarray[Any, Any]:
    """Return the `(after, before)` matrix of SciPy's cubic zoom along one axis: splines are separable and linear."""
    matrix = zoom(np.eye(before), (after / before, 1), order=3, mode="nearest", grid_mode=True)
    return np.asarray(matrix, dtype=np.float32)
