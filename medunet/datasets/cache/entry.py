"""One preprocessed case on disk: a folder of npy files with a manifest, written atomically."""

from __future__ import annotations

import enum
import errno
import json
import logging
import math
import mmap
import os
import secrets
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from medunet.errors import ConfigError, DataError
from medunet.files import sync_folder

logger = logging.getLogger(__name__)

MANIFEST = "entry.json"

# of the beginning and of the end of each file are compared with a checksum when it is opened: all of a small array, and
# of a large one the parts that a crash or a full disk leaves out
CHECKED_BYTES = 1 << 20

MAX_META_NUMBERS = 1024  # longest array in a MetaTensor's meta that is stored


class Entry:
    """A preprocessed case: its arrays are files, of which only the parts in use are read."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @property
    def nbytes(self) -> int:
        """Size of the files of all arrays, bytes."""
        return sum(facts["size"] for facts in self.manifest["arrays"].values())

    def load(self, *, track_meta: bool = True) -> dict[str, Any]:
        """Return the item; its arrays are memory-mapped, nothing of them is read yet. Takes about 0.1 ms.

        Every call maps anew, copy on write: in-place changes reach neither the file nor the next item.

        Raises:
            OSError: a file has vanished.
            ValueError: a file is too short.
        """
        item = dict(_decoded(self.manifest["values"]))
        for key, facts in self.manifest["arrays"].items():
            array = self._map(facts)
            if facts["kind"] == "numpy":
                item[key] = array
                continue
            tensor = torch.from_numpy(array)
            tracked = track_meta and facts["kind"] == "meta"
            item[key] = MetaTensor(tensor, meta=_decoded(facts["meta"])) if tracked else tensor
        return item

    def load_indices(self) -> dict[str, list[np.ndarray]]:
        """Return flat indices of foreground voxels by label key, one array per class that may be drawn."""
        indices = {}
        for key, facts in self.manifest["indices"].items():
            bounds = np.cumsum(facts["counts"])[:-1]
            indices[key] = np.split(self._map(facts), bounds) if facts["counts"] else []
        return indices

    def _map(self, facts: Mapping[str, Any]) -> np.ndarray:
        shape = tuple(facts["shape"])
        if 0 in shape:
            return np.empty(shape, dtype=facts["dtype"])
        with (self.folder / facts["file"]).open("rb") as file:  # np.memmap takes five times as long
            mapped = mmap.mmap(file.fileno(), facts["size"], access=mmap.ACCESS_COPY)
        array = np.frombuffer(mapped, dtype=facts["dtype"], offset=facts["offset"], count=math.prod(shape))
        return array.reshape(shape)

    @staticmethod
    def open(folder: Path) -> Entry | None:
        """Return the entry in a folder, or None if there is none or a damaged one."""
        if not folder.exists():
            return None
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            for facts in (*manifest["arrays"].values(), *manifest["indices"].values()):
                if _size_and_checksum(folder / facts["file"]) != (facts["size"], facts["checksum"]):
                    raise ValueError(f"{facts['file']} has changed")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s is damaged (%s) and is prepared again", folder, error)
            return None
        return Entry(folder, manifest)

    @staticmethod
    def write(
        folder: Path, item: Mapping[str, Any], indices: Mapping[str, list[np.ndarray]], *, source: Any = None
    ) -> Entry:
        """Store an item of arrays, tensors and values that JSON can represent; a damaged entry is replaced.

        Args:
            folder: the entry's folder.
            item: the item.
            indices: what `load_indices` returns.
            source: what the item was made from, see :func:`medunet.datasets.cache.identity.describe_source`.
        """
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        try:
            temporary.mkdir(parents=True)
            manifest = _write_files(temporary, item, indices) | {"source": source}
            with (temporary / MANIFEST).open("w", encoding="utf-8") as file:
                json.dump(manifest, file)
                file.flush()
                os.fsync(file.fileno())
            remove(folder)
            temporary.rename(folder)
            sync_folder(folder.parent)
        except OSError as error:
            raise _cannot_write(folder, error, item) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return Entry(folder, manifest)


def remove_remains(folder: Path) -> None:
    """Remove what killed writers of this entry have left; nobody may be writing it."""
    for remains in folder.parent.glob(f".{folder.name}.*"):
        remove(remains)


def remove(path: Path) -> None:
    """Remove an entry or a file, if it exists; renamed first, so that no reader sees half an entry."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        old = path if path.name.startswith(".") else path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        shutil.rmtree(path.rename(old), ignore_errors=True)


def _write_files(folder: Path, item: Mapping[str, Any], indices: Mapping[str, list[np.ndarray]]) -> dict[str, Any]:
    manifest: dict[str, Any] = {"arrays": {}, "values": {}, "indices": {}}
    for key, value in item.items():
        if not isinstance(key, str):
            raise ConfigError("item has a key that is not text", received=repr(key))
        if isinstance(value, np.ndarray | torch.Tensor):
            facts = _write_array(folder / f"{len(manifest['arrays'])}.npy", value)
            if isinstance(value, MetaTensor):
                facts |= {"kind": "meta", "meta": _encoded_meta(value.meta)}
            manifest["arrays"][key] = facts
        else:
            manifest["values"][key] = _encoded(value, key)
    for key, classes in indices.items():
        joined = np.concatenate([*classes, np.empty(0, dtype=np.int64)])
        joined = joined.astype(np.int32) if joined.max(initial=0) < 2**31 else joined
        facts = _write_array(folder / f"{len(manifest['arrays']) + len(manifest['indices'])}.npy", joined)
        manifest["indices"][key] = facts | {"counts": [len(one) for one in classes]}
    return manifest


def _write_array(path: Path, value: np.ndarray | torch.Tensor) -> dict[str, Any]:
    kind = "torch" if isinstance(value, torch.Tensor) else "numpy"
    if isinstance(value, torch.Tensor):
        if value.dtype == torch.bfloat16:
            raise ConfigError("bfloat16 cannot be stored", remedy="cast to float32 or float16")
        value = value.as_subclass(torch.Tensor).detach().cpu().numpy()
    if value.dtype.hasobject:
        raise ConfigError("an array of objects cannot be stored", received=str(value.dtype))
    array = np.ascontiguousarray(value).reshape(value.shape)
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    size, checksum = _size_and_checksum(path)
    facts = {"file": path.name, "kind": kind, "dtype": array.dtype.str, "shape": list(array.shape)}
    return facts | {"offset": size - array.nbytes, "size": size, "checksum": checksum}


def _size_and_checksum(path: Path) -> tuple[int, int]:
    """Return the size of a file and a checksum of its two ends."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        checksum = zlib.crc32(file.read(CHECKED_BYTES))
        file.seek(max(CHECKED_BYTES, size - CHECKED_BYTES))
        return size, zlib.crc32(file.read(CHECKED_BYTES), checksum)


def _cannot_write(folder: Path, error: OSError, item: Mapping[str, Any]) -> DataError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    needed = sum(v.nbytes for v in item.values() if isinstance(v, np.ndarray | torch.Tensor))
    return DataError(
        "disk is full: the preprocessed case cannot be stored" if full else f"cannot be written: {error.strerror}",
        file=folder.parent,
        expected=f"{needed / 1e6:.0f} MB for this case" if full else None,
        remedy="free space there, or choose another folder with store_dir",
    )


def _encoded(value: Any, key: str) -> Any:
    """Return a value for JSON; arrays, which only occur within lists, mappings and meta, are marked."""
    if isinstance(value, enum.Enum):
        return _encoded(value.value, key)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray | torch.Tensor) and value.dtype != object:
        kind = "torch" if isinstance(value, torch.Tensor) else "numpy"
        array = torch.as_tensor(value).as_subclass(torch.Tensor).cpu().numpy()
        return {"__array__": kind, "dtype": array.dtype.str, "values": array.tolist()}
    if isinstance(value, list | tuple):
        return [_encoded(inner, key) for inner in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {str(name): _encoded(inner, key) for name, inner in value.items()}
    raise ConfigError(
        "a preprocessed value cannot be stored on disk",
        received=f"{key}: {type(value).__name__}",
        expected="an array, a number, a text, or lists and mappings of them",
        remedy="remove it with DeleteItemsd, or use monai's CacheDataset",
    )


def _encoded_meta(meta: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the part of the meta data that JSON can represent; the rest only serves to invert transforms."""
    encoded = {}
    for key, value in meta.items():
        if isinstance(value, np.ndarray | torch.Tensor) and np.prod(value.shape) > MAX_META_NUMBERS:
            continue
        try:
            encoded[str(key.value if isinstance(key, enum.Enum) else key)] = _encoded(value, str(key))
        except ConfigError:
            logger.debug("meta %s of type %s is not stored", key, type(value).__name__)
    return encoded


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if "__array__" in value:
        array = np.array(value["values"], dtype=value["dtype"])
        return torch.from_numpy(array) if value["__array__"] == "torch" else array
    return {name: _decoded(inner) for name, inner in value.items()}
