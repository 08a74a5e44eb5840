"""Labels: file values and class indices, voxels without annotation, regions, and sides that a mirror exchanges."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from medunet.errors import ConfigError, DataError

from .tensors import TensorTransform, like, plain

IGNORE_INDEX = 255  # class index of voxels that no loss and no metric counts; the largest of uint8
MAX_VALUE_SPAN = 1 << 24  # between two label values: a lookup table of this many int32 takes 64 MiB
SHOWN_VALUES = 8  # wrong values that an error names, so that it stays one line


class EncodeLabelsd(TensorTransform):
    """Map the label values of a file to class indices 0 .. K-1, and reject every other value.

    The result is uint8 (int32 for 256 classes or more) of the same shape. Integral float labels are accepted.

    Args:
        keys: keys of the labels, each `(1, *spatial)`.
        values: the file's values in the order of the classes, or a mapping of names to values.
        ignore_value: a further value that becomes `IGNORE_INDEX`.

    Raises:
        ConfigError: the values repeat, or there are too many for an ignore index.
        DataError: an item has another value.

    Examples:
        >>> EncodeLabelsd("label", [0, 255])({"label": torch.tensor([[0.0, 255.0]])})["label"]
        tensor([[0, 1]], dtype=torch.uint8)
    """

    _decodes = False

    def __init__(
        self, keys: KeysCollection, values: Sequence[int] | Mapping[str, int], *, ignore_value: int | None = None
    ) -> None:
        super().__init__(keys)
        indices = {value: index for index, value in enumerate(_class_values(values, ignore_value))}
        if ignore_value is not None:
            indices[ignore_value] = IGNORE_INDEX
        self._table = _LookupTable({i: value for value, i in indices.items()} if self._decodes else indices)

    def _changed(self, values: torch.Tensor, source: Any) -> torch.Tensor:
        return self._table.apply(values)


class DecodeLabelsd(EncodeLabelsd):
    """Map class indices 0 .. K-1 back to the label values of the data set: the inverse of `EncodeLabelsd`.

    The result has the smallest of uint8, int16 and int32 that contains all values (types that NIfTI and PNG have).

    Args:
        keys: keys of index maps, each `(1, *spatial)`.
        values: the values in the order of the classes, or a mapping of names to values.
        ignore_value: the value that `IGNORE_INDEX` becomes.

    Raises:
        ConfigError: the values repeat, or there are too many for an ignore index.
        DataError: an index has no value.

    Examples:
        >>> DecodeLabelsd("pred", [0, 255])({"pred": torch.tensor([[0, 1]])})["pred"]
        tensor([[  0, 255]], dtype=torch.uint8)
    """

    _decodes = True


class BlankIgnoredd(MapTransform):
    """Set voxels whose label is `IGNORE_INDEX` to class 0 in all keys, so that metrics do not count them.

    Args:
        keys: keys of index maps, each `(1, *spatial)`; among them `label`.

    Examples:
        >>> item = {"pred": torch.tensor([[1, 1]]), "label": torch.tensor([[1, 255]])}
        >>> BlankIgnoredd(["pred", "label"])(item)
        {'pred': tensor([[1, 0]]), 'label': tensor([[1, 0]])}
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with blanked voxels."""
        item = dict(data)
        ignored = plain(item["label"]) == IGNORE_INDEX
        for key in self.key_iterator(item):
            item[key] = item[key].masked_fill(ignored.to(item[key].device), 0)
        return item


class DecideLabelsd(MapTransform):
    """Replace probabilities by class indices, and move the probabilities to their own key.

    It reads one slab at a time, so that probabilities may be memory-mapped. Logits work too: with ``threshold=0`` for
    one channel or regions.

    Args:
        keys: probabilities `(classes, *spatial)`; afterwards labels `(1, *spatial)`, uint8. The lowest of equally
            probable classes wins. A single channel is class 1 where it exceeds `threshold`.
        order: for regions the class index that each channel is painted with, as in :func:`paint_regions`; empty for
            classes that exclude each other.
        prob_key: key of the probabilities, which are neither changed nor copied; None drops them.
        threshold: probability of a single channel, or of a region.

    Examples:
        >>> item = DecideLabelsd("pred")({"pred": torch.tensor([[0.4, 0.1], [0.6, 0.9]])})
        >>> item["pred"].tolist(), item["prob"].shape
        ([[1, 1]], torch.Size([2, 2]))
    """

    def __init__(
        self, keys: KeysCollection, *, order: Sequence[int] = (), prob_key: str | None = "prob", threshold: float = 0.5
    ) -> None:
        super().__init__(keys)
        self.order = tuple(order)
        self.prob_key = prob_key
        self.threshold = threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with labels."""
        item = dict(data)
        for key in self.key_iterator(item):
            if self.prob_key is not None:
                item[self.prob_key] = item[key]
            probabilities = plain(item[key])
            labels = torch.empty((1, *probabilities.shape[1:]), dtype=torch.uint8, device=probabilities.device)
            for row in range(probabilities.shape[1]):
                labels[0, row] = self._decided(probabilities[:, row])
            item[key] = like(labels, item[key])
        return item

    def _decided(self, slab: torch.Tensor) -> torch.Tensor:
        if self.order:
            return paint_regions(slab, self.order, threshold=self.threshold)
        return slab.argmax(dim=0) if len(slab) > 1 else slab[0] > self.threshold


class RegionMasksd(TensorTransform):
    """Replace maps of class indices by one mask per region (a class that may overlap others).

    Args:
        keys: maps `(1, *spatial)`; afterwards `(regions, *spatial)`, uint8.
        regions: class indices of each region.

    Examples:
        >>> RegionMasksd("label", [[1, 2], [2]])({"label": torch.tensor([[0, 1, 2]])})["label"].tolist()
        [[0, 1, 1], [0, 0, 1]]
    """

    def __init__(self, keys: KeysCollection, regions: Sequence[Sequence[int]]) -> None:
        super().__init__(keys)
        self.regions = tuple(tuple(int(index) for index in region) for region in regions)

    def _changed(self, values: torch.Tensor, source: Any) -> torch.Tensor:
        masks = torch.zeros((len(self.regions), *values.shape[1:]), dtype=torch.uint8, device=values.device)
        for mask, region in zip(masks, self.regions, strict=True):
            for index in region:
                mask.masked_fill_(values[0] == index, 1)
        return masks


def paint_regions(values: torch.Tensor, order: Sequence[int], *, threshold: float = 0.0) -> torch.Tensor:
    """Return one class index per voxel from one channel per region; later regions are painted over earlier ones.

    Args:
        values: `(regions, ...)`, logits or probabilities.
        order: the class index that each region is painted with.
        threshold: a voxel above it belongs to the region.

    Returns:
        `(...)`, uint8; 0 outside all regions.

    Raises:
        ConfigError: a wrong number of channels.

    Examples:
        >>> whole, core = [2.0, 3.0, -1.0], [-2.0, 1.0, -4.0]
        >>> paint_regions(torch.tensor([whole, core]), [1, 2]).tolist()
        [1, 2, 0]
    """
    if len(values) != len(order):
        raise ConfigError("channels do not match the regions", received=len(values), expected=len(order))
    painted = torch.zeros(values.shape[1:], dtype=torch.uint8, device=values.device)
    for channel, index in zip(values, order, strict=True):
        painted.masked_fill_(channel > threshold, index)
    return painted


def check_pairs(pairs: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """Return pairs of class indices that differ in left and right only; a ConfigError unless all indices differ."""
    known = [int(index) for pair in pairs for index in pair]
    if any(len(pair) != 2 for pair in pairs) or len(set(known)) != len(known) or min(known, default=0) < 0:
        raise ConfigError("labels to swap must be pairs", received=[list(pair) for pair in pairs], expected="[[1, 2]]")
    return tuple((int(left), int(right)) for left, right in pairs)


def swap_labels(labels: torch.Tensor, pairs: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return a map in which the class indices of each pair are swapped, as a mirrored image requires.

    Examples:
        >>> swap_labels(torch.tensor([[0, 1, 2, 3]]), [[1, 2]]).tolist()
        [[0, 2, 1, 3]]
    """
    swapped = labels.clone() if pairs else labels
    for left, right in pairs:
        swapped.masked_fill_(labels == left, right).masked_fill_(labels == right, left)
    return swapped


def swapped_channels(pairs: Sequence[Sequence[int]], count: int) -> list[int]:
    """Return the order of channels in which those of each pair are swapped.

    Examples:
        >>> swapped_channels([[1, 3]], 4)
        [0, 3, 2, 1]
    """
    order = list(range(count))
    for left, right in pairs:
        if max(left, right) >= count:
            raise ConfigError("unknown channel to swap", received=[left, right], expected=f"0 to {count - 1}")
        order[left], order[right] = right, left
    return order


class _LookupTable:
    """A map between integers, applied to tensors of any integral content."""

    # values 2, 5:   position   0        1  2  3  4       5
    #                input     <=1       2  3  4  5      >=6
    #                output  unknown     0  unknown  1  unknown

    def __init__(self, mapping: Mapping[int, int]) -> None:
        self.expected = sorted(mapping)
        self.low, self.high = self.expected[0], self.expected[-1]
        if self.high - self.low > MAX_VALUE_SPAN:
            raise ConfigError(f"label values must span at most {MAX_VALUE_SPAN}", received=self.expected)
        self.table = torch.zeros(self.high - self.low + 3, dtype=_smallest_dtype(mapping.values()))
        self.known = torch.zeros(len(self.table), dtype=torch.bool)
        for source, target in mapping.items():
            self.table[source - self.low + 1] = target
            self.known[source - self.low + 1] = True

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        integral = tensor.long()
        position = integral.clamp(self.low - 1, self.high + 1).sub_(self.low - 1)
        valid = torch.take(self.known.to(tensor.device), position)
        if tensor.is_floating_point():
            valid &= tensor == integral
        if not valid.all():
            unknown = _listed(torch.unique(tensor[~valid]).tolist())
            raise DataError("label has unknown values", received=unknown, expected=_listed(self.expected))
        return torch.take(self.table.to(tensor.device), position)


def _class_values(values: Sequence[int] | Mapping[str, int], ignore_value: int | None) -> tuple[int, ...]:
    listed = tuple(values.values() if isinstance(values, Mapping) else values)
    classes = tuple(int(value) for value in listed)
    if not classes or len(set(classes)) != len(classes) or classes != listed:
        raise ConfigError("label values must be distinct integers", received=list(listed))
    if ignore_value in classes:
        raise ConfigError("ignore_value must not be a class", received=ignore_value, expected=f"not in {list(classes)}")
    if ignore_value is not None and len(classes) > IGNORE_INDEX:
        raise ConfigError(f"an ignore index allows at most {IGNORE_INDEX} classes", received=len(classes))
    return classes


def _smallest_dtype(values: Iterable[int]) -> torch.dtype:
    low, high = min(values), max(values)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
            return dtype
    raise ConfigError("label values must be 32-bit integers", received=[low, high])


def _listed(values: Sequence[float]) -> str:
    shown = [f"{value:g}" for value in values[:SHOWN_VALUES]] + ["..."] * (len(values) > SHOWN_VALUES)
    return f"[{', '.join(shown)}]"
