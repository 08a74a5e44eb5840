"""What became of every case of a cohort: a line a case, appended, so that a restart goes on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from medunet.errors import DataError
from medunet.files import sha256_of, sync_folder
from medunet.runtime import SAFE_SUFFIX
from medunet.training import LAST_NAME, PREVIOUS_NAME

LEDGER_NAME = "ledger.jsonl"

Status = Literal["written", "there already", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Args:
        name: of the case.
        status: 'there already' where an earlier run wrote it.
        path: of the result, relative to the output folder.
        error: why it failed.
        seconds: of work.
        attempts: how many processes tried it.
        node: which machine.
        sent: whether the store that the images came from has the result.
    """

    name: str
    status: Status
    path: str | None = None
    error: str | None = None
    seconds: float = 0.0
    attempts: int = 1
    node: str = ""
    sent: bool = False

    @property
    def is_done(self) -> bool:
        """Whether there is a result."""
        return self.status != "failed"


class Ledger:
    """Appends outcomes to ``ledger.jsonl`` in the output folder; the last line about a case counts.

    A line that a killed process has left half written is passed over. Only one process may write, see
    :func:`medunet.files.claim`.

    Args:
        folder: output folder.
        digest: of the bundle, see :func:`bundle_digest`.
        replace: begin anew, whatever the folder holds.

    Attributes:
        replaces: whether results that no line tells of are older ones, which are to be replaced: so it was begun.

    Raises:
        DataError: the results that it tells of are another bundle's.
    """

    def __init__(self, folder: Path, *, digest: str, replace: bool = False) -> None:
        self.folder = folder
        self.path = folder / LEDGER_NAME
        self.outcomes: dict[str, Outcome] = {}
        if replace:
            self.path.unlink(missing_ok=True)
        known = None
        self.replaces = replace
        for entry in _entries(self.path):
            if "bundle" in entry:
                known, self.replaces = entry["bundle"], entry.get("replaces", False)
            elif "name" in entry:
                entry.pop("time", None)
                self.outcomes[entry["name"]] = Outcome(**entry)
        if known not in (None, digest):
            raise DataError(
                "the output folder holds results of another bundle",
                file=self.path,
                remedy="give another --output, or replace them by --force",
            )
        folder.mkdir(parents=True, exist_ok=True)
        whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"\n", b"")
        self._file = self.path.open("a", encoding="utf-8")
        if not whole:
            self._file.write("\n")  # the rest of a line that was cut
        if known is None:
            self._append({"bundle": digest, "replaces": replace})
        sync_folder(folder)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def is_done(self, name: str, *, sent: bool = False) -> bool:
        """Whether a case has a result, and it is still there; where asked for, in the store as well."""
        outcome = self.outcomes.get(name)
        if outcome is None or (sent and not outcome.sent):
            return False
        return bool(outcome.is_done and outcome.path and (self.folder / outcome.path).is_file())

    def add(self, outcome: Outcome) -> None:
        """Append, to the disk."""
        self.outcomes[outcome.name] = outcome
        self._append(asdict(outcome))

    def _append(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps({**entry, "time": round(time.time(), 3)}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def bundle_digest(bundle: Path, *more: object) -> str:
    """What results depend on: configuration, weights (of all members of an ensemble) and options."""
    digest = hashlib.sha256(repr(more).encode())
    kept = (path for path in (bundle / "models").glob("*") if path.suffix in (".pt", SAFE_SUFFIX))
    weights = sorted(path for path in kept if path.name not in (LAST_NAME, PREVIOUS_NAME))
    for path in (bundle / "configs" / "inference.json", *weights):
        digest.update(f"{path.name} {sha256_of(path) if path.is_file() else '-'}".encode())
    return digest.hexdigest()
