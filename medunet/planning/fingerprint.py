"""Summarise a data set in numbers, from which a plan is made."""

import contextlib
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from medunet.datasets import Case, CaseView, SegmentationDataset, check_pair, likely_groups
from medunet.datasets.check.objects import measure_objects, object_figures
from medunet.datasets.layouts.datalist import sample_cases
from medunet.datasets.layouts.orientation import orientation_words, side_pairs
from medunet.errors import DataError, MedunetError
from medunet.inferers import free_memory

from .adapt import grid_of
from .measure import CaseMeasure, MeasureCache, measure_case, short

logger = logging.getLogger(__name__)

MAX_JOBS = 8  # more readers only wait for the disk
LABEL_BYTES = 16  # per voxel, beside the image's float32: the label, its classes and masks, the sorted foreground
PERCENTILES = (0.5, 99.5)  # of the foreground's intensities, as nnU-Net has them

Kind = Literal["CT", "MR", "colour", "grey"]  # CT is normalised by the same numbers in all images, others per image

AIR_HU = -200.0  # whole numbers below this are CT: air is -1000, and MR has no negative values
LOWEST_HU = -4096.0  # CT values, including padding, have 12 bits
SHARE_OF_CASES = 0.9  # of the cases must look like CT; some may be cropped to soft tissue

_WORDS: dict[Kind, set[str]] = {
    "CT": {"ct", "cbct", "hu", "hounsfield"},
    "MR": {"mr", "mri", "t1", "t2", "t1w", "t2w", "t1c", "t1ce", "t1gd", "flair", "adc", "dwi", "pd", "swi", "tof"},
    "grey": {"pet", "suv", "spect", "us", "ultrasound", "oct", "xray", "dx", "cr", "em"},
}
_COLOUR_WORDS = {"r", "g", "b", "red", "green", "blue", "rgb"}


@dataclass(frozen=True)
class ChannelPrint:
    """Intensities of the foreground in one channel; each case that has foreground has the same weight."""

    name: str
    kind: str  # `CT`, `MR`, `colour` or `grey`
    reason: str  # how the kind was decided
    mean: float
    std: float
    low: float  # 0.5th percentile
    high: float  # 99.5th percentile


@dataclass(frozen=True)
class ClassPrint:
    """One foreground class over all cases."""

    name: str
    value: int  # its value in the label files
    cases: int  # number of cases that have it
    share: float  # its share of all annotated voxels
    median_voxels: float  # median number of voxels in these cases
    median_ml: float  # median volume in these cases; 0 for 2D images and files without positions
    thickness_mm: float  # median thickness in these cases (see `medunet.planning.measure.thickness`)


@dataclass(frozen=True)
class Fingerprint:
    """The numbers of a data set that planning needs. Axes of volumes are in RAS order."""

    name: str
    spatial_dims: int  # 2 or 3
    cases: tuple[str, ...]  # names of the measured cases
    shapes: tuple[tuple[int, ...], ...]  # voxels along each axis, per case
    crop_shapes: tuple[tuple[int, ...], ...]  # the same of the box around everything that is not 0
    body_shapes: tuple[tuple[int, ...], ...]  # the same of the box around everything that is not air, in CT
    spacings_mm: tuple[tuple[float, ...], ...]  # spacing along each axis, per case
    placed: bool  # whether the files store positions, so that spacings are distances
    channels: tuple[ChannelPrint, ...]
    classes: tuple[ClassPrint, ...]
    labels: dict[str, int]  # value by name, the background first
    ignore: int | None  # value of voxels without annotation
    foreground_share: float  # share of the foreground in the annotated voxels
    side_pairs: tuple[tuple[str, str], ...]  # labels that differ in left and right only
    orientation_words: dict[str, str]  # the word that a mirror makes wrong, by label name
    broken: dict[str, str]  # why a case could not be measured, by its name
    regions: dict[str, list[int]] = field(default_factory=dict)  # label values of classes that overlap, by name
    objects: dict[str, float] = field(default_factory=dict)  # figures of all objects, if the labels number objects
    polarity: tuple[float, float] = (0.0, 1.0)  # shares of 2D images: bright background; foreground contrasts with it

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the regions, or of the foreground classes."""
        return tuple(self.regions) or tuple(entry.name for entry in self.classes)

    @property
    def thinnest(self) -> ClassPrint | None:
        """The class with the smallest thickness."""
        present = [entry for entry in self.classes if entry.thickness_mm > 0]
        return min(present, key=lambda entry: entry.thickness_mm, default=None)

    @property
    def crop_share(self) -> float:
        """Median share of the image in the box around everything that is not 0."""
        return _share(self.crop_shapes, self.shapes)

    @property
    def body_share(self) -> float:
        """Median share of the image in the box around everything that is not air, in CT."""
        return _share(self.body_shapes, self.shapes)


def fingerprint(
    dataset: SegmentationDataset,
    *,
    jobs: int | None = None,
    cache: Path | None = None,
    started: Callable[[int], None] | None = None,
    done: Callable[[], None] | None = None,
) -> Fingerprint:
    """Measure all labelled cases in parallel. Cases that cannot be read are listed in `Fingerprint.broken`.

    Each measurement is stored immediately, so an interrupted call resumes and a second call reads no voxels.

    Args:
        dataset: Data set from `open_dataset`.
        jobs: Cases to measure simultaneously. Default: as many as processors and memory allow.
        cache: Folder that stores the measurements. Default: they are not stored.
        started: Called once with the number of cases.
        done: Called after each case, from several threads.

    Raises:
        DataError: No case can be measured, or none has foreground.
    """
    stored = MeasureCache(cache, dataset)

    def measure(case: Case) -> CaseMeasure | str:
        result: CaseMeasure | str | None = stored.get(case)
        if result is None:
            result = _measure(case, dataset)
            if isinstance(result, CaseMeasure):
                stored.put(case, result)
        if done is not None:
            done()
        return result

    if started is not None:
        started(len(dataset.cases))
    pool = ThreadPoolExecutor(jobs or _jobs(dataset))
    try:
        results = list(pool.map(measure, dataset.cases))
    finally:
        pool.shutdown(cancel_futures=True)
    stored.prune(dataset.cases)
    broken = {case.name: r for case, r in zip(dataset.cases, results, strict=True) if isinstance(r, str)}
    measures = [result for result in results if isinstance(result, CaseMeasure)]
    if not measures:
        received = next(iter(broken.values()), "no case")
        raise DataError("no case can be measured", file=dataset.root, received=received, remedy="see `medunet check`")
    background = next(iter(dataset.labels.values()))
    if not any(value != background for case in measures for value in case.class_voxels):
        raise DataError("all labels have background only: there is nothing to learn", file=dataset.root)
    for finding in likely_groups(dataset.cases, dataset.split):
        logger.warning("%s; %s", finding.cause, finding.remedy)
    return _summarise(dataset, measures, broken)


def _jobs(dataset: SegmentationDataset) -> int:
    """Return how many cases processors and memory allow simultaneously."""
    voxels = 1
    for case in sample_cases(dataset.cases):
        with contextlib.suppress(MedunetError):  # a case that cannot be read is reported when it is measured
            voxels = max(voxels, math.prod(grid_of(case, dataset).shape))
    needed = voxels * (4 * len(dataset.channels) + LABEL_BYTES)
    return int(min(MAX_JOBS, os.cpu_count() or 1, max(1, free_memory(torch.device("cpu")) // needed)))


def _measure(case: Case, dataset: SegmentationDataset) -> CaseMeasure | str:
    """Return the measurement, or why the case cannot be measured."""
    views: list[CaseView] = []
    labels = dataset.allowed_labels
    options: dict[str, Any] = {"read": dataset.read_options, "instances": dataset.instances}
    findings = check_pair(case, labels, level="voxels", visit=views.append, **options)
    if errors := [finding.cause for finding in findings if finding.severity == "error"]:
        return errors[0]
    view, label = views[0], views[0].label
    if label is None:
        return "no label"
    if view.image.ndim - 1 != dataset.spatial_dims or len(view.image) != len(dataset.channels):
        return f"{len(view.image)} channels and {view.image.ndim - 1} axes, unlike the other cases"
    background = next(iter(dataset.labels.values()))
    measure = measure_case(case.name, view.image, label, view.record, background=background, ignore=dataset.ignore)
    return measure if view.objects is None else replace(measure, objects=measure_objects(view.objects[0]))


def _summarise(dataset: SegmentationDataset, measures: list[CaseMeasure], broken: dict[str, str]) -> Fingerprint:
    background = next(iter(dataset.labels.values()))
    foreground = {name: value for name, value in dataset.labels.items() if value != background}
    classes = tuple(_class(name, value, measures, dataset) for name, value in foreground.items())
    # only the names matter here
    named = {region.name: index for index, region in enumerate(dataset.regions)} or dict(dataset.labels)
    return Fingerprint(
        name=dataset.name,
        spatial_dims=dataset.spatial_dims,
        cases=tuple(case.name for case in measures),
        shapes=tuple(case.shape for case in measures),
        crop_shapes=tuple(case.crop_shape for case in measures),
        body_shapes=tuple(case.body_shape for case in measures),
        spacings_mm=tuple(case.spacing_mm for case in measures),
        placed=all(case.placed for case in measures),
        channels=tuple(_channel(name, index, measures, dataset) for index, name in enumerate(dataset.channels)),
        classes=classes,
        labels=dict(dataset.labels),
        ignore=dataset.ignore,
        foreground_share=short(sum(entry.share for entry in classes)),
        side_pairs=tuple(side_pairs(named)),
        orientation_words=orientation_words(named),
        broken=broken,
        regions={region.name: list(region.values) for region in dataset.regions},
        objects=object_figures(figures) if (figures := [case.objects for case in measures if case.objects]) else {},
        polarity=tuple(
            np.mean([(bright, bright == dark) for bright, dark in (one.polarity for one in measures)], axis=0)
        ),
    )


def _class(name: str, value: int, measures: Sequence[CaseMeasure], dataset: SegmentationDataset) -> ClassPrint:
    having = [case for case in measures if case.class_voxels.get(value)]
    voxels = [case.class_voxels[value] for case in having]
    volumes = [n * math.prod(case.spacing_mm) / 1000 for n, case in zip(voxels, having, strict=True)]
    has_volume = dataset.spatial_dims == 3 and all(case.placed for case in measures)
    total = sum(sum(case.class_voxels.values()) for case in measures)
    thick = [case.class_thickness_mm[value] for case in having if case.class_thickness_mm[value] > 0]
    return ClassPrint(
        name=name,
        value=value,
        cases=len(having),
        share=short(sum(voxels) / total),
        median_voxels=_median(voxels),
        median_ml=short(_median(volumes)) if has_volume else 0.0,
        thickness_mm=short(_median(thick)),
    )


def _channel(name: str, index: int, measures: list[CaseMeasure], dataset: SegmentationDataset) -> ChannelPrint:
    kind, reason = _guess_modality(name, index, measures, spatial_dims=dataset.spatial_dims)
    background = next(iter(dataset.labels.values()))
    # without foreground the measures are those of the whole image, including air
    having = [case for case in measures if set(case.class_voxels) - {background}] or measures
    parts = [case.channels[index] for case in having]
    mean = float(np.mean([part.mean for part in parts]))
    variance = float(np.mean([part.std**2 + part.mean**2 for part in parts])) - mean**2  # within and between cases
    low, high = np.percentile(np.concatenate([part.sample for part in parts]), PERCENTILES)
    std = math.sqrt(max(variance, 0.0))
    return ChannelPrint(name, kind, reason, short(mean), short(std), short(float(low)), short(float(high)))


def _guess_modality(channel: str, index: int, cases: Sequence[CaseMeasure], *, spatial_dims: int) -> tuple[Kind, str]:
    """Return the kind of a channel and the reason: DICOM's modality, else the channel's name, else the values."""
    n_channels = max((len(case.channels) for case in cases), default=1)
    # with several channels the record describes only the first series
    codes = {case.modality for case in cases if case.modality} if n_channels == 1 else set()
    if codes == {"CT"} and all(case.modality for case in cases):
        return "CT", "the DICOM headers say CT"
    if codes:
        return "MR" if codes == {"MR"} else "grey", f"the DICOM headers say {', '.join(sorted(codes))}"
    words = set(re.findall(r"[a-z]+\d*[a-z]*", channel.lower().replace("_", " ")))
    for kind, names in _WORDS.items():
        if words & names:
            return kind, f"the channel is called '{channel}'"
    if spatial_dims == 2:
        is_colour = n_channels == 3 or bool(words & _COLOUR_WORDS)
        return "colour" if is_colour else "grey", f"2D images with {n_channels} channels"
    lowest = np.array([case.channels[index].minimum for case in cases if index < len(case.channels)])
    whole = np.array([case.whole_numbers for case in cases if index < len(case.channels)])
    is_like_ct = whole & (lowest <= AIR_HU) & (lowest >= LOWEST_HU)
    if len(is_like_ct) and is_like_ct.mean() >= SHARE_OF_CASES:
        return "CT", f"whole numbers down to {np.median(lowest):g} (median), like Hounsfield units"
    return "grey", f"neither a known name nor values like Hounsfield units (lowest value {np.median(lowest):g})"


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else 0.0


def _share(parts: Sequence[tuple[int, ...]], wholes: Sequence[tuple[int, ...]]) -> float:
    return float(np.median([math.prod(part) / math.prod(whole) for part, whole in zip(parts, wholes, strict=True)]))
