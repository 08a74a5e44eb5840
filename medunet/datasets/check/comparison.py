"""Checks across cases: duplicates, leaks into the test set, mirrored and unusual cases."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy.sparse.csgraph import connected_components

from medunet.datasets.layouts.folds import divided_patients
from medunet.datasets.layouts.orientation import side_pairs
from medunet.io import ReadRecord
from medunet.io.reader import COLOURS

from .finding import Finding, shown
from .statistics import CaseStatistics

MIN_SIDE_MM = 10.0  # smallest distance from the middle, or between two centres, that counts as a side
SIDE_MAJORITY = 0.9  # of the cases must agree on a side before the others are called mirrored
MIN_CASES = 5  # with fewer cases there is no majority to differ from
SPACING_FACTOR = 5.0  # a spacing that differs more from the median is likelier a wrong header than another protocol
NEARLY_IDENTICAL = 0.995  # correlation of thumbnails; in 7 public data sets, that of different images is below 0.989
INTENSITY_FACTOR = 50.0  # ranges of intensity differ between scanners, but not by this factor


def compare_records(records: Sequence[ReadRecord]) -> list[Finding]:
    """Return cases whose number of axes or channels differs from that of the majority."""
    findings = []
    axes, channels = [len(record.geometry.shape) for record in records], [record.channels for record in records]
    remedies = {"channels": 'convert them; or declare colour in dataset.json: "channel_names" with three entries'}
    for what, numbers in (("axes", axes), ("channels", channels)):
        usual = max(numbers, key=numbers.count, default=0)
        remedy = remedies.get(what) if usual == 1 and COLOURS in numbers else None
        findings += [
            Finding("error", str(record.path), f"number of {what} is {number}, not {usual} as in most cases", remedy)
            for record, number in zip(records, numbers, strict=True)
            if number != usual
        ]
    return findings


def compare_cases(
    cases: Sequence[CaseStatistics],
    labels: Mapping[str, int],
    *,
    ignore: int | None = None,
    groups: Mapping[str, str] | None = None,
) -> list[Finding]:
    """Return findings that need all cases; `labels` is value by name, background first, `groups` are declared ones."""
    training = [case for case in cases if case.section == "training"]
    findings = [*_duplicates(cases), *_classes(training, labels, ignore), *_mirrored(training, labels, ignore)]
    return [*findings, *_unlike(cases), *_nearly_identical(cases, groups or {})]


def _warning(case: CaseStatistics, cause: str, remedy: str | None = None) -> Finding:
    return Finding("warning", str(case.file), cause, remedy)


def _duplicates(cases: Sequence[CaseStatistics]) -> list[Finding]:
    findings = []
    groups: dict[str, list[CaseStatistics]] = defaultdict(list)
    for case in cases:
        groups[case.image_digest].append(case)
    for group in groups.values():
        first = next((case for case in group if case.section == "training"), group[0])
        for case in (other for other in group if other is not first):
            if case.section != first.section:
                cause = f"test image is the training image {first.name}: metrics will be too good"
                findings.append(_warning(case, cause, "remove it from one of the two"))
                continue
            both = case.label_digest and first.label_digest
            labels = ", with another label" if both and case.label_digest != first.label_digest else ""
            remedy = 'keep one, or declare both one group ("groups" in dataset.json): folds separate them'
            findings.append(_warning(case, f"same image as {first.name}{labels}", remedy))
    owners: dict[str, CaseStatistics] = {}
    for case in cases:
        if not any(number for value, number in case.class_voxels.items() if value):
            continue  # empty labels of one shape are equal
        first = owners.setdefault(case.label_digest, case)
        if first is not case and first.image_digest != case.image_digest:
            cause = f"same label as {first.name}, but another image"
            findings.append(_warning(case, cause, "check which image it was drawn on"))
    return findings


def _nearly_identical(cases: Sequence[CaseStatistics], groups: Mapping[str, str]) -> list[Finding]:
    """Return one warning about training images, and one about test images, that nearly equal a training image."""
    length = max((len(case.thumbnail) for case in cases), default=0)
    cases = [case for case in cases if case.thumbnail and len(case.thumbnail) == length]  # other axes are an error
    digests = np.array([case.image_digest for case in cases])
    thumbnails = np.array([case.thumbnail for case in cases], np.float32).reshape(len(cases), length)
    alike = thumbnails @ thumbnails.T > NEARLY_IDENTICAL
    alike &= digests[:, None] != digests[None]  # equal ones are reported already
    is_test = np.array([case.section == "test" for case in cases], dtype=bool)
    leaked = [cases[index].name for index in np.flatnonzero(is_test & alike[:, ~is_test].any(axis=1))]
    findings = []
    if leaked:
        cause = f"test images nearly equal training images: {shown(leaked)}"
        findings.append(Finding("warning", "", f"{cause}; metrics will be too good", "remove them from one of the two"))
    training = [case.name for case in cases if case.section == "training"]
    _, numbers = connected_components(alike[np.ix_(~is_test, ~is_test)], directed=False)
    owners, unit = dict(zip(training, numbers.tolist(), strict=True)), {name: name for name in training} | {**groups}
    return findings + divided_patients("images are nearly identical", owners, unit)


def _classes(training: Sequence[CaseStatistics], labels: Mapping[str, int], ignore: int | None) -> list[Finding]:
    labelled = [case.class_voxels for case in training if case.class_voxels]
    if not labelled:
        return []
    background = next(iter(labels.values()), 0)
    if not set().union(*labelled) - {background, ignore}:
        return [Finding("error", "", "all labels have background only: there is nothing to learn")]
    findings = []
    for name, value in labels.items():
        having = sum(1 for case in training if case.class_voxels.get(value))
        if having == 0:
            remedy = "remove it from the labels, or add cases that show it"
            findings.append(Finding("warning", "", f"class '{name}' ({value}) occurs in no training case", remedy))
        elif having == 1 and len(training) > 1:
            remedy = "the fold that validates it cannot learn it"
            findings.append(Finding("warning", "", f"class '{name}' ({value}) occurs in one case only", remedy))
    return findings


def _mirrored(training: Sequence[CaseStatistics], labels: Mapping[str, int], ignore: int | None) -> list[Finding]:
    """Return cases whose left and right contradict the label names, or almost all other cases."""
    names = {value: name for name, value in labels.items() if value != ignore}
    by_name = {name: value for value, name in names.items()}
    named = [(by_name[left], by_name[right]) for left, right in side_pairs(by_name)]
    findings: dict[str, Finding] = {}  # one per case
    for left, right in named:
        for case in training:
            if (offset := _between(case, right, left)) is not None and offset < -MIN_SIDE_MM:
                cause = f"'{names[left]}' is to the patient's right of '{names[right]}'"
                remedy = "check the orientation in the header, and the two names"
                findings.setdefault(case.name, _warning(case, cause, remedy))
    values = [value for value in names if value != min(names, default=0)]
    pairs: list[tuple[int, int | None]] = [*combinations(values, 2), *((value, None) for value in values)]
    for value, other in pairs:
        if (value, other) in named or (other, value) in named:
            continue
        offsets = [(case, _between(case, value, other)) for case in training]
        clear = [(case, offset) for case, offset in offsets if offset is not None and abs(offset) > MIN_SIDE_MM]
        right_sided = sum(offset > 0 for _, offset in clear)
        majority = max(right_sided, len(clear) - right_sided)
        if len(clear) < MIN_CASES or majority < SIDE_MAJORITY * len(clear):
            continue
        partner = "the middle" if other is None else f"'{names[other]}'"
        for case, offset in clear:
            if (offset > 0) != (right_sided == majority):
                side, elsewhere = ("right", "left") if offset > 0 else ("left", "right")
                cause = f"'{names[value]}' is to the {side} of {partner}, to the {elsewhere} in {majority} other cases"
                remedy = "check whether the image or the label is mirrored"
                findings.setdefault(case.name, _warning(case, cause, remedy))
    return list(findings.values())


def _between(case: CaseStatistics, value: int, other: int | None) -> float | None:
    """Return how far a class is to the right of another one, or of the image's middle, in mm."""
    if value not in case.class_right_mm or (other is not None and other not in case.class_right_mm):
        return None
    return case.class_right_mm[value] - (0.0 if other is None else case.class_right_mm[other])


def _unlike(cases: Sequence[CaseStatistics]) -> list[Finding]:
    findings = []
    if len(cases) >= MIN_CASES:
        dims = Counter(len(case.shape) for case in cases).most_common(1)[0][0]
        usual_spacing = np.median([case.spacing_mm for case in cases if len(case.shape) == dims], axis=0)
        ranges = [max(channel.high - channel.low for channel in case.intensity) for case in cases]
        usual_range = float(np.median(ranges))
        for case, size in zip(cases, ranges, strict=True):
            if len(case.shape) == dims:
                # sorted: the same grid may be stored with its axes in another order
                ratio = np.sort(case.spacing_mm) / np.sort(usual_spacing)
                if max(ratio.max(), 1 / ratio.min()) > SPACING_FACTOR:
                    spacing, usual = (" x ".join(f"{v:.3g}" for v in row) for row in (case.spacing_mm, usual_spacing))
                    cause = f"spacing {spacing} mm is far from the median {usual} mm"
                    findings.append(_warning(case, cause, "check the header"))
            if usual_range > 0 and size > 0 and abs(np.log(size / usual_range)) > np.log(INTENSITY_FACTOR):
                cause = f"intensities span {size:.3g}, {usual_range:.3g} in the median case"
                findings.append(_warning(case, cause, "check the units, or normalise each image"))
    constant = [case for case in cases if all(channel.minimum == channel.maximum for channel in case.intensity)]
    return findings + [_warning(case, "image has one intensity only") for case in constant]
