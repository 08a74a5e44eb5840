"""What planning wants to know of one case: grid, intensities under the labels, and how thick the structures are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medunet.datasets.layouts.values import index_values
from medunet.io import ReadRecord

from .adapt import in_ras_order

SAMPLE = 400
"""Values kept of each channel's foreground: evenly spaced in their sorted order, so that percentiles of many cases can
be taken together, and no random number decides."""


AIR = -500.0
"""Hounsfield units between air (-1000) and skin."""


@dataclass(frozen=True)
class ChannelMeasure:
    """One channel of one case.

    Args:
        minimum: of the whole image.
        maximum: of the whole image.
        mean: of the foreground; of the whole image where there is no foreground.
        std: the same.
        sample: sorted values of the same voxels, at most `SAMPLE`.
    """

    minimum: float
    maximum: float
    mean: float
    std: float
    sample: tuple[float, ...]


@dataclass(frozen=True)
class CaseMeasure:
    """One case; the axes of volumes are in RAS order.

    Args:
        name: of the case.
        shape: voxels along each axis.
        spacing_mm: distance of neighbouring voxels; 1 where the format knows none.
        crop_shape: voxels along each axis of the box around all that is not 0.
        body_shape: the same of the box around all above `AIR`, which in CT is not air.
        whole_numbers: whether all intensities are whole numbers.
        modality: DICOM's code, '' for other formats.
        placed: whether the format knows where the voxels lie.
        channels: of the image.
        class_voxels: value in the label to number of voxels; the ignored value is not in it.
        class_thickness_mm: value to twice its volume over its surface (see `thickness`), without background; 0 if no
            part of the surface is annotated.
    """

    name: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    crop_shape: tuple[int, ...]
    body_shape: tuple[int, ...]
    whole_numbers: bool
    modality: str
    placed: bool
    channels: tuple[ChannelMeasure, ...]
    class_voxels: dict[int, int]
    class_thickness_mm: dict[int, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CaseMeasure:
        """The inverse of `as_dict`, also after a way through JSON.

        Raises:
            KeyError, TypeError, ValueError: the content is of another kind.
        """
        values = dict(content)
        for key in ("shape", "spacing_mm", "crop_shape", "body_shape"):
            values[key] = tuple(values[key])
        values["channels"] = tuple(
            ChannelMeasure(**{**channel, "sample": tuple(channel["sample"])}) for channel in values["channels"]
        )
        values["class_voxels"] = {int(key): int(n) for key, n in values["class_voxels"].items()}
        values["class_thickness_mm"] = {int(key): float(n) for key, n in values["class_thickness_mm"].items()}
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
    """Measure one case.

    Args:
        name: of the case.
        image: ``(C, *spatial)``.
        label: ``(1, *spatial)`` of whole numbers on the image's grid.
        record: of the image.
        background: value in the label of what is no class.
        ignore: value in the label of voxels without annotation.
    """
    geometry = record.geometry
    values, classes = index_values(label[0])
    spacing = geometry.spacing_mm
    placed = record.is_placed
    counts = np.bincount(classes.ravel())
    places = {int(values[place]): int(place) for place in np.flatnonzero(counts)}
    foreground = np.ones(classes.shape, bool)
    for value in (background, ignore):
        if value in places:
            foreground &= classes != places[value]
    voxels = {value: int(counts[place]) for value, place in places.items() if value != ignore}
    # of all classes in one pass, for there may be a hundred; 0 may be one of them
    boxes = ndimage.find_objects(classes.astype(np.int32) + 1)
    thick = {}
    for value in (value for value in voxels if value != background):
        # with a rim of one voxel, which shows whether what surrounds the class is annotated
        box = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in boxes[places[value]])
        known = classes[box] != places[ignore] if ignore in places else None
        thick[value] = _short(thickness(classes[box] == places[value], spacing, known=known))
    ordered = [image.shape[1:], spacing, _box(np.any(image != 0, axis=0)), _box(np.any(image > AIR, axis=0))]
    if placed and image.ndim == 4:
        ordered = [in_ras_order(values, geometry) for values in ordered]
    shape, spacing_mm, crop, body = ordered
    return CaseMeasure(
        name=name,
        shape=tuple(int(n) for n in shape),
        spacing_mm=tuple(float(f"{n:.6g}") for n in spacing_mm),
        crop_shape=tuple(int(n) for n in crop),
        body_shape=tuple(int(n) for n in body),
        whole_numbers=all(np.array_equal(plane, np.rint(plane)) for channel in image for plane in channel),
        modality=record.modality,
        placed=placed,
        channels=tuple(_channel(channel, foreground) for channel in image),
        class_voxels=voxels,
        class_thickness_mm=thick,
    )


def _channel(channel: npt.NDArray[np.float32], foreground: npt.NDArray[np.bool_]) -> ChannelMeasure:
    values = np.sort(channel[foreground] if foreground.any() else channel.ravel())
    places = (np.arange(SAMPLE) + 0.5) * len(values) / SAMPLE  # middles of equal parts
    chosen = values if len(values) <= SAMPLE else values[places.astype(int)]
    return ChannelMeasure(
        minimum=_short(channel.min()),
        maximum=_short(channel.max()),
        mean=_short(values.mean(dtype=np.float64)),
        std=_short(values.std(dtype=np.float64)),
        sample=tuple(_short(value) for value in chosen),
    )


def _short(value: float) -> float:
    """Six digits are enough for a plan, and short in JSON."""
    return float(f"{value:.6g}")


def thickness(
    mask: npt.NDArray[np.bool_], spacing: tuple[float, ...], *, known: npt.NDArray[np.bool_] | None = None
) -> float:
    """Return twice the volume over the surface of a structure, in the unit of the spacing.

    That is the thickness of a plate, half the diameter of a long rod and a third of the diameter of a ball; less for
    rough surfaces, whose faces are counted as they are. 0 without a surface.

    Args:
        mask: the structure.
        spacing: distance of neighbouring voxels along each axis.
        known: which voxels are annotated. The structure may continue in the others and beyond the image, so faces
            between them do not count. None: all voxels are annotated, and the image's border counts.

    Example:
        >>> plate = np.ones((30, 1000, 1000), dtype=bool)
        >>> f"{thickness(plate, (0.1, 1.0, 1.0)):.1f}"  # 3 thick, with little rim
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


def _bounds(mask: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and one after the last index along each axis; the whole axis where the mask is empty."""
    bounds = []
    for axis in range(mask.ndim):
        line = np.flatnonzero(mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)))
        bounds.append((int(line[0]), int(line[-1]) + 1) if len(line) else (0, mask.shape[axis]))
    return bounds


def _box(mask: npt.NDArray[np.bool_]) -> list[int]:
    return [high - low for low, high in _bounds(mask)]
