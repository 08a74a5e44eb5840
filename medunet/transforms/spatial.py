"""Random deformation, rotation, scaling, flips and cropping of a patch in one resampling."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import ensure_tuple_rep
from scipy.spatial.transform import Rotation

from medunet.errors import ConfigError, DataError

from .deformation import Deformation, check_modes, resample
from .labels import IGNORE_INDEX, check_pairs, swap_labels
from .tensors import like, plain, source_file


class RandDeformd(RandomizableTransform, MapTransform):
    """Cut a random patch, smoothly deformed, rotated, scaled and flipped, out of each item with one resampling per key.

    All keys share the same random map. Displacement vectors are drawn from a Gaussian at a coarse grid of control
    points and interpolated by bicubic (in 3D tricubic) splines, as in Ronneberger et al. 2015, section 3.1 (3x3
    points, 10 pixels). MONAI's `Rand3DElasticd` smooths a dense random field instead, which takes many times longer.

    From the patch to the volume, the map applies flips, scaling, rotation, displacement and the position of the crop.
    A volume smaller than the patch is centred in it. Crops, flips and quarter turns alone copy voxels exactly.
    Items may have tensors, MetaTensors or (memory-mapped) arrays, `(C, *spatial)`, on any device. Metadata are kept;
    **the affine is left as it was and does not describe the patch**. There is no inverse.

    Args:
        keys: keys to deform, all of the same spatial shape.
        spatial_size: size of the patch; None for the size of the input.
        prob: probability of deforming; otherwise the patch is only cropped (or padded).
        rotate_range: radians, angles are uniform in ``[-r, r]``: one number, or in 3D one per axis to turn about.
        rotate_prob: probability of rotating.
        scale_range: smallest and largest magnification, log-uniform, the same for all axes; above 1 objects grow.
        axis_scale_range: range of a further factor that is drawn for each axis separately.
        scale_prob: probability of scaling.
        flip_axes: spatial axes to mirror.
        flip_prob: probability of mirroring each of `flip_axes`.
        swap_labels: pairs of class indices that differ in left and right. They are swapped in `label` if a patch is
            mirrored along the first axis, in RAS from left to right: a mirrored left lung looks like a right one.
        elastic_prob: probability of the elastic displacement.
        control_points: control points along each axis, one number or one per axis, each >= 2. They span the patch.
        elastic_sigma: standard deviation in voxels of each component at the control points, one number or one per axis.
        voxel_spacing: spacing per axis in any unit, for rotations of anisotropic volumes; None for isotropic voxels.
        mode: ``bilinear``, ``nearest``, ``bicubic`` (2D) or ``onehot`` (labels interpolated one by one), one or one per
            key. None: ``nearest`` for integers, ``bilinear`` for floating types.
        padding_mode: values outside the volume: ``reflection``, ``border`` or ``zeros``, one or one per key.
        crop_center: ``random`` for a crop anywhere inside the volume, ``center`` for its middle.
        foreground_key: key of a label; the patch is centred on one of its foreground voxels (label above 0 and not
            `IGNORE_INDEX`), as far as it stays inside the volume, with probability `foreground_prob`. The item may have
            the flat indices of these voxels as ``f"{foreground_key}_indices"``: one array, or a list of arrays (one per
            class, as of MONAI's `ClassesToIndicesd`), of which a non-empty one is drawn first. If the label has voxels
            without annotation (`IGNORE_INDEX`), all other random patches are centred on an annotated voxel, including
            background; the item may list these voxels as ``f"{foreground_key}_annotated_indices"``.
        foreground_prob: probability of centring the patch on foreground.

    Raises:
        ConfigError: an invalid option.
        DataError: keys of one item with different spatial shapes.

    Examples:
        >>> crop = RandDeformd(["image", "label"], spatial_size=[2, 2], crop_center="center")
        >>> label = torch.arange(16).reshape(1, 4, 4)
        >>> crop({"image": label.float(), "label": label})["label"]
        tensor([[[ 5,  6],
                 [ 9, 10]]])
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        spatial_size: Sequence[int] | None = None,
        prob: float = 1.0,
        rotate_range: float | Sequence[float] = 0.0,
        rotate_prob: float = 1.0,
        scale_range: Sequence[float] = (1.0, 1.0),
        axis_scale_range: Sequence[float] = (1.0, 1.0),
        scale_prob: float = 1.0,
        flip_axes: Sequence[int] = (),
        flip_prob: float = 0.5,
        swap_labels: Sequence[Sequence[int]] = (),
        elastic_prob: float = 1.0,
        control_points: int | Sequence[int] = 3,
        elastic_sigma: float | Sequence[float] = 0.0,
        voxel_spacing: Sequence[float] | None = None,
        mode: str | Sequence[str | None] | None = None,
        padding_mode: str | Sequence[str] = "reflection",
        crop_center: str = "random",
        foreground_key: Hashable | None = None,
        foreground_prob: float = 0.0,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.spatial_size = None if spatial_size is None else tuple(int(n) for n in spatial_size)
        self.rotate_range = rotate_range
        self.rotate_prob = rotate_prob
        self.scale_range = _positive_range("scale_range", scale_range)
        self.axis_scale_range = _positive_range("axis_scale_range", axis_scale_range)
        self.scale_prob = scale_prob
        self.flip_axes = tuple(flip_axes)
        self.flip_prob = flip_prob
        self.swap_pairs = check_pairs(swap_labels)
        self.elastic_prob = elastic_prob
        self.control_points = control_points
        self.elastic_sigma = elastic_sigma
        self.voxel_spacing = voxel_spacing
        self.mode = dict(zip(self.keys, ensure_tuple_rep(mode, len(self.keys)), strict=True))
        self.padding_mode = dict(zip(self.keys, ensure_tuple_rep(padding_mode, len(self.keys)), strict=True))
        self.crop_center = crop_center
        self.foreground_key = foreground_key
        self.foreground_prob = foreground_prob
        self._deformation: Deformation
        self._swapped = False
        self._check_options()

    def randomize(self, data: Mapping[Hashable, Any]) -> None:
        """Draw the random map for an item."""
        super().randomize(None)
        self._swapped = False
        volume = next(data[key] for key in self.key_iterator(dict(data)))
        shape = tuple(volume.shape[1:])
        size = shape if self.spatial_size is None else self.spatial_size
        if len(size) != len(shape):
            raise ConfigError("spatial_size must have one number per axis", received=list(size), expected=len(shape))
        crop = Deformation.crop(self._draw_start(data, shape, size), size)
        if not self._do_transform:
            self._deformation = crop
            return
        matrix, displacement = self._draw_matrix(len(size)), self._draw_displacement(len(size))
        self._deformation = Deformation(size=size, center=crop.center, matrix=matrix, displacement=displacement)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its patch in place of the volume."""
        item = dict(data)
        self._check_shapes(item)
        self.randomize(item)
        for key in self.key_iterator(item):
            volume = item[key]
            is_float = volume.is_floating_point() if isinstance(volume, torch.Tensor) else volume.dtype.kind == "f"
            mode = self.mode[key] or ("bilinear" if is_float else "nearest")
            patch = resample(volume, self._deformation, mode=mode, padding_mode=self.padding_mode[key])
            if self._swapped and key == "label":
                patch = swap_labels(patch, self.swap_pairs)
            item[key] = like(patch, volume)
        return item

    def _draw_start(
        self, data: Mapping[Hashable, Any], shape: tuple[int, ...], size: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Return the first voxel of the crop; negative along axes where the volume is smaller than the patch."""
        room = [n - p for n, p in zip(shape, size, strict=True)]
        target = self._draw_target(data, shape)
        if target is not None:
            return tuple(
                r // 2 if r < 0 else min(max(t - p // 2, 0), r) for t, r, p in zip(target, room, size, strict=True)
            )
        is_random = self.crop_center == "random"
        return tuple(int(self.R.randint(r + 1)) if is_random and r >= 0 else r // 2 for r in room)

    def _draw_target(self, data: Mapping[Hashable, Any], shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return a foreground voxel or an annotated one to centre the patch on; None for any place."""
        if self.foreground_key is None:
            return None
        target, listed = None, data.get(f"{self.foreground_key}_indices")
        if self.R.rand() < self.foreground_prob:
            if listed is not None:
                target = self._draw_listed(listed, shape)
            else:
                label = plain(data[self.foreground_key])[0]
                target = self._draw_voxel((label > 0) & (label != IGNORE_INDEX))
        if target is None and self.crop_center == "random":
            annotated = data.get(f"{self.foreground_key}_annotated_indices")
            if annotated is not None:
                return self._draw_listed(annotated, shape)
            if listed is None:  # a list of the foreground alone means that all voxels are annotated
                mask = plain(data[self.foreground_key])[0] != IGNORE_INDEX
                return None if bool(mask.all()) else self._draw_voxel(mask)
        return target

    def _draw_listed(self, indices: Any, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        if isinstance(indices, list | tuple):
            filled = [one for one in indices if len(one)]
            indices = filled[self.R.randint(len(filled))] if filled else ()
        if not len(indices):
            return None
        flat = int(indices[self.R.randint(len(indices))])
        return tuple(int(i) for i in np.unravel_index(flat, shape))

    def _draw_voxel(self, mask: torch.Tensor) -> tuple[int, ...] | None:
        # first a plane and then a voxel in it, so that only one plane's indices are listed
        planes = mask.flatten(1).sum(dim=1).cpu().numpy().cumsum()
        if planes[-1] == 0:
            return None
        rank = self.R.randint(planes[-1])
        plane = int(np.searchsorted(planes, rank, side="right"))
        within = mask[plane].nonzero()
        voxel = within[rank - (int(planes[plane - 1]) if plane else 0)]
        return (plane, *(int(i) for i in voxel))

    def _draw_matrix(self, dims: int) -> np.ndarray:
        """Return the map of offsets in the patch to offsets in the volume: rotation after scaling after flips."""
        flipped = [axis for axis in self.flip_axes if self.R.rand() < self.flip_prob]
        self._swapped = 0 in flipped
        matrix = np.diag([-1.0 if axis in flipped else 1.0 for axis in range(dims)])
        if self.R.rand() < self.scale_prob:
            magnification = self._log_uniform(self.scale_range)
            factors = magnification * np.array([self._log_uniform(self.axis_scale_range) for _ in range(dims)])
            matrix = matrix / factors[:, None]
        if self.R.rand() < self.rotate_prob:
            matrix = self._draw_rotation(dims) @ matrix
        return matrix

    def _draw_rotation(self, dims: int) -> np.ndarray:
        limits = ensure_tuple_rep(self.rotate_range, 1 if dims == 2 else 3)
        rotation = rotation_matrix([self.R.uniform(-limit, limit) for limit in limits])
        if self.voxel_spacing is None:
            return rotation
        spacing = np.asarray(ensure_tuple_rep(self.voxel_spacing, dims), dtype=np.float64)
        return rotation * spacing[None, :] / spacing[:, None]

    def _draw_displacement(self, dims: int) -> np.ndarray | None:
        is_elastic = self.R.rand() < self.elastic_prob
        sigma = np.asarray(ensure_tuple_rep(self.elastic_sigma, dims), dtype=np.float64)
        if not is_elastic or not sigma.any():
            return None
        points = ensure_tuple_rep(self.control_points, dims)
        return self.R.standard_normal((*points, dims)) * sigma

    def _log_uniform(self, limits: tuple[float, float]) -> float:
        return math.exp(self.R.uniform(math.log(limits[0]), math.log(limits[1])))

    def _check_shapes(self, item: Mapping[Hashable, Any]) -> None:
        shapes = {str(key): tuple(item[key].shape[1:]) for key in self.key_iterator(dict(item))}
        file = next(filter(None, (source_file(item.get(key)) for key in self.keys)), None)
        if len(set(shapes.values())) > 1:
            raise DataError("images of one case differ in shape", file=file, received=shapes)
        if any(len(shape) not in (2, 3) for shape in shapes.values()):
            raise DataError("image must be 2D or 3D", file=file, received=shapes)

    def _check_options(self) -> None:
        check_modes(filter(None, self.mode.values()), self.padding_mode.values())
        has_key = self.foreground_key is not None or self.foreground_prob <= 0
        for is_valid, rule, value in (
            (self.crop_center in ("random", "center"), "crop_center must be random or center", self.crop_center),
            (np.min(self.control_points) >= 2, "control_points must be >= 2", self.control_points),
            (np.min(self.elastic_sigma) >= 0, "elastic_sigma must be >= 0", self.elastic_sigma),
            (min(self.spatial_size or (1,)) >= 1, "spatial_size must be positive", self.spatial_size),
            (has_key, "foreground_prob needs foreground_key", self.foreground_prob),
        ):
            if not is_valid:
                raise ConfigError(rule, received=value)


def rotation_matrix(angles: Sequence[float]) -> np.ndarray:
    """Return the rotation by one angle in 2D, or about axis 0, then 1, then 2 in 3D; angles in radians.

    Examples:
        >>> rotation_matrix([math.pi / 2]).round().tolist()
        [[0.0, -1.0], [1.0, 0.0]]
    """
    if len(angles) == 1:
        return np.asarray(Rotation.from_euler("z", angles[0]).as_matrix()[:2, :2])
    return np.asarray(Rotation.from_euler("xyz", angles).as_matrix())


def _positive_range(name: str, limits: Sequence[float]) -> tuple[float, float]:
    if len(limits) != 2 or not 0 < limits[0] <= limits[1]:
        raise ConfigError(f"{name} must be two positive numbers, smallest first", received=list(limits))
    return float(limits[0]), float(limits[1])
