"""Measurements of one case: grid, intensities under the labels, thickness of the structures; and a cache of them."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from medunet.datasets import Case, SegmentationDataset
from medunet.datasets.cache.identity import code_digest, describe_source, digest
from medunet.datasets.check.objects import ObjectFigures
from medunet.datasets.layouts.labels import index_values
from medunet.errors import DataError
from medunet.files import cache_folder, write_atomically
from medunet.io import ReadRecord
from medunet.transforms.intensity import has_bright_background

from .adapt import in_ras_order

logger = logging.getLogger(__name__)

SAMPLE = 400  # stored values of each channel's foreground, evenly spaced in sorted order
AIR = -500.0  # Hounsfield units between air (-1000) and skin


@dataclass(frozen=True)
class ChannelMeasure:
    """One channel of one case."""

    minimum: float  # lowest value of the image
    mean: float  # mean of the foreground, or of the whole image without foreground
    std: float  # standard deviation of the same voxels
    sample: tuple[float, ...]  # sorted values of the same voxels, at most `SAMPLE`


@dataclass(frozen=True)
class CaseMeasure:
    """One case; the axes of volumes are in RAS order."""

    name: str
    shape: tuple[int, ...]  # voxels along each axis
    spacing_mm: tuple[float, ...]  # distance between neighbouring voxels; 1 if the format does not store it
    crop_shape: tuple[int, ...]  # voxels along each axis of the box around everything that is not 0
    body_shape: tuple[int, ...]  # the same of the box around everything above `AIR`, which in CT is not air
    whole_numbers: bool  # whether all intensities are whole numbers
    modality: str  # DICOM's code; empty for other formats
    placed: bool  # whether the format stores positions, so that spacings are distances
    channels: tuple[ChannelMeasure, ...]
    class_voxels: dict[int, int]  # number of voxels by value in the label, without the ignored value
    class_thickness_mm: dict[int, float]  # by value, without background; 0 if no part of the surface is annotated
    objects: ObjectFigures | None = None  # of labels that number objects
    polarity: Sequence[bool] = (False, False)  # of a 2D image: is its background bright, and its foreground darker?

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "CaseMeasure":
        """Return the measurement from its `dataclasses.asdict`, also after a round trip through JSON."""
        values = dict(content)
        for key in ("shape", "spacing_mm", "crop_shape", "body_shape"):
            values[key] = tuple(values[key])
        values["channels"] = tuple(ChannelMeasure(**{**c, "sample": tuple(c["sample"])}) for c in values["channels"])
        if objects := values.get("objects"):
            tuples = {key: tuple(objects[key]) for key in ("sizes", "in_pieces")}
            values["objects"] = ObjectFigures(**{**objects, **tuples})
        for key in ("class_voxels", "class_thickness_mm"):
            values[key] = {int(value): number for value, number in values[key].items()}
        return cls(**values)


def measure_case(
    name: str,
    image: npt.NDArray[np.float32],
    label: npt.NDArray[np.float32],
    record: ReadRecord,
    *,
    background: int = 0,
    ignore: int | None = None,
) -> CaseMeasure:
    """Measure an image `(C, *spatial)` and its label `(1, *spatial)`; `background` and `ignore` are not foreground."""
    geometry = record.geometry
    values, classes = index_values(label[0])
    counts = np.bincount(classes.ravel())
    indices = {int(values[index]): int(index) for index in np.flatnonzero(counts)}
    foreground = np.ones(classes.shape, bool)
    for value in (background, ignore):
        if value in indices:
            foreground &= classes != indices[value]
    voxels = {value: int(counts[index]) for value, index in indices.items() if value != ignore}
    boxes = ndimage.find_objects(classes.astype(np.int32) + 1)  # of all classes in one pass; 0 may be one of them
    thick = {}
    for value in (value for value in voxels if value != background):
        # with a margin of one voxel, which shows whether the surroundings of the class are annotated
        box = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in boxes[indices[value]])
        known = classes[box] != indices[ignore] if ignore in indices else None
        thick[value] = short(thickness(classes[box] == indices[value], geometry.spacing_mm, known=known))
    boxed = _box(np.any(image != 0, axis=0)), _box(np.any(image > AIR, axis=0))
    grid: list[Sequence[float]] = [image.shape[1:], geometry.spacing_mm, *boxed]
    if record.is_placed and image.ndim == 4:
        grid = [in_ras_order(axes, geometry) for axes in grid]
    shape, spacing, crop, body = grid
    polarity = [False, False]
    if image.ndim == 3 and foreground.any() and not foreground.all():
        is_darker = image[:, foreground].mean() < image[:, ~foreground].mean()
        polarity = [has_bright_background(torch.from_numpy(image)), bool(is_darker)]
    return CaseMeasure(
        name=name,
        shape=tuple(int(n) for n in shape),
        spacing_mm=tuple(short(n) for n in spacing),
        crop_shape=tuple(int(n) for n in crop),
        body_shape=tuple(int(n) for n in body),
        whole_numbers=all(np.array_equal(plane, np.rint(plane)) for channel in image for plane in channel),
        modality=record.modality,
        placed=record.is_placed,
        channels=tuple(_channel(channel, foreground) for channel in image),
        class_voxels=voxels,
        class_thickness_mm=thick,
        polarity=polarity,
    )


def _channel(channel: npt.NDArray[np.float32], foreground: npt.NDArray[np.bool_]) -> ChannelMeasure:
    values = np.sort(channel[foreground] if foreground.any() else channel.ravel())
    centres = (np.arange(SAMPLE) + 0.5) * len(values) / SAMPLE  # of equal parts
    sample = values if len(values) <= SAMPLE else values[centres.astype(int)]
    mean, std = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    minimum, mean, std = (short(value) for value in (channel.min(), mean, std))
    return ChannelMeasure(minimum, mean, std, tuple(short(value) for value in sample))


def thickness(
    mask: npt.NDArray[np.bool_], spacing: tuple[float, ...], *, known: npt.NDArray[np.bool_] | None = None
) -> float:
    """Return twice the volume over the surface of a structure, in the unit of the spacing; 0 without a surface.

    That is the thickness of a plate, half the diameter of a long rod and a third of the diameter of a ball. Faces
    between voxels that are not both `known` (annotated) do not count; without `known` the image's border counts.

    Examples:
        >>> plate = np.ones((30, 1000, 1000), dtype=bool)
        >>> f"{thickness(plate, (0.1, 1.0, 1.0)):.1f}"  # 3 thick, with a small rim
        '3.0'
    """
    volume = float(mask.sum()) * float(np.prod(spacing))
    surface = 0.0
    for axis, width in enumerate(spacing):
        padding = [(1, 1) if k == axis else (0, 0) for k in range(mask.ndim)]
        padded = np.moveaxis(np.pad(mask, padding), axis, 0)
        faces = padded[1:] != padded[:-1]
        if known is not None:
            annotated = np.moveaxis(np.pad(known, padding), axis, 0)
            faces &= annotated[1:] & annotated[:-1]
        surface += float(faces.sum()) * float(np.prod(spacing)) / width
    return 2 * volume / surface if surface else 0.0


def _box(mask: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """Return the size of the box around a mask, or of the whole mask if it is empty."""
    boxes = ndimage.find_objects(mask.view(np.uint8))
    return tuple(part.stop - part.start for part in boxes[0]) if boxes else mask.shape


def short(value: float) -> float:
    """Round to six digits, which are enough for a plan."""
    return float(f"{value:.6g}")


def default_cache() -> Path:
    """Return the folder of the measurements in medunet's cache folder."""
    return cache_folder() / "fingerprints"


class MeasureCache:
    """Stored measurements of a data set's cases, one file per case, found by the size and time of the case's files."""

    def __init__(self, folder: Path | None, dataset: SegmentationDataset) -> None:
        # the class stands for the file that defines it
        facts = dataset.ignore, dataset.labels, dataset.instances, asdict(dataset.read_options)
        self._code = digest(code_digest(), CaseMeasure, *facts)
        self._folder = None if folder is None else folder / digest(str(dataset.root))[:16]

    def get(self, case: Case) -> CaseMeasure | None:
        """Return the measurement of a case whose files have not changed."""
        if self._folder is None:
            return None
        try:
            return CaseMeasure.from_dict(json.loads((self._folder / self._name(case)).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def put(self, case: Case, measure: CaseMeasure) -> None:
        """Store a measurement. Thread-safe."""
        if self._folder is not None:
            try:
                write_atomically(self._folder / self._name(case), json.dumps(asdict(measure)))
            except DataError as error:  # such as a full disk or a read-only home
                logger.warning("measurements cannot be stored: %s", error)
                self._folder = None

    def prune(self, cases: Sequence[Case]) -> None:
        """Remove the measurements of other cases and of earlier files."""
        if self._folder is not None:
            used = {self._name(case) for case in cases}
            for path in self._folder.glob("*.json"):
                if path.name not in used:
                    path.unlink(missing_ok=True)

    def _name(self, case: Case) -> str:
        source = describe_source([*case.images, case.label, case.classes])
        return f"{digest(self._code, case.name, source)[:32]}.json"
