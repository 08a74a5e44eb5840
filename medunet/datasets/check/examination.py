"""All findings on a data set and a summary of it: what `medunet check` shows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
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
    """The result of `examine`."""

    root: Path
    findings: list[Finding]  # errors first
    dataset: SegmentationDataset | None = None  # None if the folder has no data set
    statistics: list[CaseStatistics] = field(default_factory=list)  # of cases with readable voxels

    @property
    def fails(self) -> bool:
        """Whether training would fail."""
        return any(finding.severity == "error" for finding in self.findings)

    def summary(self) -> dict[str, Any]:
        """Return figures of the training cases: counts, sizes, spacings, intensities and classes."""
        if self.dataset is None:
            return {}
        dataset = self.dataset
        training = [case for case in self.statistics if case.section == "training"]
        summary: dict[str, Any] = {
            "name": dataset.name,
            "cases": len(dataset.cases),
            "test_cases": len(dataset.test),
            "spatial_dims": dataset.spatial_dims,
            "channels": list(dataset.channels),
        }
        alike = [case for case in training if len(case.shape) == dataset.spatial_dims]
        if alike:
            summary["size"] = _spread([case.shape for case in alike])
            summary["spacing_mm"] = _spread([case.spacing_mm for case in alike])
            summary["orientations"] = dict(Counter(c.orientation for c in alike if c.orientation).most_common())
            summary["dtypes"] = dict(Counter(case.dtype for case in alike).most_common())
            summary["intensity"] = _intensity(alike, dataset.channels)
        labelled = [case for case in training if case.class_voxels]
        if labelled:
            summary["classes"] = _classes(labelled, dataset)
            if dataset.ignore is not None:
                ignored = sum(case.class_voxels.get(dataset.ignore, 0) for case in labelled)
                summary["ignored_fraction"] = ignored / max(sum(sum(c.class_voxels.values()) for c in labelled), 1)
        return summary

    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "root": str(self.root),
            "fails": self.fails,
            "findings": [finding.as_dict() for finding in self.findings],
            "summary": self.summary(),
            "cases": [case.as_dict() for case in self.statistics],
        }


def examine(
    path: str | os.PathLike[str],
    *,
    level: Level = "voxels",
    read: ReadOptions = DEFAULTS,
    started: Callable[[int], None] | None = None,
    done: Callable[[], None] | None = None,
    visit: Callable[[CaseView], None] | None = None,
) -> Examination:
    """Check everything in a folder and measure it. Unlike training, this continues after an error, to report all.

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
    findings, statistics = survey(dataset, level=level, done=done, visit=visit)
    findings += split_patients(dataset.cases)
    for finding in (Finding.of(problem, file=root) for problem in problems):
        if (finding.file, finding.cause) not in {(other.file, other.cause) for other in findings}:
            findings.insert(0, finding)
    return Examination(root, findings, dataset, statistics)


def _intensity(cases: Sequence[CaseStatistics], names: Sequence[str]) -> dict[str, dict[str, float]]:
    result = {}
    for index, name in enumerate(names):
        channel = [case.intensity[index] for case in cases if index < len(case.intensity)]
        if channel:
            middle = {key: float(np.median([getattr(c, key) for c in channel])) for key in ("low", "median", "high")}
            ends = {"minimum": min(c.minimum for c in channel), "maximum": max(c.maximum for c in channel)}
            result[name] = ends | middle
    return result


def _classes(labelled: Sequence[CaseStatistics], dataset: SegmentationDataset) -> dict[str, dict[str, float]]:
    total = sum(n for case in labelled for value, n in case.class_voxels.items() if value != dataset.ignore)
    result: dict[str, dict[str, float]] = {}
    for name, value in dataset.labels.items():
        voxels = [case.class_voxels.get(value, 0) for case in labelled]
        sizes = [n * case.voxel_size for n, case in zip(voxels, labelled, strict=True) if n]
        result[name] = {"value": value, "cases": len(sizes), "fraction": sum(voxels) / max(total, 1)}
        if sizes and all(case.orientation for case in labelled):
            unit = "median_ml" if len(labelled[0].shape) == 3 else "median_mm2"
            result[name][unit] = float(np.median(sizes))
    return result


def _spread(rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    values = np.array(rows, dtype=np.float64)
    ends = {"smallest": values.min(axis=0), "median": np.median(values, axis=0), "largest": values.max(axis=0)}
    return {name: row.tolist() for name, row in ends.items()}
