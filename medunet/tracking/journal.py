"""Writing down what a run logs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from .server import now
from .spool import Spool


class Journal:
    """Puts what a run logs into a spool, in MLflow's terms.

    Args:
        spool: where to.
        run_id: of the run; empty: the one whose key is given, as soon as it has an id.
        key: of the run's state.
        wake: called after each record.
    """

    def __init__(
        self, spool: Spool, *, run_id: str = "", key: str = "", wake: Callable[[], None] = lambda: None
    ) -> None:
        self.spool = spool
        self.run_id = run_id
        self.key = key
        self.wake = wake

    def create(self, name: str, tags: Mapping[str, str], *, start_time: int) -> None:
        """The run itself."""
        self._put({"kind": "create", "name": name, "tags": dict(tags), "time": start_time})

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers of one point in time."""
        named = {metric_name(key): float(value) for key, value in values.items() if not math.isinf(value)}
        self._put({"kind": "metrics", "values": named, "step": step, "time": now()})

    def params(self, values: Mapping[str, str]) -> None:
        """What never changes in a run."""
        self._put({"kind": "params", "values": {metric_name(key): value for key, value in values.items()}})

    def tags(self, values: Mapping[str, str]) -> None:
        """What may change."""
        self._put({"kind": "tags", "values": dict(values)})

    def file(self, path: str, content: str | bytes) -> None:
        """An artifact, at a path in the run."""
        self._put({"kind": "artifact", "path": path}, content.encode() if isinstance(content, str) else content)

    def json(self, path: str, content: Any) -> None:
        """An artifact in JSON."""
        self.file(path, json.dumps(content, indent=2, ensure_ascii=False, default=str))

    def record(self, record: Mapping[str, Any]) -> None:
        """Any record."""
        self._put(record)

    def model(self, packed: bytes, *, name: str = "") -> None:
        """A packed bundle as the run's model; with a name it is registered."""
        self._put({"kind": "model", "name": name}, packed)

    def status(self, status: str) -> None:
        """RUNNING, FINISHED, FAILED or KILLED."""
        self._put({"kind": "status", "status": status, "time": now()})

    def _put(self, record: Mapping[str, Any], content: bytes | None = None) -> None:
        self.spool.put({**record, "run_id": self.run_id, "key": self.key}, content=content)
        self.wake()


def metric_name(text: str) -> str:
    """A name as MLflow takes it: letters, digits and ``_-. :/``.

    Example:
        >>> metric_name("val_dice_Nerv (links)")
        'val_dice_Nerv _links_'
    """
    return re.sub(r"[^\w./ :-]", "_", text).strip("/")[:250]
