"""One preprocessed case on disk: a folder of npy files with a manifest, written whole or not at all."""

from __future__ import annotations

import contextlib
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

CHECKED_BYTES = 1 << 20
"""So much of the beginning and of the end of each file is compared with its checksum when it is opened for the first
time: the whole of small arrays, and of large ones what a crash or a full disk leaves out."""

MAX_META_NUMBERS = 1024
"""Longest array in a MetaTensor's meta that is kept; meta describe an image, they are none."""


class Entry:
    """A case that was preprocessed: the arrays as files that are read where they are touched.

    Args:
        folder: the entry's folder.
        manifest: content of its `entry.json`.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @property
    def nbytes(self) -> int:
        """Size of the files of all arrays, bytes."""
        return sum(facts["size"] for facts in self.manifest["arrays"].values())

    def load(self, *, track_meta: bool = True) -> dict[str, Any]:
        """The item; its arrays are mapped and nothing of them is read yet.

        Every call maps anew, copy on write: what a transform changes in place reaches neither the file nor the next
        item. Takes about 0.1 ms.

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
        """Flat indices of foreground voxels by label key, one array a class that may be drawn."""
        found = {}
        for key, facts in self.manifest["indices"].items():
            bounds = np.cumsum(facts["counts"])[:-1]
            found[key] = np.split(self._map(facts), bounds) if facts["counts"] else []
        return found

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
        """The entry in a folder, or None where there is none or a damaged one."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            for facts in (*manifest["arrays"].values(), *manifest["indices"].values()):
                found = _checked(folder / facts["file"])
                if found != (facts["size"], facts["checksum"]):
                    logger.warning("%s is damaged and is made anew", folder / facts["file"])
                    return None
        except (FileNotFoundError, NotADirectoryError) as error:
            if folder.exists():
                logger.warning("%s is damaged (%s is missing) and is made anew", folder, Path(error.filename).name)
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s is damaged (%s) and is made anew", folder, error)
            return None
        return Entry(folder, manifest)

    @staticmethod
    def write(
        folder: Path, item: Mapping[str, Any], indices: Mapping[str, list[np.ndarray]], *, source: Any = None
    ) -> Entry:
        """Keep an item.

        Args:
            folder: where to; a damaged entry there is replaced.
            item: arrays and tensors of any shape, and values that JSON knows.
            indices: what `load_indices` shall give.
            source: what the item was made from, see :func:`medunet.datasets.cache.identity.describe_source`.

        Raises:
            DataError: it cannot be written, for instance because the disk is full.
            ConfigError: the item holds a value that cannot be kept.
        """
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        try:
            temporary.mkdir(parents=True)
            manifest = _write_files(temporary, item, indices) | {"source": source}
            _write_synced(temporary / MANIFEST, json.dumps(manifest).encode())
            _put_in_place(temporary, folder)
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
    """Remove a folder or a file, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _write_files(folder: Path, item: Mapping[str, Any], indices: Mapping[str, list[np.ndarray]]) -> dict[str, Any]:
    manifest: dict[str, Any] = {"arrays": {}, "values": {}, "indices": {}}
    for key, value in item.items():
        if not isinstance(key, str):
            raise ConfigError("item has a key that is no text", received=repr(key))
        if isinstance(value, np.ndarray | torch.Tensor):
            name = f"{len(manifest['arrays'])}.npy"
            manifest["arrays"][key] = _write_array(folder / name, value) | _kind(value)
        else:
            manifest["values"][key] = _encoded(value, key)
    for key, classes in indices.items():
        joined = np.concatenate([*classes, np.empty(0, dtype=np.int64)])
        joined = joined.astype(np.int32) if joined.max(initial=0) < 2**31 else joined
        facts = _write_array(folder / f"{len(manifest['arrays']) + len(manifest['indices'])}.npy", joined)
        manifest["indices"][key] = facts | {"counts": [len(one) for one in classes]}
    return manifest


def _kind(value: Any) -> dict[str, Any]:
    if isinstance(value, MetaTensor):
        return {"kind": "meta", "meta": _encoded_meta(value.meta)}
    return {"kind": "torch" if isinstance(value, torch.Tensor) else "numpy"}


def _write_array(path: Path, value: np.ndarray | torch.Tensor) -> dict[str, Any]:
    if isinstance(value, torch.Tensor):
        tensor = value.as_subclass(torch.Tensor).detach().cpu()
        if tensor.dtype == torch.bfloat16:
            raise ConfigError("bfloat16 cannot be kept", remedy="cast to float32 or float16")
        value = tensor.numpy()
    if value.dtype.hasobject:
        raise ConfigError("an array of objects cannot be kept", received=str(value.dtype))
    array = np.ascontiguousarray(value).reshape(value.shape)
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    size, checksum = _checked(path)
    return {
        "file": path.name,
        "dtype": array.dtype.str,
        "shape": list(array.shape),
        "offset": size - array.nbytes,
        "size": size,
        "checksum": checksum,
    }


def _checked(path: Path) -> tuple[int, int]:
    """Size of a file and checksum of its two ends."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        checksum = zlib.crc32(file.read(CHECKED_BYTES))
        file.seek(max(CHECKED_BYTES, size - CHECKED_BYTES))
        return size, zlib.crc32(file.read(CHECKED_BYTES), checksum)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename; what stands there, a damaged entry or that of another process, gives way first."""
    for _ in range(3):
        try:
            temporary.rename(folder)
            sync_folder(folder.parent)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        # renamed first, so that a reader never sees half an entry
        old = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):
            folder.rename(old)
            remove(old)
    temporary.rename(folder)


def _cannot_write(folder: Path, error: OSError, item: Mapping[str, Any]) -> DataError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    needed = sum(v.nbytes for v in item.values() if isinstance(v, np.ndarray | torch.Tensor))
    return DataError(
        "disk is full: the preprocessed case cannot be kept" if full else f"cannot be written: {error.strerror}",
        file=folder.parent,
        expected=f"{needed / 1e6:.0f} MB for this case" if full else None,
        remedy="free space there, or choose another folder with store_dir",
    )


def _encoded(value: Any, key: str) -> Any:
    """As JSON takes it; arrays, which only occur within lists, mappings and meta, are marked."""
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
        "a preprocessed value cannot be kept on disk",
        received=f"{key}: {type(value).__name__}",
        expected="an array, a number, a text, or lists and mappings of them",
        remedy="remove it with DeleteItemsd, or use monai's CacheDataset",
    )


def _encoded_meta(meta: Mapping[Any, Any]) -> dict[str, Any]:
    """What JSON can hold of meta data; the rest is for inverting, which random patches never are."""
    kept = {}
    for key, value in meta.items():
        if isinstance(value, np.ndarray | torch.Tensor) and np.prod(value.shape) > MAX_META_NUMBERS:
            continue
        try:
            kept[str(key.value if isinstance(key, enum.Enum) else key)] = _encoded(value, str(key))
        except ConfigError:
            logger.debug("meta %s of type %s is not kept", key, type(value).__name__)
    return kept


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if "__array__" in value:
        array = np.array(value["values"], dtype=value["dtype"])
        return torch.from_numpy(array) if value["__array__"] == "torch" else array
    return {name: _decoded(inner) for name, inner in value.items()}
