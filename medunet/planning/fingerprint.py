"""A data set in numbers: all that a plan is made from."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medunet.datasets import Case, CaseView, SegmentationDataset, check_pair, split_patients
from medunet.errors import DataError, MedunetError
from medunet.inferers import free_memory
from medunet.io import read_header

from .adapt import MAX_HEADERS
from .cache import MeasureCache
from .measure import CaseMeasure, measure_case
from .modality import guess_modality
from .orientation import orientation_words, side_pairs

logger = logging.getLogger(__name__)

MAX_JOBS = 8
"""More readers at once only wait for the disk."""

LABEL_BYTES = 16
"""Bytes a voxel beside the image's float32: the label as read and as classes, masks, the sorted foreground."""

PERCENTILES = (0.5, 99.5)
"""Ends of the foreground's intensities, as nnU-Net takes them."""


@dataclass(frozen=True)
class ChannelPrint:
    """One channel over all cases; intensities under any foreground label, each case that has some counting the same.

    Args:
        name: of the channel.
        kind: 'CT', 'MR', 'colour' or 'grey'.
        reason: how the kind was decided.
        mean: of the foreground.
        std: of the foreground.
        low: 0.5th percentile of the foreground.
        high: 99.5th percentile.
    """

    name: str
    kind: str
    reason: str
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassPrint:
    """One foreground class over all cases.

    Args:
        name: of the class.
        value: in the label files.
        cases: how many have it.
        share: of all voxels with annotation.
        median_voxels: in the cases that have it.
        median_ml: its volume there; 0 in the plane, and where the files know no placement.
        thickness_mm: median of twice its volume over its surface (see `medunet.planning.measure.thickness`).
    """

    name: str
    value: int
    cases: int
    share: float
    median_voxels: float
    median_ml: float
    thickness_mm: float


@dataclass(frozen=True)
class Fingerprint:
    """What planning knows of a data set. Axes of volumes are in RAS order.

    Args:
        name: of the data set.
        spatial_dims: 2 or 3.
        cases: names of those that were measured.
        shapes: voxels along each axis, by case.
        crop_shapes: the same of the box around all that is not 0.
        body_shapes: the same of the box around all that is not air, where the images are CT.
        spacings_mm: by case.
        placed: whether the files know where voxels lie, so that spacings are distances.
        channels: of the images.
        classes: foreground classes.
        labels: name to value, background first.
        ignore: value of voxels without annotation.
        foreground_share: of the voxels with annotation.
        side_pairs: labels that differ in left and right only.
        orientation_words: label name to the word in it that a mirror would falsify.
        broken: cases that could not be measured, with the cause.
        regions: name to label values of classes that overlap; without them the classes are the network's.
    """

    name: str
    spatial_dims: int
    cases: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    crop_shapes: tuple[tuple[int, ...], ...]
    body_shapes: tuple[tuple[int, ...], ...]
    spacings_mm: tuple[tuple[float, ...], ...]
    placed: bool
    channels: tuple[ChannelPrint, ...]
    classes: tuple[ClassPrint, ...]
    labels: dict[str, int]
    ignore: int | None
    foreground_share: float
    side_pairs: tuple[tuple[str, str], ...]
    orientation_words: dict[str, str]
    broken: dict[str, str]
    regions: dict[str, list[int]] = field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the network is to tell apart from the background."""
        return tuple(self.regions) or tuple(entry.name for entry in self.classes)

    @property
    def thinnest(self) -> ClassPrint | None:
        """The class with the smallest thickness."""
        present = [entry for entry in self.classes if entry.thickness_mm > 0]
        return min(present, key=lambda entry: entry.thickness_mm, default=None)

    @property
    def crop_share(self) -> float:
        """Median share of the image that the box around all that is not 0 takes."""
        return _share(self.crop_shapes, self.shapes)

    @property
    def body_share(self) -> float:
        """Median share of the image that the box around all that is not air takes, where the images are CT."""
        return _share(self.body_shapes, self.shapes)

    def to_json(self) -> str:
        """As text; lists of numbers on one line each."""
        entries = []
        for key, value in asdict(self).items():
            if key in ("shapes", "crop_shapes", "body_shapes", "spacings_mm", "channels", "classes") and value:
                lines = ",\n    ".join(json.dumps(item, ensure_ascii=False) for item in value)
                entries.append(f'  "{key}": [\n    {lines}\n  ]')
            else:
                entries.append(f'  "{key}": {json.dumps(value, ensure_ascii=False)}')
        return "{\n" + ",\n".join(entries) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Fingerprint:
        """The inverse of `to_json`.

        Raises:
            DataError: not a fingerprint.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            for key in ("shapes", "crop_shapes", "body_shapes", "spacings_mm", "side_pairs"):
                content[key] = tuple(tuple(item) for item in content[key])
            content["cases"] = tuple(content["cases"])
            content["channels"] = tuple(ChannelPrint(**item) for item in content["channels"])
            content["classes"] = tuple(ClassPrint(**item) for item in content["classes"])
            return cls(**content)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"not a fingerprint: {error}", remedy="make it again with `medunet plan`") from error


def fingerprint(
    dataset: SegmentationDataset,
    *,
    jobs: int | None = None,
    cache: Path | None = None,
    started: Callable[[int], None] | None = None,
    done: Callable[[], None] | None = None,
) -> Fingerprint:
    """Measure all labelled cases in parallel.

    Each case is kept as soon as it is measured, so that an interrupted call goes on where it was and a second one reads
    nothing but the files' sizes and times. A case that cannot be read is named in `Fingerprint.broken` and left out.

    Args:
        dataset: what `open_dataset` gives.
        jobs: cases at once, each of which is held in memory; None for as many as processors and memory allow.
        cache: folder for the measures; None keeps none.
        started: called once with the number of cases.
        done: called after each case, from several threads.

    Raises:
        DataError: no case could be measured.
    """
    kept = MeasureCache(cache, dataset)
    labels = dict(dataset.labels) | ({} if dataset.ignore is None else {"ignore": dataset.ignore})

    def measure(case: Case) -> CaseMeasure | str:
        found = kept.get(case)
        result: CaseMeasure | str = found or _measure(case, labels, dataset)
        if found is None and isinstance(result, CaseMeasure):
            kept.put(case, result)
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
    kept.compact()
    broken = {case.name: r for case, r in zip(dataset.cases, results, strict=True) if isinstance(r, str)}
    measures = [result for result in results if isinstance(result, CaseMeasure)]
    if not measures:
        raise DataError(
            "no case could be measured",
            file=dataset.root,
            received=next(iter(broken.values()), "no case"),
            remedy="look at it with `medunet check`",
        )
    background = next(iter(dataset.labels.values()))
    if not any(value != background for case in measures for value in case.class_voxels):
        raise DataError("all labels have background only: there is nothing to learn", file=dataset.root)
    for finding in split_patients(dataset.cases):
        logger.warning("%s; %s", finding.cause, finding.remedy)
    return summarise(dataset, measures, broken=broken)


def _jobs(dataset: SegmentationDataset) -> int:
    """Cases at once: as many as there are processors, and as memory holds of the largest of some."""
    voxels = 1
    for case in dataset.cases[:: math.ceil(len(dataset.cases) / MAX_HEADERS)]:
        with contextlib.suppress(MedunetError):  # what is wrong with it is told where it is measured
            header = read_header(case.images[0], **asdict(dataset.read_options))
            voxels = max(voxels, math.prod(header.geometry.shape))
    held = voxels * (4 * len(dataset.channels) + LABEL_BYTES)
    return int(min(MAX_JOBS, os.cpu_count() or 1, max(1, free_memory(torch.device("cpu")) // held)))


def _measure(case: Case, labels: Mapping[str, int], dataset: SegmentationDataset) -> CaseMeasure | str:
    """The measure, or why there is none."""
    views: list[CaseView] = []
    findings = check_pair(case, labels, read=dataset.read_options, level="voxels", visit=views.append)
    errors = [finding.cause for finding in findings if finding.severity == "error"]
    if errors:
        return errors[0]
    view, label = views[0], views[0].label
    if label is None:
        return "no label"
    if view.image.ndim - 1 != dataset.spatial_dims or len(view.image) != len(dataset.channels):
        return f"{len(view.image)} channels and {view.image.ndim - 1} axes, unlike the other cases"
    background = next(iter(dataset.labels.values()))
    return measure_case(case.name, view.image, label, view.record, background=background, ignore=dataset.ignore)


def summarise(
    dataset: SegmentationDataset, measures: list[CaseMeasure], *, broken: Mapping[str, str] | None = None
) -> Fingerprint:
    """The fingerprint from the measures of the cases."""
    placed = all(case.placed for case in measures)
    total = sum(sum(case.class_voxels.values()) for case in measures)
    background = next(iter(dataset.labels.values()))
    classes = []
    for name, value in dataset.labels.items():
        having = [case for case in measures if case.class_voxels.get(value)]
        if value == background:
            continue
        voxels = [case.class_voxels[value] for case in having]
        thick = [case.class_thickness_mm[value] for case in having if case.class_thickness_mm[value] > 0]
        volumes = [n * math.prod(case.spacing_mm) / 1000 for n, case in zip(voxels, having, strict=True)]
        has_volume = placed and dataset.spatial_dims == 3
        classes.append(
            ClassPrint(
                name=name,
                value=value,
                cases=len(having),
                share=_short(sum(voxels) / total),
                median_voxels=float(np.median(voxels)) if voxels else 0.0,
                median_ml=_short(float(np.median(volumes))) if volumes and has_volume else 0.0,
                thickness_mm=_short(float(np.median(thick))) if thick else 0.0,
            )
        )
    # numbers are only to be different here
    named = {region.name: number for number, region in enumerate(dataset.regions)} or dict(dataset.labels)
    channels = tuple(
        _channel(name, index, measures, spatial_dims=dataset.spatial_dims, background=background)
        for index, name in enumerate(dataset.channels)
    )
    return Fingerprint(
        name=dataset.name,
        spatial_dims=dataset.spatial_dims,
        cases=tuple(case.name for case in measures),
        shapes=tuple(case.shape for case in measures),
        crop_shapes=tuple(case.crop_shape for case in measures),
        body_shapes=tuple(case.body_shape for case in measures),
        spacings_mm=tuple(case.spacing_mm for case in measures),
        placed=placed,
        channels=channels,
        classes=tuple(classes),
        labels=dict(dataset.labels),
        ignore=dataset.ignore,
        foreground_share=_short(sum(entry.share for entry in classes)),
        side_pairs=tuple(side_pairs(named)),
        orientation_words=orientation_words(named),
        broken=dict(broken or {}),
        regions={region.name: list(region.values) for region in dataset.regions},
    )


def _channel(name: str, index: int, measures: list[CaseMeasure], *, spatial_dims: int, background: int) -> ChannelPrint:
    modality = guess_modality(name, index, measures, spatial_dims=spatial_dims)
    # of a case without foreground the whole image was measured, air included: it tells nothing of the organs
    having = [case for case in measures if set(case.class_voxels) - {background}] or measures
    parts = [case.channels[index] for case in having]
    mean = float(np.mean([part.mean for part in parts]))
    # the variance within the cases and that between them
    variance = float(np.mean([part.std**2 + part.mean**2 for part in parts])) - mean**2
    low, high = np.percentile(np.concatenate([part.sample for part in parts]), PERCENTILES)
    return ChannelPrint(
        name=name,
        kind=modality.kind,
        reason=modality.reason,
        mean=_short(mean),
        std=_short(math.sqrt(max(variance, 0.0))),
        low=_short(float(low)),
        high=_short(float(high)),
    )


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _share(parts: Sequence[tuple[int, ...]], wholes: Sequence[tuple[int, ...]]) -> float:
    return float(np.median([math.prod(part) / math.prod(whole) for part, whole in zip(parts, wholes, strict=True)]))
