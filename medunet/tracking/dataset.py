"""The data of a training run as an MLflow dataset, identified by its content instead of its names."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medunet.errors import DataError
from medunet.files import cache_folder, write_atomically

DIGEST_LENGTH = 32  # characters; MLflow keeps 36
BLOCK = 1 << 20  # bytes that are read between two calls of `stop`


def dataset_record(
    name: str, items: Sequence[Mapping[str, Any]], *, context: str, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Return a data set as a :class:`RunRecord` has it.

    Args:
        name: name of the data set.
        items: cases of :func:`medunet.datasets.datalist`.
        context: ``training`` or ``validation``.
        stop: see :func:`content_digest`.
    """
    dataset = {
        "name": name,
        "digest": content_digest(items, stop=stop),
        "source_type": "local",
        "source": json.dumps({"uri": name}),  # never the path
        "profile": json.dumps({"cases": len(items)}),
    }
    return {"dataset": dataset, "context": context}


def content_digest(
    items: Iterable[Mapping[str, Any]], *, cache: Path | None = None, stop: Callable[[], bool] = lambda: False
) -> str:
    """Return the SHA-256 over the bytes of all images and labels; names, places and order of the files do not count.

    Digests of files are cached by path, size and modification time, so that a large data set is read once.

    Args:
        items: cases of :func:`medunet.datasets.datalist`.
        cache: folder of the cached digests; by default in medunet's cache folder.
        stop: called before each block of a file; True ends with an error.

    Raises:
        DataError: a file cannot be read, or `stop` returned True.
    """
    cache = cache_folder(cache) / "digests"
    cases = sorted(
        json.dumps([[_path_digest(path, cache, stop) for path in _paths(item.get(key))] for key in ("image", "label")])
        for item in items
    )
    return _join(cases)[:DIGEST_LENGTH]


def _paths(value: Any) -> list[Path]:
    if value is None:
        return []
    return [Path(value)] if isinstance(value, str | os.PathLike) else [Path(path) for path in value]


def _path_digest(path: Path, cache: Path, stop: Callable[[], bool]) -> str:
    if path.is_dir():  # a DICOM series
        return _join(sorted(_file_digest(file, cache, stop) for file in path.rglob("*") if file.is_file()))
    return _file_digest(path, cache, stop)


def _file_digest(path: Path, cache: Path, stop: Callable[[], bool]) -> str:
    try:
        status = path.stat()
        key = _join([str(path.resolve()), str(status.st_size), str(status.st_mtime_ns)])[:DIGEST_LENGTH]
        if (cache / key).is_file() and len(known := (cache / key).read_text(encoding="ascii")) == 64:
            return known
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                if stop():
                    raise DataError("the digest of the data set was stopped because the training run ended")
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file=path) from error
    write_atomically(cache / key, digest.hexdigest())
    return digest.hexdigest()


def _join(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
