"""The result of every case of a cohort: one appended line per case, so that a rerun continues."""

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medunet.errors import DataError
from medunet.files import sha256_of, sync_folder
from medunet.prediction import Prediction, Review, Status
from medunet.runtime import SAFE_SUFFIX
from medunet.training import LAST_NAME, PREVIOUS_NAME

LEDGER_NAME = "ledger.jsonl"


@dataclass(frozen=True)
class Outcome:
    """The result of one case."""

    name: str
    status: Status  # 'there already' if an earlier run wrote it
    path: str | None = None  # of the result, relative to the output folder
    error: str | None = None
    seconds: float = 0.0  # of work
    attempts: int = 1  # processes that tried it
    node: str = ""  # name of the machine
    sent: bool = False  # whether the store that the images came from has the result
    warnings: Sequence[str] = ()  # what the reader found unusual
    inputs: Sequence[Mapping[str, Any]] = ()  # fields of `CaseFile`
    outputs: Sequence[Mapping[str, Any]] = ()
    measurements: Sequence[Mapping[str, Any]] = ()
    review: Review | None = None

    @classmethod
    def of(cls, prediction: Prediction, output: Path) -> "Outcome":
        """Return the outcome of a named case."""
        path = prediction.path
        return cls(
            name=prediction.name,
            status=prediction.status,
            path=None if path is None else Path(os.path.relpath(path, output)).as_posix(),
            error=None if prediction.error is None else str(prediction.error),
            seconds=round(prediction.seconds, 3),
            node=platform.node(),
            warnings=prediction.warnings,
            inputs=[asdict(file) for file in prediction.inputs],
            outputs=[asdict(file) for file in prediction.outputs],
            measurements=prediction.measurements,
            review=prediction.review,
        )

    def prediction(self, output: Path) -> Prediction:
        """Return what is known of the prediction of a case, whose results are in a folder."""
        return Prediction(
            source=[file["path"] for file in self.inputs],
            path=None if self.path is None else output / self.path,
            name=self.name,
            measurements=[dict(row) for row in self.measurements],
            review=self.review,
        )

    @property
    def is_done(self) -> bool:
        """Whether there is a result."""
        return self.status != "failed"


class Ledger:
    """Appends outcomes to ``ledger.jsonl`` in the output folder; the last line about a case counts.

    A line that was cut off by a crash is ignored. Only one process may write. With `replace`, a new ledger starts.
    A DataError is raised if the results come from another bundle.
    """

    def __init__(self, folder: Path, *, digest: str, replace: bool = False) -> None:
        self.folder = folder
        self.path = folder / LEDGER_NAME
        self.outcomes: dict[str, Outcome] = {}
        self.replaces = replace  # whether results that the ledger does not list are replaced, also after a restart
        if replace:
            self.path.unlink(missing_ok=True)
        known = None
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.is_file() else ""
        for line in text.splitlines():
            with contextlib.suppress(ValueError):  # a line that was cut off
                entry = json.loads(line)
                if "bundle" in entry:
                    known, self.replaces = entry["bundle"], entry.get("replaces", False)
                elif "name" in entry:
                    del entry["time"]
                    entry["review"] = Review(**entry["review"]) if entry.get("review") else None
                    self.outcomes[entry["name"]] = Outcome(**entry)
        if known not in (None, digest):
            cause, remedy = (
                "the output folder has results of another bundle or of other options",
                "choose another --output, or add --force",
            )
            raise DataError(cause, file=self.path, remedy=remedy)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        self._file.write("\n" if text and not text.endswith("\n") else "")
        if known is None:
            self._append({"bundle": digest, "replaces": replace})
        sync_folder(folder)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def is_done(self, name: str, *, sent: bool = False) -> bool:
        """Return whether a case has a result that still exists; with `sent`, also in the store."""
        outcome = self.outcomes.get(name)
        if outcome is None or outcome.path is None or (sent and not outcome.sent):
            return False
        return outcome.is_done and (self.folder / outcome.path).is_file()

    def add(self, outcome: Outcome) -> None:
        """Append an outcome, and wait until it is on the disk."""
        self.outcomes[outcome.name] = outcome
        self._append(asdict(outcome))

    def _append(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps({**entry, "time": round(time.time(), 3)}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def bundle_digest(bundle: Path, *more: object) -> str:
    """Return a digest of what results depend on: configuration, weights (of all members of an ensemble) and options."""
    digest = hashlib.sha256(repr(more).encode())
    weights = sorted(path for path in (bundle / "models").glob("*") if path.suffix in (".pt", SAFE_SUFFIX))
    for path in (bundle / "configs" / "inference.json", *weights):
        if path.name not in (LAST_NAME, PREVIOUS_NAME):
            digest.update(f"{path.name} {sha256_of(path) if path.is_file() else '-'}".encode())
    return digest.hexdigest()
