"""Whether a data set can be used: findings by severity, found before an hour of training is spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medunet.errors import DataError, GeometryError, MedunetError
from medunet.io import ReadRecord, read_header, read_volume

from .dataset import Case, SegmentationDataset
from .labels import label_values

Level = Literal["header", "voxels"]

CHECK_THREADS = 4
"""Files open at once; more gain nothing on two cores and one disk."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or unusual.

    Args:
        severity: 'error' when training would fail, 'warning' otherwise.
        file: the file it is about.
        cause: what is wrong.
        remedy: what the user can do.
        error: the typed error behind it, for `raise_on_error`.
    """

    severity: Literal["error", "warning"]
    file: str
    cause: str
    remedy: str | None = None
    error: MedunetError | None = None

    @classmethod
    def of(cls, error: MedunetError, *, file: Path) -> Finding:
        """The finding that an error makes."""
        values = [f"{w} {v}" for w, v in (("received", error.received), ("expected", error.expected)) if v is not None]
        cause = error.cause + (f" ({', '.join(values)})" if values else "")
        return cls("error", error.file or str(file), cause, error.remedy, error)


def check_pair(
    case: Case, labels: Mapping[str, int] | None = None, *, channels: int | None = None, level: Level = "header"
) -> list[Finding]:
    """Findings on one case: both files readable, and on one grid; with `level='voxels'` the values as well.

    Args:
        case: image and label.
        labels: name to value; other values in the label are an error (at level 'voxels').
        channels: number of channels of a volume with a fourth axis.
        level: 'header' reads the first bytes of each file, 'voxels' all.
    """
    return _check_case(case, labels, channels, level)[0]


def check_dataset(dataset: SegmentationDataset, *, level: Level = "header") -> list[Finding]:
    """Findings on all cases, errors first: each pair by `check_pair`, then all cases against their majority.

    Args:
        dataset: what `open_dataset` gives.
        level: as in `check_pair`; 'header' takes a few milliseconds a case.
    """
    channels = len(dataset.channels) if len(dataset.channels) > 1 else None
    allowed = dict(dataset.labels)
    if dataset.ignore is not None:
        allowed["ignore"] = dataset.ignore
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        results = list(pool.map(lambda case: _check_case(case, allowed, channels, level), dataset.cases))
    findings = [finding for found, _ in results for finding in found]
    records = [record for _, record in results if record is not None]
    findings += _unlike_majority(records, "number of axes", lambda r: len(r.geometry.shape))
    findings += _unlike_majority(records, "number of channels", lambda r: r.channels)
    return sorted(findings, key=lambda finding: finding.severity != "error")


def raise_on_error(findings: Iterable[Finding]) -> None:
    """Raise the first error among the findings, telling how many more there are.

    Raises:
        DataError: or a `GeometryError`, as the finding's.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    first = errors[0]
    more = f" (and {len(errors) - 1} more problems)" if len(errors) > 1 else ""
    kind = GeometryError if isinstance(first.error, GeometryError) else DataError
    raise kind(first.cause + more, file=first.file, remedy=first.remedy) from first.error


def _check_case(
    case: Case, labels: Mapping[str, int] | None, channels: int | None, level: Level
) -> tuple[list[Finding], ReadRecord | None]:
    findings: list[Finding] = []
    image: ReadRecord | None = None
    try:
        image = read_header(case.images, channels=channels)
        findings += [Finding("warning", str(case.images[0]), text) for text in image.warnings]
        if level == "voxels":
            read_volume(case.images, channels=channels)
    except MedunetError as error:
        findings.append(Finding.of(error, file=case.images[0]))
    if case.label is None:
        return findings, image
    try:
        label = read_header(case.label)
        if image is not None:
            _require_same_grid(image, label, case.label)
        if level == "voxels":
            values = label_values(case.label)
            unknown = sorted(set(values) - set(labels.values())) if labels else []
            if unknown:
                raise DataError(
                    "label has unknown values",
                    file=case.label,
                    received=unknown,
                    expected=sorted(labels.values()) if labels else None,
                    remedy="relabel, or name them in dataset.json",
                )
            if values == (0,):
                findings.append(Finding("warning", str(case.label), "label is empty"))
    except MedunetError as error:
        findings.append(Finding.of(error, file=case.label))
    return findings, image


def _require_same_grid(image: ReadRecord, label: ReadRecord, file: Path) -> None:
    if label.channels > 1:
        raise DataError("label has several channels", file=file, received=label.channels, expected=1)
    if label.geometry.shape != image.geometry.shape:
        raise DataError(
            "label and image have different shapes",
            file=file,
            received=label.geometry.shape,
            expected=image.geometry.shape,
            remedy=f"resample the label to {image.path.name}",
        )
    planar_formats = {"png", "bmp", "jpeg", "tiff"}
    if planar_formats & {image.format, label.format}:
        return  # without placement there is nothing to compare
    if not label.geometry.is_close(image.geometry):
        raise GeometryError(
            "label and image lie on different grids",
            file=file,
            received=f"{label.geometry.corner_distance_mm(image.geometry):.3g} mm apart at a corner",
            expected=f"the grid of {image.path.name}",
            remedy="resample the label to the image",
        )


def _unlike_majority(records: list[ReadRecord], what: str, measure: Callable[[ReadRecord], int]) -> list[Finding]:
    counts = Counter(measure(record) for record in records)
    if len(counts) < 2:
        return []
    usual = counts.most_common(1)[0][0]
    return [
        Finding("error", str(record.path), f"{what} is {measure(record)}, not {usual} as in most cases")
        for record in records
        if measure(record) != usual
    ]
