"""Weight maps that make a network learn the borders between touching objects (Ronneberger et al. 2015, equation 2)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple
from scipy import ndimage

from medunet.errors import ConfigError, DataError

NEGLIGIBLE_SHARE = 1e-7
"""A border term below this share of w0 is taken as 0: about the spacing of float32 numbers near 1."""


def border_weight_map(
    labels: np.ndarray,
    *,
    w0: float = 10.0,
    sigma: float = 5.0,
    class_weights: str | Sequence[float] | None = "balanced",
    instances: str = "labels",
    foreground: int | Sequence[int] | None = None,
    connectivity: int = 1,
    spacing: Sequence[float] | None = None,
    background_only: bool = True,
    ignore_index: int | None = None,
) -> np.ndarray:
    """Weight of each pixel in the loss: equation 2 of Ronneberger et al. 2015, U-Net, section 3.

    ``w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2))`` with `d1` and `d2` the distances from `x` to the
    nearest pixel of the nearest and of the second nearest object (0 inside of an object). With fewer than two objects
    there is no border term. Distances are exact; terms below `NEGLIGIBLE_SHARE` of `w0` are left out.

    The paper writes the formula for all pixels and says what it is for: "to force the network to learn the small
    separation borders that we introduce between touching cells". Its figure shows high weights in the gaps only, so
    the term is given to the background by default. Objects that touch without any background between them get
    none: introduce the borders first, by `separate_touching`.

    Args:
        labels: integers, `(*spatial)`, 2D or 3D.
        w0: height of the border term.
        sigma: its width, in pixels, or in the unit of `spacing`.
        class_weights: `w_c`. ``balanced`` weighs each class by ``pixels / (classes * pixels of the class)``, over the
            classes of this image, which has a mean of 1; numbers give one weight a class; None gives 1. Where an image
            may hold next to nothing of a class, give numbers for the whole data set.
        instances: ``labels``: each positive value is an object, and the classes are background and object.
            ``components``: values are classes, and objects are the connected components of each foreground class.
        foreground: for ``components``, the class or classes whose components are objects; None for all but 0.
        connectivity: for ``components``, 1 joins pixels that share a face, 2 also an edge (in 2D a corner), 3 also a
            corner. 1 keeps cells apart that a diagonal one-pixel membrane separates.
        spacing: distance of pixels, one number an axis; None for 1.
        background_only: leave the border term out inside objects; otherwise objects have it too, with ``d1 = 0``.
        ignore_index: value of pixels that get weight 0 and belong to no class and no object.

    Returns:
        float32, the shape of `labels`.

    Raises:
        ConfigError: an option that cannot work.
        DataError: labels that are no integers >= 0.

    Example:
        >>> row = np.array([[1, 0, 2]])  # the gap: d1 = d2 = 1
        >>> border_weight_map(row, w0=10, sigma=1, class_weights=None)[0, 1] == np.float32(1 + 10 * np.exp(-2))
        np.True_
    """
    labels = _integral(labels)
    _check_options(w0, sigma, instances, spacing, dims=labels.ndim)
    ignored = None if ignore_index is None else labels == ignore_index
    if ignored is not None:
        labels = np.where(ignored, 0, labels)
    if labels.min(initial=0) < 0:
        raise DataError("label holds negative values", received=int(labels.min()), expected=">= 0")
    if instances == "components":
        classes, objects = labels, connected_objects(labels, foreground=foreground, connectivity=connectivity)
    else:
        classes, objects = (labels > 0).astype(np.uint8), _numbered(labels)

    weights = _class_weight_map(classes, class_weights, ignored)
    reach = sigma * math.sqrt(-2 * math.log(NEGLIGIBLE_SHARE))
    nearest, second = two_nearest_objects(objects, reach=reach, spacing=spacing)
    wanted = np.isfinite(second)
    if background_only:
        wanted &= objects == 0
    weights[wanted] += w0 * np.exp(-((nearest[wanted] + second[wanted]) ** 2) / (2 * sigma**2))
    if ignored is not None:
        weights[ignored] = 0
    return weights


def two_nearest_objects(
    objects: np.ndarray, *, reach: float, spacing: Sequence[float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the nearest and to the second nearest object, where both are within reach.

    Each object is measured only in its bounding box widened by the reach: pixels farther away cannot matter.

    Args:
        objects: object numbers 1 .. N, 0 outside, `(*spatial)`.
        reach: distances above it may be given as infinite.
        spacing: distance of pixels, one number an axis; None for 1.

    Returns:
        Two float32 arrays of the shape of `objects`, infinite where there is no such object within reach.

    Example:
        >>> [d.tolist() for d in two_nearest_objects(np.array([[1, 0, 0, 2]]), reach=9)]
        [[[0.0, 1.0, 1.0, 0.0]], [[3.0, 2.0, 2.0, 3.0]]]
    """
    nearest = np.full(objects.shape, np.inf, dtype=np.float32)
    second = np.full(objects.shape, np.inf, dtype=np.float32)
    steps = (1.0,) * objects.ndim if spacing is None else tuple(spacing)
    widen = [math.ceil(reach / step) for step in steps]
    for number, box in enumerate(ndimage.find_objects(objects), start=1):
        if box is None:
            continue
        wide = tuple(slice(max(0, s.start - w), s.stop + w) for s, w in zip(box, widen, strict=True))
        distance = ndimage.distance_transform_edt(objects[wide] != number, sampling=steps).astype(np.float32)
        np.minimum(second[wide], np.maximum(nearest[wide], distance), out=second[wide])
        np.minimum(nearest[wide], distance, out=nearest[wide])
    return nearest, second


def connected_objects(
    classes: np.ndarray, *, foreground: int | Sequence[int] | None = None, connectivity: int = 1
) -> np.ndarray:
    """Number the connected components of each foreground class 1 .. N; components of two classes are two objects.

    Args:
        classes: class indices, `(*spatial)`.
        foreground: the classes whose components are objects; None for all but 0.
        connectivity: see `border_weight_map`.

    Raises:
        ConfigError: impossible connectivity.
    """
    if not 1 <= connectivity <= classes.ndim:
        raise ConfigError("impossible connectivity", received=connectivity, expected=f"1 .. {classes.ndim}")
    structure = ndimage.generate_binary_structure(classes.ndim, connectivity)
    wanted = [int(c) for c in np.unique(classes) if c != 0] if foreground is None else ensure_tuple(foreground)
    objects = np.zeros(classes.shape, dtype=np.int32)
    count = 0
    for index in wanted:
        numbers, found = ndimage.label(classes == index, structure=structure)
        objects += np.where(numbers > 0, numbers + count, 0).astype(np.int32)
        count += found
    return objects


def separate_touching(instances: np.ndarray, *, ignore_index: int | None = None) -> np.ndarray:
    """Introduce a border of one background pixel where two instances share a face.

    Of two touching instances the one with the higher number gives up its pixel; `ignore_index` is no instance.

    Example:
        >>> separate_touching(np.array([[1, 1, 2, 2, 0, 3]])).tolist()
        [[1, 1, 0, 2, 0, 3]]
    """
    carved = np.zeros(instances.shape, dtype=bool)
    for axis in range(instances.ndim):
        # Views of all pixels but the last and all but the first: neighbours along the axis.
        length = instances.shape[axis]
        here, there = (np.take(instances, np.arange(i, length - 1 + i), axis=axis) for i in (0, 1))
        touching = (here != there) & (here > 0) & (there > 0)
        if ignore_index is not None:
            touching &= (here != ignore_index) & (there != ignore_index)
        before, after = (tuple([slice(None)] * axis + [s]) for s in (slice(None, -1), slice(1, None)))
        carved[before] |= touching & (here > there)
        carved[after] |= touching & (there > here)
    return np.where(carved, 0, instances)


class BorderWeightMapd(MapTransform):
    """Add the weight map of `border_weight_map` to an item, for `medunet.losses.BorderWeightedCELoss`.

    Compute it before random crops (it needs whole objects, and can then be cached), and deform it together with
    image and label. The result is float32 `(1, *spatial)`, a MetaTensor where the label is one.

    Args:
        keys: keys of labels, `(1, *spatial)`: class indices for ``instances="components"``, else instance numbers.
        output_key: key of the weight map, one for each of `keys`.
        class_key: for instance numbers, also write class indices (0 background, 1 object) under this key; it
            may be the label's own.
        separate: for instance numbers, first introduce a background border of one pixel between touching instances,
            as the paper did; `class_key` then holds these borders.
        allow_missing_keys: skip keys that an item lacks.
        w0: see `border_weight_map`, as for the options that follow.
        sigma: width of the border term.
        class_weights: ``balanced``, one number a class, or None.
        instances: ``labels`` or ``components``.
        foreground: classes whose components are objects.
        connectivity: of the components.
        spacing: distance of pixels, one number an axis.
        background_only: leave the border term out inside objects.
        ignore_index: value of pixels without weight.

    Raises:
        ConfigError: an option that cannot work.
        DataError: a label that is not `(1, *spatial)` integers.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        output_key: KeysCollection = "weight",
        *,
        w0: float = 10.0,
        sigma: float = 5.0,
        class_weights: str | Sequence[float] | None = "balanced",
        instances: str = "labels",
        foreground: int | Sequence[int] | None = None,
        connectivity: int = 1,
        spacing: Sequence[float] | None = None,
        background_only: bool = True,
        ignore_index: int | None = None,
        class_key: Hashable | None = None,
        separate: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_keys = ensure_tuple(output_key)
        if len(self.output_keys) != len(self.keys):
            raise ConfigError(
                "one output_key a key is needed", received=list(self.output_keys), expected=list(self.keys)
            )
        if instances == "components" and (separate or class_key is not None):
            raise ConfigError("separate and class_key are for instance numbers", remedy='set instances="labels"')
        _check_options(w0, sigma, instances, spacing, dims=None)
        self.class_key = class_key
        self.separate = separate
        self.options: dict[str, Any] = {
            "w0": w0,
            "sigma": sigma,
            "class_weights": class_weights,
            "instances": instances,
            "foreground": foreground,
            "connectivity": connectivity,
            "spacing": spacing,
            "background_only": background_only,
            "ignore_index": ignore_index,
        }

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its weight map."""
        item = dict(data)
        for key, output_key in self.key_iterator(item, self.output_keys):
            label = item[key]
            file = label.meta.get("filename_or_obj") if isinstance(label, MetaTensor) else None
            array = torch.as_tensor(label).as_subclass(torch.Tensor).cpu().numpy()
            if len(array) != 1:
                raise DataError("label has several channels", file=file, received=array.shape, expected="(1, *spatial)")
            try:
                weights, classes = self._maps(array[0])
            except DataError as error:
                raise error.at(file) from error
            item[output_key] = _like(label, weights)
            if self.class_key is not None:
                item[self.class_key] = _like(label, classes)
        return item

    def _maps(self, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights and, of instances, class indices."""
        values, ignore_index = _integral(label), self.options["ignore_index"]
        if self.separate:
            values = separate_touching(values, ignore_index=ignore_index)
        classes = values > 0
        if ignore_index is not None:
            classes = np.where(values == ignore_index, ignore_index, classes)
        return border_weight_map(values, **self.options), classes.astype(np.uint8)


def _integral(labels: np.ndarray) -> np.ndarray:
    if np.issubdtype(labels.dtype, np.integer):
        return labels
    integral = labels.astype(np.int64)
    if not np.array_equal(integral, labels):
        raise DataError("label holds fractions", received=float(labels[integral != labels][0]), expected="integers")
    return integral


def _numbered(instances: np.ndarray) -> np.ndarray:
    """Instance numbers without gaps, 1 .. N, so that a lone number 60000 is not 60000 objects."""
    values, numbers = np.unique(instances, return_inverse=True)
    return (numbers.reshape(instances.shape) + (0 if values[0] == 0 else 1)).astype(np.int32)


def _class_weight_map(
    classes: np.ndarray, class_weights: str | Sequence[float] | None, ignored: np.ndarray | None
) -> np.ndarray:
    if class_weights is None:
        return np.ones(classes.shape, dtype=np.float32)
    if not isinstance(class_weights, str):
        table = np.asarray(class_weights, dtype=np.float32)
        if classes.max() >= len(table):
            raise ConfigError(
                "too few class_weights", received=len(table), expected=f"{int(classes.max()) + 1}, one a class"
            )
        return table[classes]
    if class_weights != "balanced":
        raise ConfigError("unknown class_weights", received=class_weights, expected='"balanced", numbers or None')
    counts = np.bincount(classes.ravel() if ignored is None else classes[~ignored])
    present = np.count_nonzero(counts)
    balanced = counts.sum() / (max(present, 1) * np.maximum(counts, 1))
    return balanced.astype(np.float32)[classes] if present else np.zeros(classes.shape, dtype=np.float32)


def _check_options(
    w0: float, sigma: float, instances: str, spacing: Sequence[float] | None, *, dims: int | None
) -> None:
    if w0 < 0 or sigma <= 0:
        raise ConfigError("impossible border term", received=f"w0 {w0}, sigma {sigma}", expected="w0 >= 0, sigma > 0")
    if instances not in ("labels", "components"):
        raise ConfigError("unknown instances", received=instances, expected=["labels", "components"])
    if spacing is not None and (min(spacing) <= 0 or (dims is not None and len(spacing) != dims)):
        raise ConfigError("impossible spacing", received=list(spacing), expected="one positive number an axis")


def _like(label: torch.Tensor | np.ndarray, values: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(values[None])
    if isinstance(label, MetaTensor):
        return MetaTensor(tensor.to(label.device)).copy_meta_from(label)
    return tensor.to(label.device) if isinstance(label, torch.Tensor) else tensor
