"""DICOM Segmentation objects: written by highdicom, read by pydicom alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as DicomCode
from pydicom.uid import generate_uid
from skimage.color import rgb2lab

from medunet.errors import DataError, GeometryError
from medunet.geometry import Geometry

from .dicom_source import SourcePlane, frame_groups, keep_only_links, plane_geometry, read_dataset
from .extras import import_extra
from .lattice import lattice_map, lay_on
from .limits import require_memory
from .segments import Code, Segment
from .structures import Painting, Structure

SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes Segmentation Storage and Label Map Segmentation Storage."""

_LABELMAP = SEG_CLASSES[1]

_ARTIFICIAL_INTELLIGENCE = DicomCode("123110", "DCM", "Artificial Intelligence")
"""Family of the algorithm, CID 7162."""

_LARGEST_LABEL = 64
"""Characters of a segment's label (VR LO)."""


def make_dicom_seg(
    voxels: npt.NDArray[Any],
    segments: Sequence[Segment],
    planes: Sequence[SourcePlane],
    *,
    algorithm: Mapping[str, str],
    description: str = "medunet segmentation",
) -> Dataset:
    """A BINARY segmentation of one series, with a frame for each segment in each slice where it occurs.

    Args:
        voxels: ``(columns, rows, slices)`` of label values.
        segments: numbered from 1 in this order; other values are background.
        planes: the slices of the source, as of `read_planes`.
        algorithm: `name`, `version` and optionally `source` of what made the labels.
        description: SeriesDescription.

    Raises:
        ConfigError: highdicom is not installed.
        DataError: no segment, or headers that highdicom refuses.
    """
    hd = import_extra("highdicom", extra="dicom", purpose="writing DICOM SEG")
    if not segments:
        raise DataError("a DICOM SEG needs at least one label besides the background", remedy="name them: label_names")
    numbers = np.zeros((voxels.shape[2], voxels.shape[1], voxels.shape[0]), dtype=np.uint16)
    by_slice = voxels.transpose(2, 1, 0)
    for number, segment in enumerate(segments, start=1):
        numbers[by_slice == segment.value] = number
    headers = [plane.header for plane in planes]
    if planes[0].frame is not None:  # highdicom wants a multi-frame file once, and its frames in their own order
        order = np.argsort([plane.frame or 0 for plane in planes])
        headers, numbers = headers[:1], numbers[order]
    first = headers[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one of them prints the patient's name
            made: Dataset = hd.seg.Segmentation(
                source_images=headers,
                pixel_array=numbers,
                segmentation_type="BINARY",
                segment_descriptions=[
                    _description(hd, segment, number, algorithm) for number, segment in enumerate(segments, start=1)
                ],
                series_instance_uid=generate_uid(prefix=None),
                series_number=_series_number(first),
                sop_instance_uid=generate_uid(prefix=None),
                instance_number=1,
                manufacturer="medunet",
                manufacturer_model_name=algorithm["name"],
                software_versions=algorithm["version"],
                device_serial_number="0",
                omit_empty_frames=bool(numbers.any()),
                content_label="SEGMENTATION",
                content_description=description,
                series_description=description,
            )
    except (ValueError, TypeError, AttributeError) as error:
        # its words may quote a header, so they are not passed on
        kind = type(error).__name__
        raise DataError(f"highdicom refuses the series' headers ({kind})", remedy="write .nii.gz") from None
    keep_only_links(made, first)
    if "ContentCreatorName" not in made:
        made.ContentCreatorName = ""  # nobody, but the standard wants the attribute
    return made


def read_segments(path: Path) -> list[Structure]:
    """The segments of a DICOM SEG (BINARY, FRACTIONAL from one half on, or LABELMAP), without the background.

    Raises:
        DataError: damaged pixel data, or nothing in it.
    """
    dataset = read_dataset(path)
    segments = [
        item
        for item in dataset.get("SegmentSequence") or ()
        if int(item.get("SegmentNumber", 0)) > 0  # LABELMAP numbers the background 0
    ]
    if not segments:
        raise DataError("holds no segment", file=path)
    return [
        Structure(
            str(item.get("SegmentLabel", "")),
            int(item.SegmentNumber),
            partial(_paint, dataset, int(item.SegmentNumber), path),
        )
        for item in segments
    ]


def _paint(dataset: Dataset, number: int, path: Path, reference: Geometry) -> Painting:
    shared, groups = frame_groups(dataset)
    frames = _frames(dataset, len(groups), path)
    is_map = dataset.SOPClassUID == _LABELMAP or dataset.get("SegmentationType") == "LABELMAP"
    half = 0.5 * float(dataset.get("MaximumFractionalValue") or 1)
    target = np.zeros(reference.shape, dtype=bool)
    for pixels, group in zip(frames, groups, strict=True):
        if is_map:
            rows, columns = np.nonzero(pixels == number)
        elif _segment_number(group, shared) == number:
            rows, columns = np.nonzero(pixels >= half)
        else:
            continue
        if not len(rows):
            continue
        grid = plane_geometry(dataset, group, shared)
        if grid is None:
            raise GeometryError("a frame has no position, orientation or spacing", file=path)
        # The lattice has no distance of slices to compare: only the plane must meet one of the reference's.
        mapping = lattice_map(_thick_as(grid, reference), reference, file=path)
        lay_on(np.stack([columns, rows, np.zeros_like(rows)]), mapping, target, file=path)
    return Painting(target)


def _frames(dataset: Dataset, n_frames: int, path: Path) -> npt.NDArray[Any]:
    require_memory((dataset.get("Rows") or 0, dataset.get("Columns") or 0, n_frames), 1, path)
    try:
        pixels = dataset.pixel_array
    except Exception as error:  # codecs raise what they like
        raise DataError("pixel data cannot be decoded", file=path, received=type(error).__name__) from error
    pixels = pixels.reshape(-1, int(dataset.Rows), int(dataset.Columns))
    if len(pixels) != n_frames:
        raise DataError("frames and their headers differ in number", file=path, received=len(pixels), expected=n_frames)
    return np.asarray(pixels)


def _segment_number(group: Dataset, shared: Dataset | None) -> int | None:
    for place in (group, shared):
        if place is not None and place.get("SegmentIdentificationSequence"):
            return int(place.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    return None


def _thick_as(plane: Geometry, reference: Geometry) -> Geometry:
    """A plane with the distance of the reference's slices, so that its normal is a whole step there."""
    steps = np.abs(reference.direction.T @ plane.direction[:, 2])
    affine = np.array(plane.affine)
    normal_axis = int(np.argmax(steps))
    sign = np.sign(reference.direction[:, normal_axis] @ plane.direction[:, 2])
    affine[:3, 2] = sign * reference.affine[:3, normal_axis]
    return Geometry(affine, plane.shape)


def _description(hd: ModuleType, segment: Segment, number: int, algorithm: Mapping[str, str]) -> Any:
    lightness, a, b = rgb2lab(np.array(segment.color, dtype=np.float64) / 255)
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.name[:_LARGEST_LABEL],
        segmented_property_category=_dicom_code(segment.category),
        segmented_property_type=_dicom_code(segment.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm["name"],
            version=algorithm["version"],
            family=_ARTIFICIAL_INTELLIGENCE,
            source=algorithm.get("source"),
        ),
        display_color=hd.color.CIELabColor(float(np.clip(lightness, 0, 100)), float(a), float(b)),
    )


def _dicom_code(code: Code) -> DicomCode:
    return DicomCode(code.value, code.scheme, code.meaning)


def _series_number(source: Dataset) -> int:
    """Beside the source's in a viewer: 1003 for series 3."""
    return 1000 + int(source.get("SeriesNumber") or 0) % 1000
