"""The data of a training run as an MLflow dataset, identified by content instead of names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from medunet.errors import DataError
from medunet.files import cache_folder, sha256_of, write_atomically

DIGEST_LENGTH = 32  # characters; MLflow keeps 36


def dataset_record(
    name: str, items: Sequence[Mapping[str, Any]], *, context: str, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Return a data set as `RunRecord` stores it; `context` is ``training`` or ``validation``."""
    dataset = {
        "name": name,
        "digest": content_digest(items, stop=stop),
        "source_type": "local",
        "source": json.dumps({"uri": name}),  # never the path
        "profile": json.dumps({"cases": len(items)}),
    }
    return {"dataset": dataset, "context": context}


def content_digest(items: Iterable[Mapping[str, Any]], *, stop: Callable[[], bool] = lambda: False) -> str:
    """Return the SHA-256 over the bytes of all images and labels, whatever the names, places and order of the files.

    `stop` is called before each file; if it returns True, a DataError ends the work. Digests of files are cached by
    path, size and modification time, because every fold needs them.
    """
    cache = cache_folder() / "digests"

    def digests(value: Any) -> list[str]:
        return [_path_digest(Path(path), cache, stop) for path in ensure_tuple(value) if path is not None]

    cases = sorted(json.dumps([digests(item.get(key)) for key in ("image", "label")]) for item in items)
    return _join(cases)[:DIGEST_LENGTH]


def _path_digest(path: Path, cache: Path, stop: Callable[[], bool]) -> str:
    if path.is_dir():  # a DICOM series
        return _join(sorted(_path_digest(file, cache, stop) for file in path.rglob("*") if file.is_file()))
    if stop():
        raise DataError("the digest of the data set was stopped because the training run ended")
    try:
        status = path.stat()
        file = cache / _join([str(path.resolve()), str(status.st_size), str(status.st_mtime_ns)])[:DIGEST_LENGTH]
        if not file.is_file():
            write_atomically(file, sha256_of(path))
        return file.read_text(encoding="ascii")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file=path) from error


def _join(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
