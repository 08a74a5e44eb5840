"""Whether a data set can be used: findings by severity, found before an hour of training is spent."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from medunet.datasets.layouts.dataset import Case, SegmentationDataset
from medunet.datasets.layouts.values import MAX_LABELS, distinct_values, refuse_swapped
from medunet.errors import DataError, GeometryError, MedunetError
from medunet.io import ReadRecord, is_structure_file, label_names, read_header, read_label, read_volume
from medunet.io.options import DEFAULTS, ReadOptions

from .comparison import compare_cases, compare_records
from .finding import Finding
from .statistics import CaseStatistics, measure_case

Level = Literal["header", "voxels"]
Section = Literal["training", "test"]

CHECK_THREADS = min(8, max(2, os.cpu_count() or 1))
"""Cases read at once. Decompression and sums release the interpreter's lock; each thread holds one case in memory."""


class CaseView(NamedTuple):
    """What a visitor of `survey` gets of each case that could be read.

    Args:
        case: which.
        image: ``(C, *spatial)``.
        label: ``(1, *spatial)``, or None.
        record: of the image.
    """

    case: Case
    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.float32] | None
    record: ReadRecord


@dataclass(frozen=True)
class Survey:
    """Findings on a data set, errors first, and figures of the cases that could be read to the last voxel."""

    findings: list[Finding]
    statistics: list[CaseStatistics]


def check_pair(
    case: Case,
    labels: Mapping[str, int] | None = None,
    *,
    read: ReadOptions = DEFAULTS,
    level: Level = "header",
    visit: Callable[[CaseView], None] | None = None,
) -> list[Finding]:
    """Findings on one case: both files readable, and on one grid; with `level='voxels'` the values as well.

    Args:
        case: image and label.
        labels: name to value; other values in the label are an error (at level 'voxels').
        read: how to read the image.
        level: 'header' reads the first bytes of each file, 'voxels' all.
        visit: called with the voxels, where they could be read; with findings of severity 'error' the label is None.
    """
    return _check_case(case, labels, read, level, visit=visit, measure=False).findings


def check_dataset(dataset: SegmentationDataset, *, level: Level = "header") -> list[Finding]:
    """Findings on all labelled cases, errors first: each pair by `check_pair`, then all cases against their majority.

    Args:
        dataset: what `open_dataset` gives.
        level: as in `check_pair`; 'header' takes a few milliseconds a case.
    """
    return survey(dataclasses.replace(dataset, test=()), level=level).findings


def survey(
    dataset: SegmentationDataset,
    *,
    level: Level = "voxels",
    done: Callable[[], None] | None = None,
    visit: Callable[[CaseView], None] | None = None,
) -> Survey:
    """Check training and test cases in parallel, each by itself and all against each other.

    What is wrong with a test case is a warning: training does not need it.

    Args:
        dataset: what `open_dataset` gives.
        level: 'header' reads the first bytes of each file, 'voxels' all, and measures.
        done: called after each case, from several threads.
        visit: called with each case whose voxels could be read, from several threads.
    """
    read = dataset.read_options
    allowed = dict(dataset.labels)
    if dataset.ignore is not None:
        allowed["ignore"] = dataset.ignore

    def check(item: tuple[Case, Section]) -> _Result:
        case, section = item
        result = _check_case(case, allowed, read, level, section=section, visit=visit)
        if done is not None:
            done()
        return result

    sections: list[tuple[Case, Section]] = [(case, "training") for case in dataset.cases]
    sections += [(case, "test") for case in dataset.test]
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        results = list(pool.map(check, sections))
    findings: list[Finding] = []
    for (_, section), result in zip(sections, results, strict=True):
        lower = section == "test"
        findings += [dataclasses.replace(f, severity="warning") if lower else f for f in result.findings]
    training = zip(sections, results, strict=True)
    findings += compare_records([r.record for (_, s), r in training if r.record is not None and s == "training"])
    statistics = [result.statistics for result in results if result.statistics is not None]
    images = {case.name if section == "training" else f"test/{case.name}": case.images[0] for case, section in sections}
    findings += compare_cases(statistics, dataset.labels, images=images, ignore=dataset.ignore)
    return Survey(sorted(findings, key=lambda finding: finding.severity != "error"), statistics)


SLICES = "give volumes, or slices only, (x, y) or (x, y, 1): then the data set is one of images in the plane"
"""What helps where a file is a slice that says it is a volume."""


class _Result(NamedTuple):
    findings: list[Finding]
    record: ReadRecord | None
    statistics: CaseStatistics | None


def _check_case(
    case: Case,
    labels: Mapping[str, int] | None,
    read: ReadOptions,
    level: Level,
    *,
    section: Section = "training",
    visit: Callable[[CaseView], None] | None = None,
    measure: bool = True,
) -> _Result:
    findings: list[Finding] = []
    record: ReadRecord | None = None
    image = label = None
    try:
        if level == "voxels":
            volume = read_volume(case.images, **dataclasses.asdict(read))
            image, record = volume.image.numpy(), volume.record
        else:
            record = read_header(case.images, **dataclasses.asdict(read))
        findings += [Finding("warning", str(case.images[0]), text, case=case.name) for text in record.warnings]
        if len(record.geometry.shape) == 3 and min(record.geometry.shape) == 1:
            cause = f"single slice where a volume is needed (received {record.geometry.shape})"
            findings.append(Finding("error", str(case.images[0]), cause, SLICES, case=case.name))
    except MedunetError as error:
        findings.append(Finding.of(error, file=case.images[0], case=case.name))
    if case.label is not None:
        try:
            label, found = _check_label(case, case.label, record, labels, level)
            findings += found
        except MedunetError as error:
            findings.append(Finding.of(_cause(error, image, case, labels), file=case.label, case=case.name))
    if image is None or record is None:
        return _Result(findings, record, None)
    if visit is not None:
        visit(CaseView(case, image, label, record))
    if not measure:
        return _Result(findings, record, None)
    return _Result(findings, record, measure_case(case.name, image, record, label, section=section))


def _cause(
    error: MedunetError, image: npt.NDArray[np.float32] | None, case: Case, labels: Mapping[str, int] | None
) -> MedunetError:
    """The error of a label, or the one that explains it: image and label are swapped."""
    try:
        if image is not None and case.label is not None and labels:
            refuse_swapped(image, case.images[0], case.label, labels.values())
    except DataError as swapped:
        return swapped
    return error


def _check_label(
    case: Case, file: Path, image: ReadRecord | None, labels: Mapping[str, int] | None, level: Level
) -> tuple[npt.NDArray[np.float32] | None, list[Finding]]:
    """The label's voxels (at level 'voxels') and what is unusual; raises what is wrong."""
    structures = is_structure_file(file)
    spatial_dims = 2 if image is not None and len(image.geometry.shape) == 2 else None
    if structures and (level == "header" or image is None):
        label_names(file)  # what it holds has no grid of its own: only the header can be read
        return None, []
    if structures and image is not None:
        volume = read_label(file, reference=image.geometry, labels=labels)
    elif level == "voxels":
        volume = read_volume(file, spatial_dims=spatial_dims)
    else:
        _require_same_grid(image, read_header(file, spatial_dims=spatial_dims), file)
        return None, []
    record, voxels = volume.record, volume.image.numpy()
    _require_same_grid(image, record, file)
    values = distinct_values(voxels, file, limit=max(MAX_LABELS, len(labels or ())))
    unknown = sorted(set(values) - set(labels.values())) if labels else []
    if unknown:
        raise DataError(
            "label has unknown values",
            file=file,
            received=unknown,
            expected=sorted(labels.values()) if labels else None,
            remedy="relabel, or name them in dataset.json",
        )
    findings = [Finding("warning", str(file), text, case=case.name) for text in record.warnings]
    if "float" in record.dtype:
        cause = f"label is stored as {record.dtype}, though its values are whole"
        findings.append(Finding("warning", str(file), cause, "save it as uint8", case=case.name))
    if values == (0,):
        findings.append(Finding("warning", str(file), "label is empty", case=case.name))
    return voxels, findings


def _require_same_grid(image: ReadRecord | None, label: ReadRecord, file: Path) -> None:
    if label.channels > 1:
        raise DataError("label has several channels", file=file, received=label.channels, expected=1)
    if image is None:
        return
    if label.geometry.shape != image.geometry.shape:
        raise DataError(
            "label and image have different shapes",
            file=file,
            received=label.geometry.shape,
            expected=image.geometry.shape,
            remedy=f"resample the label to {image.path.name}",
        )
    if not label.is_on_grid_of(image):
        raise GeometryError(
            "label and image lie on different grids",
            file=file,
            received=f"{label.geometry.corner_distance_mm(image.geometry):.3g} mm apart at a corner",
            expected=f"the grid of {image.path.name}",
            remedy="resample the label to the image",
        )
