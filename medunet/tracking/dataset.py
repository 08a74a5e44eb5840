"""The data of a training as an MLflow dataset: what it holds, told by its content and not by its names."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medunet.errors import DataError
from medunet.files import cache_folder, write_atomically

DIGEST_LENGTH = 32
"""Characters; MLflow keeps 36."""

BLOCK = 1 << 20
"""Bytes read at once."""

PATH_KEYS = ("image", "label")


def dataset_record(
    name: str, items: Sequence[Mapping[str, Any]], *, context: str, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """The record of a data set for a :class:`medunet.tracking.spool.Spool`.

    Args:
        name: of the data set.
        items: as of :func:`medunet.datasets.datalist`.
        context: 'training' or 'validation'.
        stop: see :func:`content_digest`.
    """
    dataset = {
        "name": name,
        "digest": content_digest(items, stop=stop),
        "source_type": "local",
        "source": json.dumps({"uri": name}),  # where it lies is nobody's business
        "profile": json.dumps({"cases": len(items)}),
    }
    return {"kind": "inputs", "dataset": dataset, "context": context}


def content_digest(
    items: Iterable[Mapping[str, Any]], *, cache: Path | None = None, stop: Callable[[], bool] = lambda: False
) -> str:
    """SHA-256 over the bytes of all images and labels; file names, places and order do not count.

    Digests of files are kept by path, size and time of change, so that a large data set is read once.

    Args:
        items: as of :func:`medunet.datasets.datalist`.
        cache: folder of the kept digests; by default in medunet's cache folder.
        stop: asked before each block of a file; True ends with an error.

    Raises:
        DataError: a file cannot be read, or `stop` ended it.
    """
    cache = cache_folder(cache) / "digests"
    cases = sorted(
        json.dumps([[_path_digest(path, cache, stop) for path in _paths(item.get(key))] for key in PATH_KEYS])
        for item in items
    )
    return hashlib.sha256("\n".join(cases).encode()).hexdigest()[:DIGEST_LENGTH]


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
        facts = path.stat()
        place = cache / f"{_join([str(path.resolve()), str(facts.st_size), str(facts.st_mtime_ns)])[:DIGEST_LENGTH]}"
        if place.is_file() and len(known := place.read_text(encoding="ascii")) == 64:
            return known
        found = hashlib.sha256()
        for block in _blocks(path):
            if stop():
                raise DataError("the digest of the data set was stopped because the training run ended")
            found.update(block)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file=path) from error
    write_atomically(place, found.hexdigest())
    return found.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def _join(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
