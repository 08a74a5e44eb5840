"""Metadata of images: removed once before a computation, restored once on its result."""

from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medunet.errors import MedunetError


def plain(values: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Return a tensor without metadata that shares its numbers: a `MetaTensor` updates metadata in each operation."""
    return torch.as_tensor(values).as_subclass(torch.Tensor)


def like(values: torch.Tensor, source: object) -> torch.Tensor:
    """Return `values` with the metadata of `source`, if `source` has any."""
    return MetaTensor(values).copy_meta_from(source) if isinstance(source, MetaTensor) else values


def source_file(values: object) -> str | None:
    """Return the file that an image was read from, if its metadata name one."""
    return values.meta.get("filename_or_obj") if isinstance(values, MetaTensor) else None


class TensorTransform(MapTransform):
    """Base of dictionary transforms that change the tensor of each key by itself; errors name the tensor's file."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with changed tensors; metadata are kept."""
        item = dict(data)
        for key in self.key_iterator(item):
            try:
                item[key] = like(self._changed(plain(item[key]), item[key]), item[key])
            except MedunetError as error:
                raise error.at(error.file or source_file(item[key])) from error
        return item

    @abstractmethod
    def _changed(self, values: torch.Tensor, source: Any) -> torch.Tensor:
        """Return the new tensor; `source` is the old one with its metadata."""
