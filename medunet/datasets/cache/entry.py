"""One preprocessed case on disk: a safetensors file, which is written atomically and read by memory map."""

import enum
import json
import logging
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from medunet.errors import ConfigError
from medunet.files import write_atomically

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
CONTENT = "entry"  # key of the header with everything but arrays, as JSON

# Bytes at both ends of each array that are compared with a checksum when an entry is opened: all of a small array, and
# of a large one the parts that a crash or a full disk leaves out.
CHECKED_BYTES = 1 << 20

STORABLE = "?bBhHiIlLqQefd"  # NumPy's codes of the types that safetensors files have
MAX_META_NUMBERS = 1024  # longest array in a MetaTensor's meta that is stored
_ARRAY = "__array__"  # marks a value that is an array of the file

Indices = Mapping[str, Sequence[np.ndarray]]


@dataclass(frozen=True)
class Entry:
    """A preprocessed case. Only the parts of its arrays that are used are read."""

    path: Path
    content: Mapping[str, Any]  # see `write`

    def load(self, *, track_meta: bool = True) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
        """Return the item, and flat indices of voxels by label key, one array per class.

        Every call maps the file anew, copy on write: in-place changes reach neither the file nor the next item.
        """
        with safe_open(self.path, framework="pt") as file:
            item = _decoded(self.content["item"], file.get_tensor, track_meta=track_meta)
            indices = {}
            for key, counts in self.content["indices"].items():
                joined = file.get_tensor(f"indices/{key}").numpy()
                indices[key] = np.split(joined, np.cumsum(counts)[:-1]) if counts else []
        return item, indices

    @staticmethod
    def open(path: Path, *, check_arrays: bool = True) -> "Entry | None":
        """Return the entry in a file, or None if the file is missing or damaged."""
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                content = json.loads(file.metadata()[CONTENT])
                for name, checksum in content["checksums"].items() if check_arrays else ():
                    if _checksum(file.get_tensor(name).numpy()) != checksum:
                        raise ValueError(f"array {name} has changed")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged: %s", path, error)
            return None
        return Entry(path, content)

    @staticmethod
    def write(path: Path, item: Mapping[str, Any], indices: Indices, *, source: Any) -> "Entry":
        """Store an item of arrays, tensors and values that JSON can represent; `source` describes its files."""
        arrays: dict[str, np.ndarray] = {}
        content: dict[str, Any] = {"item": _encoded(dict(item), arrays, "item"), "source": source}
        content["indices"] = {key: [len(one) for one in classes] for key, classes in indices.items()}
        for key, classes in indices.items():
            joined = np.concatenate([*classes, np.empty(0, dtype=np.int64)])
            arrays[f"indices/{key}"] = joined.astype(np.int32) if joined.max(initial=0) < 2**31 else joined
        content["checksums"] = {name: _checksum(array) for name, array in arrays.items()}
        write_atomically(path, serialise(arrays, metadata={CONTENT: json.dumps(content)}))
        return Entry(path, content)


def _checksum(array: np.ndarray) -> int:
    flat = array.reshape(-1).view(np.uint8).data
    return zlib.crc32(flat[-CHECKED_BYTES:], zlib.crc32(flat[:CHECKED_BYTES]))


def _encoded(value: Any, arrays: dict[str, np.ndarray], key: str) -> Any:
    """Return a value for JSON, and move its arrays to `arrays`."""
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, enum.Enum):
        return _encoded(value.value, arrays, key)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray) or (isinstance(value, torch.Tensor) and value.dtype != torch.bfloat16):
        array = value if isinstance(value, np.ndarray) else value.as_subclass(torch.Tensor).detach().cpu().numpy()
        if array.dtype.char in STORABLE:
            name = str(len(arrays))
            arrays[name] = np.ascontiguousarray(array).reshape(array.shape)
            if isinstance(value, MetaTensor):
                return {_ARRAY: name, "kind": "meta", "meta": _encoded_meta(value.meta, arrays)}
            return {_ARRAY: name, "kind": "numpy" if isinstance(value, np.ndarray) else "torch"}
    if isinstance(value, list | tuple):
        return [_encoded(inner, arrays, key) for inner in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {str(name): _encoded(inner, arrays, name) for name, inner in value.items()}
    raise ConfigError(
        "a preprocessed value cannot be stored on disk",
        received=f"{key}: {getattr(value, 'dtype', type(value).__name__)}",
        expected="an array, a number, a text, or lists and mappings of them",
        remedy="remove it with DeleteItemsd, or use monai's CacheDataset",
    )


def _encoded_meta(meta: Mapping[Any, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the part of the meta data that can be stored; the rest only serves to invert transforms."""
    encoded = {}
    for key, value in meta.items():
        name = str(key.value if isinstance(key, enum.Enum) else key)
        if isinstance(value, np.ndarray | torch.Tensor) and np.prod(value.shape) > MAX_META_NUMBERS:
            continue
        try:
            encoded[name] = _encoded(value, arrays, name)
        except ConfigError:
            logger.debug("meta %s of type %s is not stored", name, type(value).__name__)
    return encoded


def _decoded(value: Any, get: Callable[[str], torch.Tensor], *, track_meta: bool) -> Any:
    if isinstance(value, list):
        return [_decoded(inner, get, track_meta=track_meta) for inner in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY not in value:
        return {name: _decoded(inner, get, track_meta=track_meta) for name, inner in value.items()}
    tensor = get(value[_ARRAY])
    if value["kind"] == "numpy":
        return tensor.numpy()
    if value["kind"] == "torch" or not track_meta:
        return tensor
    return MetaTensor(tensor, meta=_decoded(value["meta"], get, track_meta=True))
