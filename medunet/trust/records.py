"""The user's decisions: digests of approved bundles, and folders in which medunet created a bundle."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from medunet.errors import DataError
from medunet.files import config_folder, write_atomically

logger = logging.getLogger(__name__)

_unwritten: set[Path] = set()  # records that hold for this process only, because they could not be written


def remember(digest: str) -> None:
    """Trust every bundle with this digest from now on, or in this process if nothing can be written."""
    _note(_path("trusted", digest))


def is_remembered(digest: str) -> bool:
    """Return whether the user approved a bundle with this digest."""
    return _is_noted(_path("trusted", digest))


def mark_made_here(folder: Path) -> None:
    """Note that medunet created the bundle in a folder, so all paths in it are the user's own."""
    _note(_path("made", _key(folder)))


def is_made_here(folder: Path) -> bool:
    """Return whether medunet created the bundle in this folder, on this machine and for this user."""
    return _is_noted(_path("made", _key(folder)))


def _key(folder: Path) -> str:
    return hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()


def _path(kind: str, key: str) -> Path:
    return config_folder() / kind / f"{key}.json"


def _is_noted(path: Path) -> bool:
    return path in _unwritten or path.is_file()


def _note(path: Path) -> None:
    if not _is_noted(path):
        try:
            write_atomically(path, json.dumps({"version": 1}) + "\n")
        except DataError as error:
            _unwritten.add(path)
            logger.debug("not recorded: %s", error)
