"""Label values of files to class indices and back."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from medunet.errors import ConfigError, DataError

from .regions import paint_regions
from .tensors import TensorTransform, like, plain

IGNORE_INDEX = 255
"""Class index of voxels that no loss and no metric counts; the largest of uint8."""

MAX_VALUE_SPAN = 1 << 24  # between two label values: a lookup table of this many int32 takes 64 MiB
SHOWN_VALUES = 8  # wrong values that an error names, so that it stays one line


class EncodeLabelsd(TensorTransform):
    """Map the label values of a file to class indices 0 .. K-1, and reject every other value.

    The result is uint8 (int32 from 256 classes on) of the same shape. Float labels are accepted if they are integral.

    Args:
        keys: keys of the labels, each `(1, *spatial)`.
        values: the file's values in the order of the classes, or a mapping of names to values such as
            ``SegmentationDataset.labels``.
        ignore_value: a further value that becomes `IGNORE_INDEX`.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ConfigError: the values repeat, or there are too many for an ignore index.
        DataError: an item has another value.

    Example:
        >>> EncodeLabelsd("label", [0, 255])({"label": torch.tensor([[0.0, 255.0]])})["label"]
        tensor([[0, 1]], dtype=torch.uint8)
    """

    _remedy = "correct the file, or list the value among the labels"

    def __init__(
        self,
        keys: KeysCollection,
        values: Sequence[int] | Mapping[str, int],
        *,
        ignore_value: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.values = _class_values(values, ignore_value)
        indices = {value: index for index, value in enumerate(self.values)}
        if ignore_value is not None:
            indices[ignore_value] = IGNORE_INDEX
        self._table = _LookupTable(self._mapping(indices))

    @staticmethod
    def _mapping(indices: dict[int, int]) -> dict[int, int]:
        return indices

    def _changed(self, values: torch.Tensor, source: Any) -> torch.Tensor:
        return self._table.apply(values, remedy=self._remedy)


class DecodeLabelsd(EncodeLabelsd):
    """Map class indices 0 .. K-1 back to the label values of the data set: the inverse of `EncodeLabelsd`.

    The result has the smallest of uint8, int16 and int32 that contains all values (types that NIfTI and PNG have).

    Args:
        keys: keys of index maps, each `(1, *spatial)`.
        values: the values in the order of the classes, or a mapping of names to values.
        ignore_value: the value that `IGNORE_INDEX` becomes.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ConfigError: the values repeat, or there are too many for an ignore index.
        DataError: an index has no value.

    Example:
        >>> DecodeLabelsd("pred", [0, 255])({"pred": torch.tensor([[0, 1]])})["pred"]
        tensor([[  0, 255]], dtype=torch.uint8)
    """

    _remedy = "decode with the values that the network was trained on"

    @staticmethod
    def _mapping(indices: dict[int, int]) -> dict[int, int]:
        return {index: value for value, index in indices.items()}


class BlankIgnoredd(MapTransform):
    """Set voxels whose label is `IGNORE_INDEX` to class 0 in all keys, so that metrics do not count them.

    Args:
        keys: keys of index maps, each `(1, *spatial)`; among them the label itself.
        label_key: key of the label.

    Example:
        >>> item = {"pred": torch.tensor([[1, 1]]), "label": torch.tensor([[1, 255]])}
        >>> BlankIgnoredd(["pred", "label"])(item)
        {'pred': tensor([[1, 0]]), 'label': tensor([[1, 0]])}
    """

    def __init__(self, keys: KeysCollection, *, label_key: str = "label") -> None:
        super().__init__(keys)
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with blanked voxels."""
        item = dict(data)
        ignored = plain(item[self.label_key]) == IGNORE_INDEX
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
        order: for regions the class index that each channel is painted with, see :func:`paint_regions`; empty for
            classes that exclude each other.
        prob_key: key of the probabilities, which are neither changed nor copied; None drops them.
        threshold: probability of a single channel, or of a region.
        allow_missing_keys: skip keys that an item lacks.

    Example:
        >>> item = DecideLabelsd("pred")({"pred": torch.tensor([[0.4, 0.1], [0.6, 0.9]])})
        >>> item["pred"].tolist(), item["prob"].shape
        ([[1, 1]], torch.Size([2, 2]))
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        order: Sequence[int] = (),
        prob_key: str | None = "prob",
        threshold: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
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

    def apply(self, tensor: torch.Tensor, *, remedy: str) -> torch.Tensor:
        integral = tensor.long()
        position = integral.clamp(self.low - 1, self.high + 1).sub_(self.low - 1)
        valid = torch.take(self.known.to(tensor.device), position)
        if tensor.is_floating_point():
            valid &= tensor == integral
        if not valid.all():
            raise DataError(
                "label has unknown values",
                received=_listed(torch.unique(tensor[~valid]).tolist()),
                expected=_listed(self.expected),
                remedy=remedy,
            )
        return torch.take(self.table.to(tensor.device), position)


def _class_values(values: Sequence[int] | Mapping[str, int], ignore_value: int | None) -> tuple[int, ...]:
    listed = tuple(values.values() if isinstance(values, Mapping) else values)
    classes = tuple(int(value) for value in listed)
    if not classes or len(set(classes)) != len(classes) or classes != listed:
        raise ConfigError("label values must be different integers", received=list(listed))
    if ignore_value is not None and ignore_value in classes:
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
    shown = ", ".join(f"{value:g}" for value in values[:SHOWN_VALUES])
    return f"[{shown}, ...]" if len(values) > SHOWN_VALUES else f"[{shown}]"
