"""Statistics of one case: size, spacing, intensities, and the classes with their positions."""

import functools
import hashlib
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from skimage.transform import resize_local_mean

from medunet.datasets.layouts.labels import index_values
from medunet.geometry import Geometry
from medunet.io import ReadRecord

from .objects import ObjectFigures

Section = Literal["training", "test"]

PERCENTILES = (0.5, 50.0, 99.5)  # of intensities, so that a metal clip or padding does not decide the range
THUMBNAIL = {2: 16, 3: 8}  # cells along each axis of a thumbnail, by the number of axes
THUMBNAIL_SAMPLE = 64  # voxels along each axis that a thumbnail is computed from
SAMPLE_VOXELS = 1_000_000  # for mean, deviation and percentiles; smallest and largest value use all voxels


@dataclass(frozen=True)
class Intensity:
    """Intensities of one channel."""

    minimum: float
    low: float
    median: float
    high: float
    maximum: float
    mean: float
    std: float


@dataclass(frozen=True)
class CaseStatistics:
    """Statistics of one case."""

    name: str
    file: Path  # of the image
    section: Section
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]  # 1 in formats without spacing
    orientation: str  # directions of the axes, such as 'LPS'; empty in formats without placement
    dtype: str  # in the file
    intensity: tuple[Intensity, ...]  # of each channel
    class_voxels: dict[int, int] = field(default_factory=dict)  # value in the label to number of voxels
    class_right_mm: dict[int, float] = field(default_factory=dict)  # value to its centre, right of the image's middle
    thumbnail: tuple[float, ...] = ()  # coarse image of mean 0 and norm 1; empty if it is constant
    image_digest: str = ""  # equal for equal voxels, whatever their type and the order of axes
    label_digest: str = ""
    objects: ObjectFigures | None = None  # of a label that numbers objects

    @property
    def voxel_size(self) -> float:
        """Volume of a voxel in ml, or area of a pixel in mm2."""
        return math.prod(self.spacing_mm) / (1000 if len(self.spacing_mm) == 3 else 1)

    def as_dict(self) -> dict[str, Any]:
        """Return the values for JSON, without digests."""
        hidden = ("file", "thumbnail", "image_digest", "label_digest", "objects")
        values = {key: value for key, value in asdict(self).items() if key not in hidden}
        return values if self.objects is None else {**values, "objects": self.objects.as_dict()}


def measure_case(
    name: str,
    image: npt.NDArray[np.float32],
    record: ReadRecord,
    label: npt.NDArray[np.float32] | None = None,
    *,
    file: Path = Path(),
    section: Section = "training",
) -> CaseStatistics:
    """Measure an image ``(C, *spatial)`` and its label ``(1, *spatial)`` on the same grid."""
    geometry = record.geometry
    voxels: dict[int, int] = {}
    right_mm: dict[int, float] = {}
    if label is not None:
        values, indices = index_values(label[0])
        counts, centres = _classes(indices, geometry, placed=record.is_placed)
        voxels = {int(values[index]): number for index, number in counts.items()}
        right_mm = {int(values[index]): centre for index, centre in centres.items() if values[index]}
    return CaseStatistics(
        name=name,
        file=file,
        section=section,
        shape=geometry.shape,
        spacing_mm=geometry.spacing_mm,
        orientation=geometry.axis_codes if record.is_placed else "",
        dtype=record.dtype,
        intensity=tuple(_intensity(channel) for channel in image),
        class_voxels=voxels,
        class_right_mm=right_mm,
        thumbnail=_thumbnail(image),
        image_digest=_digest(image, geometry),
        label_digest="" if label is None else _digest(label, geometry),
    )


def _thumbnail(image: npt.NDArray[np.float32]) -> tuple[float, ...]:
    """Return the mean of the channels, reduced to few cells, with mean 0 and norm 1."""
    steps = tuple(slice(None, None, max(1, size // THUMBNAIL_SAMPLE)) for size in image.shape[1:])
    sample = np.stack([channel[steps] for channel in image]).mean(axis=0, dtype=np.float64)
    small = resize_local_mean(sample, (THUMBNAIL[sample.ndim],) * sample.ndim)
    values = small.ravel() - small.mean()
    norm = float(np.linalg.norm(values))
    return tuple((values / norm).tolist()) if 0 < norm < math.inf else ()


def _intensity(channel: npt.NDArray[np.float32]) -> Intensity:
    step = max(1, math.ceil((channel.size / SAMPLE_VOXELS) ** (1 / channel.ndim)))
    sample = channel[(slice(None, None, step),) * channel.ndim].astype(np.float64)
    low, median, high = (float(value) for value in np.percentile(sample, PERCENTILES))
    smallest, largest = float(channel.min()), float(channel.max())
    return Intensity(smallest, low, median, high, largest, mean=float(sample.mean()), std=float(sample.std()))


def _classes(
    label: npt.NDArray[np.integer[Any]], geometry: Geometry, *, placed: bool
) -> tuple[dict[int, int], dict[int, float]]:
    """Return the number of voxels per value, and how far right of the middle their centre is, in mm."""
    n_values = int(label.max()) + 1
    counts, right = np.zeros(n_values, dtype=np.int64), np.zeros(n_values)
    is_placed = placed and label.ndim == 3
    slopes = geometry.affine[0, : label.ndim] if is_placed else np.zeros(label.ndim)
    offsets = [slope * (np.arange(n) - (n - 1) / 2) for slope, n in zip(slopes, label.shape, strict=True)]
    in_plane = functools.reduce(np.add.outer, offsets[1:])
    for offset, plane in zip(offsets[0], label, strict=True):  # plane by plane to save memory
        counts += np.bincount(plane.ravel(), minlength=n_values)
        right += np.bincount(plane.ravel(), weights=(in_plane + offset).ravel(), minlength=n_values)
    present = [int(value) for value in np.flatnonzero(counts)]
    centres = {value: float(right[value] / counts[value]) for value in present} if is_placed else {}
    return {value: int(counts[value]) for value in present}, centres


def _digest(voxels: npt.NDArray[np.float32], geometry: Geometry) -> str:
    """Return a digest of the voxels in RAS order, as float32."""
    hasher = hashlib.sha256()  # processors have instructions for it: twice as fast as BLAKE2
    turn = nib.orientations.io_orientation(geometry.affine)[: len(geometry.shape)]
    for channel in voxels:
        ordered = nib.orientations.apply_orientation(channel, turn) if len(geometry.shape) == 3 else channel
        hasher.update(str(ordered.shape).encode())
        hasher.update(np.ascontiguousarray(ordered).data)
    return hasher.hexdigest()
