"""Which MLflow runs a folder belongs to, so that a training that goes on goes on there too."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medunet.files import write_atomically

PARENT_NAME = "training.json"
"""In the folder of a training: its parent run."""

STATE_NAME = "tracking.json"
"""In the output folder of each of its folds: its child run."""


@dataclass
class RunState:
    """A folder's MLflow run.

    Args:
        uri: the store, without credentials.
        experiment: MLflow's.
        key: of our own making, a tag of the run: a run that was made but not noted is found by it.
        run_id: MLflow's; empty while the server has not made it.
        parent: run id of the parent.
        folds: of a parent: fold to the values that summarise it.
    """

    uri: str
    experiment: str = "medunet"
    key: str = field(default_factory=lambda: secrets.token_hex(16))
    run_id: str = ""
    parent: str = ""
    folds: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, *, uri: str | None = None) -> RunState | None:
        """The state in a file, or None: there is none, it cannot be read, or it is of another store."""
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            state = cls(**content)
        except (OSError, ValueError, TypeError):
            return None
        return state if uri is None or state.uri == uri else None

    def save(self, path: Path) -> None:
        """Write it, whole."""
        write_atomically(path, json.dumps(asdict(self), indent=1))
