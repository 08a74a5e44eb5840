"""Label values of files to class indices and back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medunet.errors import ConfigError, DataError

from .regions import paint_regions

IGNORE_INDEX = 255
"""Class index of voxels that no loss and no metric shall count; the largest that uint8 holds."""

MAX_VALUE_SPAN = 1 << 24
"""Largest distance between two label values; a lookup table of this many int32 takes 64 MiB."""

SHOWN_VALUES = 8
"""So many wrong values are named in an error; the message stays one line."""


class EncodeLabelsd(MapTransform):
    """Map the label values of a file to class indices 0 .. K-1, and refuse every other value.

    The result is uint8 (int32 from 256 classes on), shape unchanged; a MetaTensor stays one. Float labels are
    accepted where they are integral.

    Args:
        keys: keys of the labels, each `(1, *spatial)`.
        values: the file's values in the order of the classes, or a mapping name -> value such as
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
        indices = dict(zip(self.values, range(len(self.values)), strict=True))
        if ignore_value is not None:
            indices[ignore_value] = IGNORE_INDEX
        self._table = _LookupTable(indices)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with encoded labels."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._table.apply(item[key], remedy="correct the file, or list the value among the labels")
        return item


class DecodeLabelsd(MapTransform):
    """Map class indices 0 .. K-1 back to the label values of the data set: the inverse of `EncodeLabelsd`.

    The result has the smallest of uint8, int16 and int32 that holds all values (types that NIfTI and PNG know).

    Args:
        keys: keys of index maps, each `(1, *spatial)`.
        values: as for `EncodeLabelsd`.
        ignore_value: the value that `IGNORE_INDEX` becomes.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ConfigError: as `EncodeLabelsd`.
        DataError: an index has no value.

    Example:
        >>> DecodeLabelsd("pred", [0, 255])({"pred": torch.tensor([[0, 1]])})["pred"]
        tensor([[  0, 255]], dtype=torch.uint8)
    """

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
        table = dict(enumerate(self.values))
        if ignore_value is not None:
            table[IGNORE_INDEX] = ignore_value
        self._table = _LookupTable(table)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with decoded labels."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._table.apply(item[key], remedy="decode with the values the network was trained on")
        return item


class BlankIgnoredd(MapTransform):
    """Set voxels whose label is `IGNORE_INDEX` to class 0 in all keys, so that metrics neither reward nor punish them.

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
        """Return the item with blanks."""
        item = dict(data)
        label = torch.as_tensor(item[self.label_key])
        ignored = (label == IGNORE_INDEX).as_subclass(torch.Tensor)
        for key in self.key_iterator(item):
            item[key] = item[key].masked_fill(ignored.to(item[key].device), 0)
        return item


class _LookupTable:
    """A map between integers, applied to tensors of any integral content."""

    # values 2, 5:   position   0        1  2  3  4       5
    #                input     <=1       2  3  4  5      >=6
    #                output  unknown     0  unknown  1  unknown

    def __init__(self, mapping: Mapping[int, int]) -> None:
        self.expected = sorted(mapping)
        self.low, self.high = self.expected[0], self.expected[-1]
        if self.high - self.low > MAX_VALUE_SPAN:
            raise ConfigError(
                "label values lie too far apart", received=self.expected, expected=f"span <= {MAX_VALUE_SPAN}"
            )
        self.dtype = _smallest_dtype(mapping.values())
        self.table = torch.zeros(self.high - self.low + 3, dtype=self.dtype)
        self.known = torch.zeros(len(self.table), dtype=torch.bool)
        for source, target in mapping.items():
            self.table[source - self.low + 1] = target
            self.known[source - self.low + 1] = True

    def apply(self, labels: torch.Tensor | np.ndarray, *, remedy: str) -> torch.Tensor:
        tensor = labels.as_tensor() if isinstance(labels, MetaTensor) else torch.as_tensor(labels)
        integral = tensor.long()
        position = integral.clamp(self.low - 1, self.high + 1).sub_(self.low - 1)
        valid = torch.take(self.known.to(tensor.device), position)
        if tensor.is_floating_point():
            valid &= tensor == integral
        if not valid.all():
            wrong = torch.unique(tensor[~valid]).tolist()
            raise DataError(
                "label has unknown values",
                file=labels.meta.get("filename_or_obj") if isinstance(labels, MetaTensor) else None,
                received=_listed(wrong),
                expected=_listed(self.expected),
                remedy=remedy,
            )
        mapped = torch.take(self.table.to(tensor.device), position)
        return MetaTensor(mapped).copy_meta_from(labels) if isinstance(labels, MetaTensor) else mapped


def _class_values(values: Sequence[int] | Mapping[str, int], ignore_value: int | None) -> tuple[int, ...]:
    listed = tuple(values.values() if isinstance(values, Mapping) else values)
    classes = tuple(int(value) for value in listed)
    if not classes or len(set(classes)) != len(classes) or classes != listed:
        raise ConfigError("label values must be different integers", received=list(listed))
    if ignore_value is not None and ignore_value in classes:
        raise ConfigError(
            "ignore_value is also a class", received=ignore_value, expected=f"a value not in {list(classes)}"
        )
    if ignore_value is not None and len(classes) > IGNORE_INDEX:
        raise ConfigError(
            "too many classes beside an ignore index", received=len(classes), expected=f"<= {IGNORE_INDEX}"
        )
    return classes


def _smallest_dtype(values: Any) -> torch.dtype:
    low, high = min(values), max(values)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
            return dtype
    raise ConfigError("label value is too large", received=[low, high], expected="32-bit integers")


def _listed(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:SHOWN_VALUES])
    return f"[{shown}, ...]" if len(values) > SHOWN_VALUES else f"[{shown}]"


class DecideLabelsd(MapTransform):
    """Class indices from probabilities, which move to a key of their own; a slab at a time, so that they may be mapped.

    Of logits, too: with ``threshold=0`` where one channel or regions are decided.

    Args:
        keys: probabilities `(classes, *spatial)`; afterwards labels `(1, *spatial)`, uint8. The class of equal
            probabilities is the lowest. One channel alone is class 1 where it exceeds `threshold`.
        order: for regions the class index that each channel is painted with, see :func:`paint_regions`; none for
            classes of which a voxel has one.
        prob_key: where the probabilities go, untouched and not copied; None drops them.
        threshold: probability of a single channel, or of a region.
        allow_missing_keys: as in MONAI.

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
        """Decide every voxel of the item's probabilities."""
        item = dict(data)
        for key in self.key_iterator(item):
            if self.prob_key is not None:
                item[self.prob_key] = item[key]
            probabilities = torch.as_tensor(item[key])
            if isinstance(probabilities, MetaTensor):
                probabilities = probabilities.as_tensor()
            labels = torch.empty((1, *probabilities.shape[1:]), dtype=torch.uint8, device=probabilities.device)
            for row in range(probabilities.shape[1]):
                labels[0, row] = self._decided(probabilities[:, row])
            item[key] = MetaTensor(labels).copy_meta_from(item[key]) if isinstance(item[key], MetaTensor) else labels
        return item

    def _decided(self, slab: torch.Tensor) -> torch.Tensor:
        if self.order:
            return paint_regions(slab, self.order, threshold=self.threshold)
        return slab.argmax(dim=0) if len(slab) > 1 else slab[0] > self.threshold
