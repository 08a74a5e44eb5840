"""Objects as training targets, and objects from what a network predicts: three ways to separate touching objects."""

from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy import ndimage

from medunet.errors import ConfigError, DataError

from .border_weights import border_term, border_weight_map
from .cells import separate_cells
from .tensors import like, plain

InstanceTarget = Literal["gap", "border", "distance"]
"""What a network learns: classes with a gap between touching objects, with their border as a further class, or with the
distance to the border."""

TARGETS: tuple[InstanceTarget, ...] = get_args(InstanceTarget)
REACH = 5.0  # pixels; distances to an object's border are cut off here, because only the border separates
MAX_SCALING = 4.0  # of the smoothing for an image with other objects; beyond it, the objects were not separated at all


class Objects(NamedTuple):
    """Objects of an image."""

    numbers: npt.NDArray[np.int32]  # number of the object of each voxel from 1 without gaps, 0 for the background
    classes: npt.NDArray[np.int32]  # class index by object number; 0 for the background
    foreground: npt.NDArray[np.float32]  # probability that a voxel is in an object


def instance_target(
    numbers: npt.NDArray[Any],
    target: InstanceTarget,
    *,
    classes: npt.NDArray[Any] | None = None,
    n_classes: int = 1,
    reach: float = REACH,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    """Return what a network learns from object numbers.

    Args:
        numbers: number of the object of each voxel, `(*spatial)`, 2D or 3D; 0 is the background.
        target: `gap` makes one voxel between touching objects background, in the larger of the two, as in Ronneberger
            2015. `border` makes the outermost voxels of touching objects a class of their own, after the other classes.
            `distance` adds the distance to the border of the object.
        classes: class index of each voxel; None if all objects have class 1.
        n_classes: number of classes of objects; for `border`, the border is the class after them.
        reach: distance in voxels that counts as 1; greater distances are 1, too.

    Returns:
        Class indices, and a map: for `gap` the object numbers without the gap; for `border` these numbers without the
        border; for `distance` the distances in [0, 1], float32.
    """
    index = np.asarray(numbers > 0 if classes is None else np.where(numbers > 0, classes, 0)).astype(np.uint8)
    consecutive = _consecutive(numbers)
    if target == "distance":
        return index, _distances(consecutive, reach)
    touching = _touching(consecutive, both=target == "border")
    is_tiny = (
        np.bincount(consecutive[~touching], minlength=consecutive.max(initial=0) + 1) == 0
    )  # objects of a voxel or two
    touching &= ~is_tiny[consecutive]
    index[touching] = 0 if target == "gap" else n_classes + 1
    return index, np.where(touching, 0, numbers)


def _consecutive(numbers: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the numbers from 1 without gaps; `np.unique` sorts all voxels, which takes 40 times as long."""
    is_present = np.bincount(numbers.ravel(), minlength=1) > 0
    is_present[0] = False
    return np.asarray(np.cumsum(is_present)[numbers])


def _touching(numbers: npt.NDArray[Any], *, both: bool) -> npt.NDArray[np.bool_]:
    """Return the voxels of objects that share a face with another object: of both, or of the larger one only."""
    found = np.zeros(numbers.shape, dtype=bool)
    sizes = np.bincount(numbers.ravel())[numbers]
    for axis in range(numbers.ndim):
        here, there, here_size, there_size = (
            np.moveaxis(values, axis, 0)[part] for values in (numbers, sizes) for part in (slice(1, None), slice(-1))
        )
        pair = (here != there) & (here > 0) & (there > 0)
        moved = np.moveaxis(found, axis, 0)
        moved[1:] |= pair & (both | (here_size > there_size))
        moved[:-1] |= pair & (both | (here_size <= there_size))
    return found


def _distances(numbers: npt.NDArray[Any], reach: float) -> npt.NDArray[np.float32]:
    """Return the distance of each voxel to the border of its object as a share of `reach`.

    Beyond the edge of the array an object continues: in a patch it is cut there, and ends elsewhere.
    """
    distances = np.zeros(numbers.shape, dtype=np.float32)
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        wide = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
        mask = numbers[wide] == number
        # the border is between voxels, half a voxel from the centre of the last
        inside = ndimage.distance_transform_edt(mask) - 0.5 if not mask.all() else np.full(mask.shape, reach)
        distances[wide][mask] = np.clip(inside[mask] / reach, 0, 1)
    return distances


class InstanceTargetsd(MapTransform):
    """Replace object numbers by what a network learns; the last step before the network, after all deformations.

    The item gets class indices, uint8, under the key of the label. For the loss, `gap` and `distance` add a weight map
    under `weight`, and `distance` the distances to borders under `distance`, each float32 and `(1, *spatial)`. For
    `distance`, the weight counts inside objects, too: 1 plus the paper's term, so that the dips between objects count.

    Args:
        keys: key of the object numbers, `(1, *spatial)`, or of the numbers and the class indices, `(2, *spatial)`.
        target: one of `TARGETS`, as `instance_target` describes them; None for class indices without separation, and
            the object numbers under `numbers`.
        w0: height of the weight between objects, as in `BorderWeightMapd`.
        sigma: width of this weight in voxels.
        reach: for `distance`, the distance in voxels that counts as 1.
        n_classes: number of classes of objects; for `border`, the border is the class after them.

    Raises:
        ConfigError: unknown target.
        DataError: a label with more than two channels.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        target: InstanceTarget | None = "distance",
        *,
        w0: float = 10.0,
        sigma: float = 5.0,
        reach: float = REACH,
        n_classes: int = 1,
    ) -> None:
        super().__init__(keys)
        self.target = None if target is None else _checked(target)
        self.options: dict[str, Any] = {"n_classes": n_classes, "reach": reach}
        self.weights: dict[str, Any] = {"w0": w0, "sigma": sigma}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with targets."""
        item = dict(data)
        for key in self.key_iterator(item):
            label = plain(item[key])
            if len(label) > 2:
                raise DataError("label must have object numbers, and perhaps classes", received=tuple(label.shape))
            if self.target is None:
                item["numbers"] = like(label[:1].to(torch.int32), item[key])
                item[key] = like(((label[:1] > 0) * (label[1:] if len(label) > 1 else 1)).to(torch.uint8), item[key])
                continue
            numbers, *classes = label.cpu().numpy().astype(np.int64)
            index, extra = instance_target(numbers, self.target, classes=next(iter(classes), None), **self.options)
            if self.target == "gap":
                item["weight"] = like(torch.from_numpy(border_weight_map(extra, **self.weights)[None]), item[key])
            elif self.target == "distance":
                term = 1 + border_term(_consecutive(numbers), **self.weights)
                item["weight"] = like(torch.from_numpy(term[None]), item[key])
                item["distance"] = like(torch.from_numpy(extra[None]), item[key])
            item[key] = like(torch.from_numpy(index[None]), item[key])
        return item


def objects_from_maps(
    maps: npt.ArrayLike,
    target: InstanceTarget,
    *,
    threshold: float = 0.5,
    boundary: float = 0.3,
    smoothing: float = 1.5,
    diameter: float | None = None,
    min_size: int = 0,
    min_confidence: float = 0.0,
    fill_holes: bool = True,
) -> Objects:
    """Return the objects that a network predicts. Call it on the maps of a whole image, so that none is cut.

    Args:
        maps: values in [0, 1], `(channels, *spatial)`, 2D or 3D. `gap`: probabilities of the background and of each
            class; `border`: the same with the border last; `distance`: of each class, and the distance to the border.
        target: one of `TARGETS`, as `instance_target` describes them.
        threshold: probability above which a voxel is in an object.
        boundary: height at which a border separates two objects, see `separate_cells`.
        smoothing: standard deviation in voxels by which the map is smoothed before it is cut; more for large objects.
        diameter: diameter in voxels of objects that `smoothing` is for. An image with larger or smaller objects is cut
            twice, the second time with more or less smoothing in proportion. None: the same smoothing for all images.
        min_size: smallest number of voxels of an object.
        min_confidence: smallest mean probability of an object.
        fill_holes: whether holes in an object become part of it.

    Raises:
        ConfigError: unknown target, or another option out of range.
        DataError: `maps` has too few channels, or values out of [0, 1].

    Examples:
        >>> foreground = np.array([[0.9, 0.9, 0.2, 0.9]])
        >>> objects_from_maps(np.stack([1 - foreground, foreground]), "gap").numbers
        array([[1, 1, 1, 2]], dtype=int32)
    """
    if not 0 <= threshold < 1:
        raise ConfigError("threshold must be in [0, 1)", received=threshold)
    values = np.asarray(maps, dtype=np.float32)
    if len(values) < 2 + (_checked(target) == "border"):
        raise DataError(f"too few channels for the target '{target}'", received=len(values))
    low, high = values.min(initial=0), values.max(initial=1)
    if not (low >= 0 and high <= 1):  # also NaN
        raise DataError("maps must be in [0, 1]", received=f"{low:g} to {high:g}")
    if target == "distance":
        per_class, interior = values[:-1], values[-1]
        foreground = per_class.max(axis=0)
    else:
        per_class = values[1:] if target == "gap" else values[1:-1]
        foreground = 1 - values[0]
        interior = np.minimum(per_class.sum(axis=0), 1)
    mask = foreground > threshold
    numbers = separate_cells(interior, mask=mask, boundary=boundary, smoothing=smoothing)
    if diameter is not None and numbers.any():
        smoothing *= float(np.clip(_typical_diameter(numbers) / diameter, 1 / MAX_SCALING, MAX_SCALING))
        numbers = separate_cells(interior, mask=mask, boundary=boundary, smoothing=smoothing)
    if target == "gap":
        _close_gaps(numbers)
    if fill_holes:
        _fill_holes(numbers)
    sizes = np.bincount(numbers.ravel())
    sums = np.bincount(numbers.ravel(), foreground.ravel())
    keep = (sizes >= max(min_size, 1)) & (sums >= min_confidence * sizes)
    keep[0] = False
    numbers = np.where(keep, np.cumsum(keep), 0).astype(np.int32)[numbers]
    return Objects(numbers, _classes(numbers, per_class), foreground)


def diameter_of(voxels: npt.ArrayLike, dims: int) -> Any:
    """Return the diameter in voxels of a disc or ball of so many voxels."""
    return 2 * np.sqrt(np.divide(voxels, np.pi)) if dims < 3 else 2 * np.cbrt(np.multiply(voxels, 0.75 / np.pi))


def _typical_diameter(numbers: npt.NDArray[np.int32]) -> float:
    """Return the diameter above which objects have half of all voxels, so that specks do not count."""
    sizes = np.sort(np.bincount(numbers.ravel())[1:])
    shares = np.cumsum(sizes)
    return float(diameter_of(sizes[np.searchsorted(shares, shares[-1] / 2)], numbers.ndim))


def _close_gaps(numbers: npt.NDArray[np.int32]) -> None:
    """Give voxels between two objects to the larger one in place, which the target took them from."""
    sizes = np.bincount(numbers.ravel())
    old = numbers.copy()
    for axis in range(numbers.ndim):
        before, here, after = (np.moveaxis(old, axis, 0)[part] for part in (slice(-2), slice(1, -1), slice(2, None)))
        result = np.moveaxis(numbers, axis, 0)[1:-1]
        gap = (here == 0) & (before != after) & (before > 0) & (after > 0)
        result[gap] = np.where(sizes[before[gap]] >= sizes[after[gap]], before[gap], after[gap])


def _fill_holes(numbers: npt.NDArray[np.int32]) -> None:
    """Number the holes in place that touch one object only, and not the edge of the image."""
    padded = np.pad(numbers, 1)
    flat = padded.reshape(-1)
    holes, count = ndimage.label(padded == 0)  # 1 is the outside
    voxels = np.flatnonzero(holes.reshape(-1) > 1)
    of_hole = holes.reshape(-1)[voxels]
    low, high = np.full(count + 1, np.iinfo(np.int32).max), np.zeros(count + 1, dtype=np.int32)
    for stride in padded.strides:
        for step in (stride // padded.itemsize, -stride // padded.itemsize):
            near = flat[voxels + step]
            np.maximum.at(high, of_hole, near)
            np.minimum.at(low, of_hole[near > 0], near[near > 0])
    flat[voxels] = np.where(low == high, high, 0)[of_hole]
    numbers[...] = padded[(slice(1, -1),) * padded.ndim]


def _classes(numbers: npt.NDArray[np.int32], per_class: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Return the class with the highest sum of probabilities for each object; 0 for the background."""
    count = int(numbers.max(initial=0)) + 1
    if len(per_class) == 1:
        classes = np.ones(count, dtype=np.int32)
    else:
        sums = [np.bincount(numbers.ravel(), one.ravel(), minlength=count) for one in per_class]
        classes = 1 + np.argmax(sums, axis=0).astype(np.int32)
    classes[0] = 0
    return classes


class ObjectsFromMapsd(MapTransform):
    """Replace a network's maps of a whole image by object numbers, int32 `(1, *spatial)`.

    The item gets the maps under `prob`, the probability of an object under `foreground`, and the class index by object
    number under `object_classes`.

    Args:
        keys: key of the maps, `(channels, *spatial)`.
        target: one of `TARGETS`, as `instance_target` describes them.
        parameters: arguments of `objects_from_maps` by name.
        as_classes: return the class index of each voxel, uint8, and the object numbers under `objects`.

    Raises:
        ConfigError: unknown target.
        DataError: maps that do not fit the target.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        target: InstanceTarget = "distance",
        *,
        parameters: Mapping[str, Any] | None = None,
        as_classes: bool = False,
    ) -> None:
        super().__init__(keys)
        self.target, self.parameters = _checked(target), dict(parameters or {})
        self.as_classes = as_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with objects."""
        item = dict(data)
        for key in self.key_iterator(item):
            maps = item[key]
            found = objects_from_maps(plain(maps).float().cpu().numpy(), self.target, **self.parameters)
            if self.as_classes:
                item["objects"] = like(torch.from_numpy(found.numbers[None]), maps)
                item[key] = like(torch.from_numpy(found.classes[found.numbers][None].astype(np.uint8)), maps)
                continue
            item["prob"] = maps
            item[key] = like(torch.from_numpy(found.numbers[None]), maps)
            item["foreground"] = like(torch.from_numpy(found.foreground[None]), maps)
            item["object_classes"] = found.classes
        return item


def _checked(target: InstanceTarget) -> InstanceTarget:
    if target not in TARGETS:
        raise ConfigError("unknown target of instances", received=target, expected=", ".join(TARGETS))
    return target
