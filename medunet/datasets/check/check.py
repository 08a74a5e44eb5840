"""Checks of a data set before training: findings by severity, and a summary for `medunet check`."""

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from medunet.datasets.layouts.datalist import open_dataset
from medunet.datasets.layouts.dataset import Case, SegmentationDataset
from medunet.datasets.layouts.folds import likely_groups
from medunet.datasets.layouts.labels import MAX_LABELS, distinct_values, refuse_swapped
from medunet.datasets.layouts.splits import group_cases
from medunet.errors import DataError, GeometryError, MedunetError, SecurityError
from medunet.io import ReadRecord, is_structure_file, label_names, output_name, read_header, read_label, read_volume
from medunet.io.objects import Objects, object_numbers, read_classes
from medunet.io.options import DEFAULTS, ReadOptions
from medunet.notebook import Shown, Table

from .comparison import compare_cases, compare_records
from .finding import Finding, raise_on_error, shown
from .objects import ObjectFigures, check_objects, compare_objects, measure_objects, object_figures
from .statistics import CaseStatistics, Section, measure_case

logger = logging.getLogger(__name__)

Level = Literal["header", "voxels"]
Voxels = npt.NDArray[np.float32]

# cases read in parallel: decompression and sums release the interpreter's lock; each thread holds one case in memory
CHECK_THREADS = min(8, max(2, os.cpu_count() or 1))

SLICES = "give volumes only, or slices only, (x, y) or (x, y, 1)"


class CaseView(NamedTuple):
    """A case whose voxels could be read."""

    case: Case
    image: Voxels  # (C, *spatial)
    label: Voxels | None  # (1, *spatial), values of the classes
    record: ReadRecord  # of the image
    objects: Objects | None = None  # (1, *spatial), numbers of the objects if the label has them


def check_pair(
    case: Case,
    labels: Mapping[str, int] | None = None,
    *,
    read: ReadOptions = DEFAULTS,
    level: Level = "header",
    instances: bool = False,
    visit: Callable[[CaseView], None] | None = None,
) -> list[Finding]:
    """Return findings on one case: are both files readable and on one grid? Level 'voxels' also checks the values.

    Args:
        case: image and label.
        labels: value by name; at level 'voxels', other values in the label are an error.
        read: how to read the image.
        level: 'header' reads the first bytes of each file, 'voxels' all.
        instances: the label numbers objects, and `labels` has their classes.
        visit: called with the voxels if they could be read; the label is None if it has an error.
    """
    findings, _, view, _ = _check_case(case, labels, read, level, instances=instances)
    if visit is not None and view is not None:
        visit(view)
    return findings


def check_dataset(dataset: SegmentationDataset, *, level: Level = "header") -> list[Finding]:
    """Return findings on all labelled cases, errors first.

    Args:
        dataset: from `open_dataset`.
        level: 'header' reads the first bytes of each file, a few milliseconds per case; 'voxels' all.
    """
    return survey(dataclasses.replace(dataset, test=()), level=level)[0]


def usable(dataset: SegmentationDataset, problems: Sequence[MedunetError]) -> tuple[SegmentationDataset, list[str]]:
    """Return the data set without the cases that cannot be used, and the names of those.

    Args:
        dataset: from `open_dataset`.
        problems: what `open_dataset` has collected.

    Raises:
        DataError: no case is left, or an error is not about a single case.
    """
    findings = [finding for finding in check_dataset(dataset, level="voxels") if finding.severity == "error"]
    raise_on_error(finding for finding in findings if not finding.case)
    reasons = {finding.case: finding.cause for finding in reversed(findings)}
    names = {case.name for case in dataset.cases}
    for problem in problems:
        if (name := output_name(problem.file or "unknown")) not in names:
            raise problem  # folds follow from the list of cases
        reasons.setdefault(name, problem.cause)
    if reasons:
        listed = shown([f"{name}: {cause}" for name, cause in reasons.items()], separator="; ")
        logger.warning("%d cases are left out: %s", len(reasons), listed)
    cases = tuple(case for case in dataset.cases if case.name not in reasons)
    if not cases:
        raise_on_error(findings)
        raise DataError("no case can be used", file=dataset.root)
    return dataclasses.replace(dataset, cases=cases), sorted(reasons)


def survey(
    dataset: SegmentationDataset,
    *,
    level: Level = "voxels",
    done: Callable[[], None] | None = None,
    visit: Callable[[CaseView], None] | None = None,
) -> tuple[list[Finding], list[CaseStatistics]]:
    """Check all cases in parallel, individually and against each other; return findings and statistics.

    An error in a test case becomes a warning, because training does not need it. `done` is called after each case.
    """

    def check(case: Case, section: Section) -> tuple[list[Finding], ReadRecord | None, CaseStatistics | None]:
        instances, read = dataset.instances, dataset.read_options
        findings, record, view, objects = _check_case(case, dataset.allowed_labels, read, level, instances=instances)
        statistics = None
        if view is not None:
            if visit is not None:
                visit(view)
            file = case.images[0]
            statistics = measure_case(case.name, view.image, view.record, view.label, file=file, section=section)
            statistics = dataclasses.replace(statistics, objects=objects)
        if done is not None:
            done()
        return findings, record, statistics

    sections = cast("list[Section]", ["training"] * len(dataset.cases) + ["test"] * len(dataset.test))
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        results = list(pool.map(check, (*dataset.cases, *dataset.test), sections))
    training, test = results[: len(dataset.cases)], results[len(dataset.cases) :]
    findings = [finding for own, _, _ in training for finding in own]
    findings += [dataclasses.replace(finding, severity="warning") for own, _, _ in test for finding in own]
    findings += compare_records([record for _, record, _ in training if record is not None])
    statistics = [figures for _, _, figures in results if figures is not None]
    findings += compare_cases(statistics, dataset.labels, ignore=dataset.ignore, groups=dataset.groups)
    findings += compare_objects([figures.objects for figures in statistics if figures.objects is not None])
    return sorted(findings, key=lambda finding: finding.severity != "error"), statistics


def _check_case(
    case: Case, labels: Mapping[str, int] | None, read: ReadOptions, level: Level, *, instances: bool
) -> tuple[list[Finding], ReadRecord | None, CaseView | None, ObjectFigures | None]:
    findings: list[Finding] = []
    record: ReadRecord | None = None
    image = label = numbers = objects = None
    file = case.images[0]
    try:
        if level == "voxels":
            volume = read_volume(case.images, **dataclasses.asdict(read))
            image, record = volume.image.numpy(), volume.record
        else:
            record = read_header(case.images, **dataclasses.asdict(read))
        findings += [Finding("warning", str(file), text, case=case.name) for text in record.warnings]
        if len(record.geometry.shape) == 3 and min(record.geometry.shape) == 1:
            cause = f"single slice where a volume is needed (received {record.geometry.shape})"
            findings.append(Finding("error", str(file), cause, SLICES, case=case.name))
    except MedunetError as error:
        findings.append(Finding.of(error, file=file, case=case.name))
    try:
        label, warnings = _check_label(case, record, labels, level, instances=instances)
        findings += warnings
        if instances and label is not None and case.label is not None:
            numbers = label
            label, objects, warnings = _check_numbers(case, case.label, numbers, labels or {})
            findings += warnings
    except MedunetError as error:
        reason = error
        try:
            if image is not None and case.label is not None and labels and not instances:
                refuse_swapped(image, file, case.label, labels.values())
        except DataError as swapped:
            reason = swapped
        findings.append(Finding.of(reason, file=case.label or file, case=case.name))
    view = None if image is None or record is None else CaseView(case, image, label, record, numbers)
    return findings, record, view, objects


def _check_label(
    case: Case, image: ReadRecord | None, labels: Mapping[str, int] | None, level: Level, *, instances: bool
) -> tuple[Any, list[Finding]]:
    """Return the label's voxels or its object numbers (at level 'voxels'), and warnings."""
    file = case.label
    if file is None:
        return None, []
    structures = is_structure_file(file)
    spatial_dims = 2 if image is not None and len(image.geometry.shape) == 2 else None
    if structures and (level == "header" or image is None):
        label_names(file)  # structures have no grid of their own: only the header can be read
        return None, []
    if structures and image is not None:
        volume = read_label(file, reference=image.geometry, labels=labels)
    elif level == "voxels":
        volume = read_volume(file, spatial_dims=spatial_dims)
    else:
        _require_same_grid(image, read_header(file, spatial_dims=spatial_dims), case)
        return None, []
    record, voxels = volume.record, volume.image.numpy()
    _require_same_grid(image, record, case)
    if instances:
        voxels = object_numbers(voxels, file)
    findings = [Finding("warning", str(file), text, case=case.name) for text in record.warnings]
    if "float" in record.dtype:
        cause = f"label is stored as {record.dtype}, though its values are whole"
        remedy = f"save it as {'uint16 or int32' if instances else 'uint8'}"
        findings.append(Finding("warning", str(file), cause, remedy, case=case.name))
    if instances:
        return voxels, findings
    values = distinct_values(voxels, file, limit=max(MAX_LABELS, len(labels or ())))
    if labels and (unknown := sorted(set(values) - set(labels.values()))):
        expected = sorted(labels.values())
        remedy = "relabel, name them in dataset.json, or pass --instances if they number objects"
        raise DataError("label has unknown values", file=file, received=unknown, expected=expected, remedy=remedy)
    if values == (0,):
        findings.append(Finding("warning", str(file), "label is empty", case=case.name))
    return voxels, findings


def _check_numbers(
    case: Case, file: Path, numbers: Objects, labels: Mapping[str, int]
) -> tuple[Voxels, ObjectFigures, list[Finding]]:
    """Return the values of the objects' classes, figures of the objects, and warnings."""
    values = np.array(list(labels.values()) or [0, 1], np.float32)
    if case.classes is not None and len(labels) > 2:
        indices = read_classes(numbers, case.classes, labels, case=case.name)
    else:
        indices = (numbers > 0).astype(np.int32)
    figures = measure_objects(numbers[0])
    return values[indices], figures, check_objects(figures, numbers, file=file, case=case.name)


def _require_same_grid(image: ReadRecord | None, label: ReadRecord, case: Case) -> None:
    if label.channels > 1:
        raise DataError("label has several channels", file=case.label, received=label.channels, expected=1)
    if image is None:
        return
    if label.geometry.shape != image.geometry.shape:
        cause, shape = "label and image have different shapes", image.geometry.shape
        remedy = "save the label at the size of its image"
        raise DataError(cause, file=case.label, received=label.geometry.shape, expected=shape, remedy=remedy)
    if not label.is_on_grid_of(image):
        distance = f"{label.geometry.corner_distance_mm(image.geometry):.3g} mm apart at a corner"
        cause, grid = "label and image have different grids", f"the grid of {image.path.name}"
        raise GeometryError(cause, file=case.label, received=distance, expected=grid, remedy="resample the label to it")


@dataclass(frozen=True, repr=False)
class Examination(Shown):
    """The result of `examine`."""

    root: Path
    findings: list[Finding]  # errors first
    dataset: SegmentationDataset | None = None  # None if the folder has no data set
    statistics: list[CaseStatistics] = field(default_factory=list)  # of cases with readable voxels

    @property
    def fails(self) -> bool:
        """Whether training would fail."""
        return any(finding.severity == "error" for finding in self.findings)

    def _table(self) -> Table:
        cases = 0 if self.dataset is None else len(self.dataset.cases)
        title = f"{self.root}: {cases} cases, {'training would fail' if self.fails else 'training can start'}"
        rows = [(finding.severity, finding.case, finding.cause, finding.remedy or "") for finding in self.findings]
        return title, [("finding", "case", "cause", "remedy"), *rows]

    def summary(self) -> dict[str, Any]:
        """Return statistics of the training cases: counts, sizes, spacings, intensities and classes."""
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
            summary["intensity"] = _intensity_figures(alike, dataset.channels)
        labelled = [case for case in training if case.class_voxels]
        if labelled:
            if dataset.instances:
                has_scale = all(case.orientation or set(case.spacing_mm) != {1.0} for case in labelled)
                spacings = [case.spacing_mm for case in labelled] if has_scale else []
                summary["objects"] = object_figures([c.objects for c in labelled if c.objects is not None], spacings)
            summary["classes"] = _class_figures(labelled, dataset)
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
    instances: bool = False,
    group_by: str | None = None,
    read: ReadOptions = DEFAULTS,
    started: Callable[[int], None] | None = None,
    done: Callable[[], None] | None = None,
    visit: Callable[[CaseView], None] | None = None,
) -> Examination:
    """Check everything in a folder and measure it. Unlike training, this continues after an error.

    Args:
        path: a data set in a layout of `open_dataset`.
        level: 'header' reads the first bytes of each file, 'voxels' all, and measures.
        instances: the labels number objects, whether or not `dataset.json` declares it.
        group_by: regular expression; its first group in a case's name is the patient, which folds do not divide.
        read: how to read images that can be interpreted in more than one way.
        started: called once with the number of cases.
        done: called after each case, from several threads.
        visit: called with each case whose voxels could be read, from several threads.

    Raises:
        DataError: the path does not exist.
        ConfigError: the pattern does not fit the cases.
    """
    root = Path(path)
    if not root.exists():
        raise DataError("does not exist", file=root)
    problems: list[MedunetError] = []
    try:
        dataset = open_dataset(root, problems=problems, instances=instances, read=read)
    except (DataError, GeometryError, SecurityError) as error:
        return Examination(root, [Finding.of(e, file=root) for e in [*problems, error]])
    if group_by is not None:
        dataset = dataclasses.replace(dataset, cases=group_cases(dataset.cases, group_by))
    if started is not None:
        started(len(dataset.cases) + len(dataset.test))
    findings, statistics = survey(dataset, level=level, done=done, visit=visit)
    findings += likely_groups(dataset.cases)
    for finding in (Finding.of(problem, file=root) for problem in problems):
        if (finding.file, finding.cause) not in {(other.file, other.cause) for other in findings}:
            findings.insert(0, finding)
    return Examination(root, findings, dataset, statistics)


def _intensity_figures(cases: Sequence[CaseStatistics], names: Sequence[str]) -> dict[str, dict[str, float]]:
    result = {}
    for index, name in enumerate(names):
        channel = [case.intensity[index] for case in cases if index < len(case.intensity)]
        if channel:
            middle = {key: float(np.median([getattr(c, key) for c in channel])) for key in ("low", "median", "high")}
            ends = {"minimum": min(c.minimum for c in channel), "maximum": max(c.maximum for c in channel)}
            result[name] = ends | middle
    return result


def _class_figures(labelled: Sequence[CaseStatistics], dataset: SegmentationDataset) -> dict[str, dict[str, float]]:
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
