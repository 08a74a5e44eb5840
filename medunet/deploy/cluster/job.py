"""What the processes of one training are told, and what they tell back: files in a folder of this host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medunet.files import write_atomically
from medunet.runs import TrainingResult

OVERLAY = "multi_gpu_train"
"""A bundle's config for several processes."""

JOB_NAME = "job.json"
RESULT_NAME = "result.json"
FAILURE_NAME = "failure"


@dataclass(frozen=True)
class TrainingJob:
    """A training, as of :func:`medunet.runs.train_bundle`.

    Args:
        folder: for these files.
        bundle: see there, as data, output, changes, presets, device, resume, tracking_uri and skip_bad.
    """

    folder: str
    bundle: str
    data: str
    output: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    presets: tuple[str, ...] = ()
    device: str = "auto"
    resume: bool = False
    tracking_uri: str | None = None
    skip_bad: bool = False

    def save(self) -> Path:
        """Write it; the path is the only argument of a process."""
        return write_atomically(Path(self.folder) / JOB_NAME, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> TrainingJob:
        """Read it."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def fail(self, text: str) -> None:
        """Note an error that starting again cannot mend; of several the first stays."""
        if self.failure() is None:
            write_atomically(Path(self.folder) / FAILURE_NAME, text)

    def failure(self) -> str | None:
        """The error of a process of this host."""
        path = Path(self.folder) / FAILURE_NAME
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def finish(self, result: TrainingResult) -> None:
        """Hand the result back."""
        text = json.dumps({**asdict(result), "run": str(result.run)})
        write_atomically(Path(self.folder) / RESULT_NAME, text)

    def result(self) -> TrainingResult | None:
        """What came of it; None on hosts without the first process."""
        path = Path(self.folder) / RESULT_NAME
        if not path.is_file():
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        return TrainingResult(**{**values, "run": Path(values["run"]), "left_out": tuple(values["left_out"])})
