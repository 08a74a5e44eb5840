"""What waits for a tracking server: one small file a record, in order, until it has been delivered."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medunet.errors import DataError
from medunet.files import write_atomically

REFUSED = "refused"
"""Folder inside the spool for records that the server will not take."""


class Spool:
    """A queue on the disk, which outlives its process.

    A record is written whole before `put` returns, and removed when it has been delivered. One process delivers at a
    time (`medunet.files.lock`); any thread may put.

    Args:
        folder: made with the first record.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     spool = Spool(Path(folder))
        ...     spool.put({"kind": "metrics"}, content=b"...")
        ...     name = spool.names()[0]
        ...     name, spool.read(name), spool.payload(name).read_bytes()
        ('00000001', {'kind': 'metrics'}, b'...')
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._last = max((int(name) for name in (*self.names(), *self.refused())), default=0)

    def put(self, record: Mapping[str, Any], *, content: bytes | None = None) -> None:
        """Append a record.

        Args:
            record: as JSON takes it.
            content: of a file that belongs to it.

        Raises:
            DataError: the folder cannot be written.
        """
        with self._lock:
            name = f"{self._last + 1:08d}"
            if content is not None:
                write_atomically(self.payload(name), content)
            write_atomically(self.folder / f"{name}.json", json.dumps(record))
            self._last += 1

    def names(self) -> list[str]:
        """Names of the records that wait, oldest first."""
        found = self.folder.glob("[0-9]*.json") if self.folder.is_dir() else ()
        return sorted(path.stem for path in found)

    def refused(self) -> list[str]:
        """Names of the records that were put aside, oldest first."""
        return sorted(path.stem for path in (self.folder / REFUSED).glob("[0-9]*.json"))

    def __len__(self) -> int:
        """How many wait."""
        return len(self.names())

    def read(self, name: str) -> dict[str, Any]:
        """A record.

        Raises:
            DataError: it cannot be read.
        """
        path = self.folder / f"{name}.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"a record for MLflow cannot be read: {error}", file=path) from error
        if not isinstance(record, dict):
            raise DataError("a record for MLflow is no JSON object", file=path)
        return record

    def payload(self, name: str) -> Path:
        """The file that may belong to a record."""
        return self.folder / f"{name}.bin"

    def remove(self, name: str) -> None:
        """Forget a record that has been delivered."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)
        self.payload(name).unlink(missing_ok=True)

    def readmit(self) -> int:
        """Let the records that were put aside wait again, as the oldest; returns how many."""
        names = self.refused()
        for name in names:
            for path in (self.payload(name), self.folder / f"{name}.json"):  # its description makes it a record
                if (self.folder / REFUSED / path.name).is_file():
                    shutil.move(self.folder / REFUSED / path.name, path)
        return len(names)

    def refuse(self, name: str) -> Path:
        """Put aside a record that cannot be delivered, so that others can; returns where it lies."""
        aside = self.folder / REFUSED
        aside.mkdir(exist_ok=True)
        for path in (self.payload(name), self.folder / f"{name}.json"):
            if path.is_file():
                shutil.move(path, aside / path.name)
        return aside / f"{name}.json"
