"""The doctor's visit: all that is wrong with a data set at once, and what a person wants to know of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medunet.datasets.layouts.datalist import open_dataset
from medunet.datasets.layouts.dataset import SegmentationDataset
from medunet.datasets.layouts.folds import split_patients
from medunet.errors import DataError, GeometryError, MedunetError, SecurityError
from medunet.io.options import DEFAULTS, ReadOptions

from .check import CaseView, Level, survey
from .finding import Finding
from .statistics import CaseStatistics


@dataclass(frozen=True)
class Examination:
    """What `examine` found.

    Args:
        root: the folder.
        findings: errors first.
        dataset: None where the folder holds no data set.
        statistics: of each case that could be read to the last voxel; empty at level 'header'.
    """

    root: Path
    findings: list[Finding]
    dataset: SegmentationDataset | None = None
    statistics: list[CaseStatistics] = field(default_factory=list)

    @property
    def fails(self) -> bool:
        """Whether training would fail."""
        return any(finding.severity == "error" for finding in self.findings)

    def summary(self) -> dict[str, Any]:
        """Figures of the training cases: how many, axes by smallest, median and largest, intensities, classes."""
        if self.dataset is None:
            return {}
        training = [case for case in self.statistics if case.section == "training"]
        summary: dict[str, Any] = {
            "name": self.dataset.name,
            "cases": len(self.dataset.cases),
            "test_cases": len(self.dataset.test),
            "spatial_dims": self.dataset.spatial_dims,
            "channels": list(self.dataset.channels),
        }
        alike = [case for case in training if len(case.shape) == self.dataset.spatial_dims]
        if alike:
            summary["size"] = _spread([case.shape for case in alike])
            summary["spacing_mm"] = _spread([case.spacing_mm for case in alike])
            summary["orientations"] = _counted(case.orientation for case in alike if case.orientation)
            summary["dtypes"] = _counted(case.dtype for case in alike)
            summary["intensity"] = self._intensity(alike)
        if any(case.class_voxels for case in training):
            summary["classes"] = self._classes(training)
            summary |= self._ignored(training)
        return summary

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything."""
        return {
            "root": str(self.root),
            "fails": self.fails,
            "findings": [finding.as_dict() for finding in self.findings],
            "summary": self.summary(),
            "cases": [case.as_dict() for case in self.statistics],
        }

    def _intensity(self, cases: list[CaseStatistics]) -> dict[str, dict[str, float]]:
        names = self.dataset.channels if self.dataset is not None else ()
        result = {}
        for index, name in enumerate(names):
            channel = [case.intensity[index] for case in cases if index < len(case.intensity)]
            if channel:
                result[name] = {
                    "minimum": min(c.minimum for c in channel),
                    "low": float(np.median([c.low for c in channel])),
                    "median": float(np.median([c.median for c in channel])),
                    "high": float(np.median([c.high for c in channel])),
                    "maximum": max(c.maximum for c in channel),
                }
        return result

    def _classes(self, cases: list[CaseStatistics]) -> dict[str, dict[str, float]]:
        labelled = [case for case in cases if case.class_voxels]
        ignore = self.dataset.ignore if self.dataset is not None else None
        total = sum(n for case in labelled for value, n in case.class_voxels.items() if value != ignore)
        labels = dict(self.dataset.labels) if self.dataset is not None else {}
        result: dict[str, dict[str, float]] = {}
        for name, value in labels.items():
            voxels = [case.class_voxels.get(value, 0) for case in labelled]
            having = [n * case.voxel_size for n, case in zip(voxels, labelled, strict=True) if n]
            result[name] = {"value": value, "cases": len(having), "fraction": sum(voxels) / max(total, 1)}
            if having and all(case.orientation for case in labelled):
                unit = "median_ml" if len(labelled[0].shape) == 3 else "median_mm2"
                result[name][unit] = float(np.median(having))
        return result

    def _ignored(self, cases: list[CaseStatistics]) -> dict[str, float]:
        """The share of voxels that the labels ignore, if the data set declares a value for them."""
        if self.dataset is None or self.dataset.ignore is None:
            return {}
        ignored = sum(case.class_voxels.get(self.dataset.ignore, 0) for case in cases)
        return {"ignored_fraction": ignored / max(sum(sum(case.class_voxels.values()) for case in cases), 1)}


def examine(
    path: str | os.PathLike[str],
    *,
    level: Level = "voxels",
    read: ReadOptions = DEFAULTS,
    started: Callable[[int], None] | None = None,
    done: Callable[[], None] | None = None,
    visit: Callable[[CaseView], None] | None = None,
) -> Examination:
    """Check all that lies in a folder against the rules by which training reads it, and measure it.

    Other than `open_dataset` and training, this goes on after an error, so as to tell all of them at once.

    Args:
        path: a data set in a layout of `open_dataset`.
        level: 'header' reads the first bytes of each file, 'voxels' all, and measures.
        read: how to read images that can be interpreted in more than one way.
        started: called once with the number of cases.
        done: called after each case, from several threads.
        visit: called with each case whose voxels could be read, from several threads.

    Raises:
        DataError: the path does not exist.
    """
    root = Path(path)
    if not root.exists():
        raise DataError("does not exist", file=root)
    problems: list[MedunetError] = []
    try:
        dataset = open_dataset(root, problems=problems, read=read)
    except (DataError, GeometryError, SecurityError) as error:
        return Examination(root, [Finding.of(e, file=root) for e in [*problems, error]])
    if started is not None:
        started(len(dataset.cases) + len(dataset.test))
    result = survey(dataset, level=level, done=done, visit=visit)
    findings = [*result.findings, *split_patients(dataset.cases)]
    known = {(finding.file, finding.cause) for finding in findings}
    for problem in problems:
        finding = Finding.of(problem, file=root)
        if (finding.file, finding.cause) not in known:
            known.add((finding.file, finding.cause))
            findings.insert(0, finding)
    return Examination(root, findings, dataset, result.statistics)


def _spread(rows: list[tuple[int, ...]] | list[tuple[float, ...]]) -> dict[str, list[float]]:
    values = np.array(rows, dtype=np.float64)
    return {
        "smallest": values.min(axis=0).tolist(),
        "median": np.median(values, axis=0).tolist(),
        "largest": values.max(axis=0).tolist(),
    }


def _counted(words: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
