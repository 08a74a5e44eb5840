"""Recognise an image by its content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from medunet.errors import DataError

BLOCKS, BLOCK_BYTES = 16, 1 << 16  # parts of an image that are read: acquired images differ within this megabyte


def image_digest(images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> str:
    """Return a digest of an image that does not depend on the names of its files.

    It covers the size of each file and blocks that are spread evenly over it.

    Args:
        images: a file, a folder of DICOM files, or several of them (channels).
    """
    given = [images] if isinstance(images, str | os.PathLike) else images
    paths = map(Path, given)
    files = [f for path in paths for f in (filter(Path.is_file, path.rglob("*")) if path.is_dir() else [path])]
    blocks = max(1, BLOCKS // max(len(files), 1))
    return hashlib.sha256("\n".join(sorted(_sampled(file, blocks) for file in files)).encode()).hexdigest()


def _sampled(path: Path, blocks: int) -> str:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size).encode())
            last = max(size - BLOCK_BYTES, 0)
            for start in sorted({last * index // max(blocks - 1, 1) for index in range(blocks)}):
                file.seek(start)
                digest.update(file.read(BLOCK_BYTES))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file=path) from error
    return digest.hexdigest()
