"""Measures of cases that were measured before: one line of JSON a case, so that an interrupted measurement goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from pathlib import Path

from medunet.datasets import Case, SegmentationDataset
from medunet.datasets.cache.identity import code_digest, describe_source, digest
from medunet.errors import DataError
from medunet.files import cache_folder, write_atomically

from .measure import CaseMeasure

logger = logging.getLogger(__name__)


def default_cache() -> Path:
    """Folder of the measures in medunet's cache folder."""
    return cache_folder() / "fingerprints"


class MeasureCache:
    """Measures of a data set's cases in one file, by the size and time of their files.

    A line that was cut off by a crash is passed over; `compact` drops lines of cases that are gone.

    Args:
        folder: where the file lies; None keeps nothing.
        dataset: whose cases.
    """

    def __init__(self, folder: Path | None, dataset: SegmentationDataset) -> None:
        self._lock = threading.Lock()
        labels = sorted(dataset.labels.items())
        code = digest(code_digest(), CaseMeasure)  # the class stands for the file that defines it
        self._options = f"{code} {dataset.ignore} {labels} {dataset.read_options}"
        root = hashlib.sha256(str(dataset.root).encode()).hexdigest()[:16]
        self.path = None if folder is None else folder / f"{root}.jsonl"
        self._known: dict[str, CaseMeasure] = {}
        self._used: set[str] = set()
        if self.path is not None and self.path.is_file():
            self._load(self.path)

    def get(self, case: Case) -> CaseMeasure | None:
        """The measure of a case whose files have not changed."""
        key = self._key(case)
        self._used.add(key)
        return self._known.get(key)

    def put(self, case: Case, measure: CaseMeasure) -> None:
        """Keep a measure at once; may be called from several threads."""
        key = self._key(case)
        line = json.dumps({"key": key, "measure": measure.as_dict()}) + "\n"
        with self._lock:
            self._known[key] = measure
            if self.path is None:
                return
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(line)
            except OSError as error:  # a full disk or a read-only home: the plan goes on without
                logger.warning("measures are not kept: %s", error)
                self.path = None

    def compact(self) -> None:
        """Write the file anew with the cases that are still there, where it holds others."""
        if self.path is None or self._known.keys() <= self._used:
            return
        kept = {key: measure for key, measure in self._known.items() if key in self._used}
        lines = [json.dumps({"key": key, "measure": measure.as_dict()}) + "\n" for key, measure in kept.items()]
        try:
            write_atomically(self.path, "".join(lines))
        except DataError as error:
            logger.warning("measures are not kept: %s", error)

    def _load(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = CaseMeasure.from_dict(entry["measure"])
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    def _key(self, case: Case) -> str:
        files = describe_source([*case.images, *([case.label] if case.label else [])])
        return hashlib.sha256(f"{self._options} {case.name} {files}".encode()).hexdigest()[:32]
