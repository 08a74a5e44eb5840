"""Weight maps that make a network learn the borders between touching objects (Ronneberger et al. 2015, equation 2)."""

import inspect
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple
from scipy import ndimage
from skimage import measure
from skimage.segmentation import relabel_sequential

from medunet.errors import ConfigError, DataError

from .tensors import like, plain, source_file

NEGLIGIBLE_SHARE = 1e-7  # a border term below this share of w0 is 0: about the spacing of float32 numbers near 1


def border_weight_map(
    labels: np.ndarray,
    *,
    w0: float = 10.0,
    sigma: float = 5.0,
    class_weights: str | Sequence[float] | None = "balanced",
    instances: str = "labels",
    foreground: int | Sequence[int] | None = None,
    connectivity: int = 1,
    ignore_index: int | None = None,
) -> np.ndarray:
    """Return the weight of each pixel in the loss: equation 2 of Ronneberger et al. 2015, U-Net, section 3.

    ``w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2))`` with `d1` and `d2` the distances from `x` to the
    nearest pixel of the nearest and of the second nearest object (0 inside an object). With fewer than two objects
    there is no border term. Distances are exact; terms below `NEGLIGIBLE_SHARE` of `w0` are left out.

    The paper writes the formula for all pixels, but its figure shows high weights in the gaps only, so only the
    background has the term. Objects that touch without background between them have none.

    Args:
        labels: integers `(*spatial)`, 2D or 3D: class indices for ``instances="components"``, else instance numbers.
        w0: height of the border term.
        sigma: width of the border term, in pixels.
        class_weights: weights of classes, to which the border term is added. ``balanced`` weighs each class of this
            image by ``pixels / (classes * pixels of the class)``, which has a mean of 1; numbers are weights per class;
            None is 1. If images may have almost no pixel of a class, give numbers for the whole data set.
        instances: ``labels`` if each positive value is an object, and the classes are background and object;
            ``components`` if values are classes, and objects the connected components of each foreground class.
        foreground: for ``components``, the class or classes whose components are objects; None for all but 0.
        connectivity: for ``components``, 1 joins pixels that share a face, 2 also an edge (in 2D a corner), 3 also a
            corner. 1 separates cells at a diagonal membrane of one pixel.
        ignore_index: value of pixels that get weight 0 and belong to no class and no object.

    Returns:
        float32, the shape of `labels`.

    Raises:
        ConfigError: an invalid option.
        DataError: labels that are not integers >= 0.

    Examples:
        >>> row = np.array([[1, 0, 2]])  # the gap: d1 = d2 = 1
        >>> border_weight_map(row, w0=10, sigma=1, class_weights=None)[0, 1] == np.float32(1 + 10 * np.exp(-2))
        np.True_
    """
    labels = _integral(labels)
    if w0 < 0 or sigma <= 0:
        raise ConfigError("border term needs w0 >= 0 and sigma > 0", received=f"{w0=}, {sigma=}")
    if instances not in ("labels", "components"):
        raise ConfigError('instances must be "labels" or "components"', received=instances)
    if not 1 <= connectivity <= labels.ndim:
        raise ConfigError(f"connectivity must be in 1 .. {labels.ndim}", received=connectivity)
    ignored = None if ignore_index is None else labels == ignore_index
    if ignored is not None:
        labels = np.where(ignored, 0, labels)
    if labels.min(initial=0) < 0:
        raise DataError("labels must be >= 0", received=int(labels.min()))
    if instances == "components":
        classes = labels
        objects = labels if foreground is None else np.where(np.isin(labels, ensure_tuple(foreground)), labels, 0)
        objects = measure.label(objects, background=0, connectivity=connectivity)
    else:
        classes = (labels > 0).astype(np.uint8)
        objects = relabel_sequential(labels)[0]  # 1 .. N, so that a single number 60000 is not 60000 objects

    weights = _class_weight_map(classes, class_weights, ignored)
    weights += np.where(objects == 0, border_term(objects, w0=w0, sigma=sigma), 0)
    if ignored is not None:
        weights[ignored] = 0
    return weights


def border_term(objects: np.ndarray, *, w0: float, sigma: float) -> npt.NDArray[np.float32]:
    """Return ``w0 exp(-(d1 + d2)^2 / (2 sigma^2))`` of each pixel; inside the objects 1 .. N, d1 is 0."""
    reach = sigma * math.sqrt(-2 * math.log(NEGLIGIBLE_SHARE))
    nearest, second = _two_nearest_objects(objects, reach=reach)
    return np.asarray(w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2)), dtype=np.float32)


def _two_nearest_objects(objects: np.ndarray, *, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 distances to the nearest and second nearest of objects 1 .. N; above `reach` they may be infinite.

    Each object is measured only in its bounding box widened by the reach: pixels farther away cannot matter.
    """
    nearest, second = (np.full(objects.shape, np.inf, dtype=np.float32) for _ in range(2))
    widen = math.ceil(reach)
    for number, box in enumerate(ndimage.find_objects(objects), start=1):
        wide = tuple(slice(max(0, side.start - widen), side.stop + widen) for side in box)
        distance = ndimage.distance_transform_edt(objects[wide] != number).astype(np.float32)
        np.minimum(second[wide], np.maximum(nearest[wide], distance), out=second[wide])
        np.minimum(nearest[wide], distance, out=nearest[wide])
    return nearest, second


def _class_weight_map(
    classes: np.ndarray, class_weights: str | Sequence[float] | None, ignored: np.ndarray | None
) -> np.ndarray:
    if class_weights is None:
        return np.ones(classes.shape, dtype=np.float32)
    if not isinstance(class_weights, str):
        table, needed = np.asarray(class_weights, dtype=np.float32), int(classes.max()) + 1
        if len(table) < needed:
            raise ConfigError("class_weights must have one number per class", received=len(table), expected=needed)
        return table[classes]
    if class_weights != "balanced":
        raise ConfigError('class_weights must be "balanced", numbers or None', received=class_weights)
    counts = np.bincount(classes.ravel() if ignored is None else classes[~ignored])
    present = np.count_nonzero(counts)
    balanced = counts.sum() / (max(present, 1) * np.maximum(counts, 1))
    return balanced.astype(np.float32)[classes] if present else np.zeros(classes.shape, dtype=np.float32)


class BorderWeightMapd(MapTransform):
    """Add the weight map of `border_weight_map` to an item, for `medunet.losses.BorderWeightedCELoss`.

    Compute it before random crops (it needs whole objects, and can then be cached), and deform it together with
    image and label. The result is float32 `(1, *spatial)`, with the metadata of the label.

    Args:
        keys: key of the label, `(1, *spatial)`: class indices for ``instances="components"``, else instance numbers.
        output_key: key of the weight map.
        **options: those of `border_weight_map`.

    Raises:
        ConfigError: an invalid option, when the first label is read.
        DataError: a label that is not `(1, *spatial)` integers.
    """

    def __init__(self, keys: KeysCollection = "label", output_key: Hashable = "weight", **options: Any) -> None:
        super().__init__(keys)
        if len(self.keys) > 1:
            raise ConfigError("keys must be one label", received=keys)
        inspect.signature(border_weight_map).bind(None, **options)  # an unknown option is a TypeError
        self.output_key = output_key
        self.options = options

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its weight map."""
        item = dict(data)
        for key in self.key_iterator(item):
            label = plain(item[key])
            try:
                if len(label) != 1:
                    raise DataError("label must be (1, *spatial)", received=tuple(label.shape))
                weights = border_weight_map(label[0].cpu().numpy(), **self.options)
            except DataError as error:
                raise error.at(source_file(item[key])) from error
            item[self.output_key] = like(torch.from_numpy(weights[None]).to(label.device), item[key])
        return item


def _integral(labels: np.ndarray) -> np.ndarray:
    if np.issubdtype(labels.dtype, np.integer):
        return labels
    integral = labels.astype(np.int64)
    if not np.array_equal(integral, labels):
        raise DataError("labels must be integers", received=float(labels[integral != labels][0]))
    return integral
