"""What this user trusts: bundles by digest, and folders in which medunet itself made a bundle."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from medunet.errors import DataError
from medunet.files import config_folder, write_atomically

logger = logging.getLogger(__name__)


_this_time: set[Path] = set()
"""Records that could not be written: one command looks at a bundle more than once."""


def remember(digest: str) -> None:
    """Trust whatever has this digest from now on; where nothing can be written, in this process."""
    _note(_path("trusted", digest))


def is_remembered(digest: str) -> bool:
    """Whether it was trusted before."""
    return _is_noted(_path("trusted", digest))


def mark_made_here(folder: Path) -> None:
    """Note that medunet made the bundle in a folder: its paths are the user's own, wherever they lead."""
    _note(_path("made", _key(folder)))


def is_made_here(folder: Path) -> bool:
    """Whether medunet made the bundle in this folder, on this machine and for this user."""
    return _is_noted(_path("made", _key(folder)))


def _key(folder: Path) -> str:
    return hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()


def _path(kind: str, key: str) -> Path:
    return config_folder() / kind / f"{key}.json"


def _is_noted(path: Path) -> bool:
    return path in _this_time or path.is_file()


def _note(path: Path) -> None:
    if _is_noted(path):
        return
    try:
        write_atomically(path, json.dumps({"version": 1}) + "\n")
    except DataError as error:
        _this_time.add(path)
        logger.debug("not recorded: %s", error)
