"""DICOM Segmentation objects: written by highdicom, read by pydicom alone."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from pydicom.valuerep import format_number_as_ds
from skimage.color import rgb2lab

from medunet.errors import DataError, GeometryError
from medunet.geometry import Geometry
from medunet.io.extras import import_extra
from medunet.io.limits import require_memory
from medunet.io.segments import Segment
from medunet.io.structures import Painting, Structure, paint_voxels

from .references import LINKS, SEG_CLASSES, SourcePlane, copy_links, item, plane_geometry, read_dataset, series_number
from .tags import find, find_decimals, frame_levels, keywords, typed_errors

LARGEST_LABEL = 64  # characters of a segment's label (VR LO)

# What highdicom takes from an image besides its placement and `LINKS`.
_DESCRIPTION = keywords("""
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID PositionReferenceIndicator
    Modality Rows Columns LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod""")


def make_dicom_seg(
    voxels: npt.NDArray[Any], segments: Sequence[Segment], planes: Sequence[SourcePlane], algorithm: Mapping[str, str]
) -> Dataset:
    """Return a BINARY segmentation of one series, with one frame per segment and slice in which it occurs.

    Args:
        voxels: ``(columns, rows, slices)`` of label values.
        segments: numbered from 1 in this order; other values are background.
        planes: the slices of the source, from `read_planes`.
        algorithm: `name`, `version` and optionally `source` of the model that made the labels.

    Raises:
        ConfigError: highdicom is not installed.
        DataError: no segment, slices of several multi-frame files, or headers that highdicom rejects.
    """
    hd = import_extra("highdicom", extra="dicom", purpose="writing DICOM SEG")
    if not segments:
        raise DataError("a DICOM SEG needs at least one label besides the background")
    by_slice = voxels.T
    numbers = np.zeros(by_slice.shape, dtype=np.uint16)
    for number, segment in enumerate(segments, start=1):
        numbers[by_slice == segment.value] = number
    first = planes[0].header
    try:
        images, frame_numbers = _source_images(planes)
        result: Dataset = hd.seg.Segmentation(
            source_images=images,
            pixel_array=numbers,
            segmentation_type="BINARY",
            segment_descriptions=[_description(hd, *pair, algorithm) for pair in enumerate(segments, start=1)],
            series_instance_uid=generate_uid(prefix=None),
            series_number=1000 + series_number(first),
            sop_instance_uid=generate_uid(prefix=None),
            instance_number=1,
            manufacturer="medunet",
            manufacturer_model_name=algorithm["name"],
            software_versions=algorithm["version"],
            device_serial_number="0",
            omit_empty_frames=bool(numbers.any()),
            content_label="SEGMENTATION",
            content_description="medunet segmentation",
            series_description="medunet segmentation",
        )
    except (ValueError, TypeError, AttributeError) as error:
        cause = f"highdicom rejects the series' headers ({type(error).__name__})"  # its words may quote a header
        raise DataError(cause, remedy="write .nii.gz") from None
    _refer_to_frames(result, frame_numbers)
    copy_links(first, result)
    result.ReferringPhysicianName = result.ContentCreatorName = ""  # required by the standard, may be empty
    return result


def read_segments(path: Path) -> list[Structure]:
    """Return the segments of a DICOM SEG (BINARY, FRACTIONAL from 0.5 up, or LABELMAP), without the background."""
    dataset = read_dataset(path)
    segments = dataset.get("SegmentSequence") or ()
    names = {int(one.get("SegmentNumber", 0)): str(one.get("SegmentLabel", "")) for one in segments}
    numbers = [number for number in names if number > 0]  # LABELMAP numbers the background 0
    if not numbers:
        raise DataError("file has no segment", file=path)
    return [Structure(names[number], number, partial(_paint, dataset, number, path)) for number in numbers]


def _paint(dataset: Dataset, number: int, path: Path, reference: Geometry) -> Painting:
    groups = frame_levels(dataset)
    frames = _frames(dataset, len(groups), path)
    is_map = dataset.SOPClassUID == SEG_CLASSES[1] or dataset.get("SegmentationType") == "LABELMAP"
    half = 0.5 * float(dataset.get("MaximumFractionalValue") or 1)
    target = np.zeros(reference.shape, dtype=bool)
    for pixels, levels in zip(frames, groups, strict=True):
        if not is_map:
            segment = find(levels, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
            if segment is None or int(segment.ReferencedSegmentNumber) != number:
                continue
        rows, columns = np.nonzero(pixels == number if is_map else pixels >= half)
        if not len(rows):
            continue
        plane = plane_geometry(levels)
        if plane is None:
            raise GeometryError("a frame has no position, orientation or spacing", file=path)
        indices = np.stack([columns, rows, np.zeros_like(rows)])
        paint_voxels(indices, _thick_as(plane, reference), target, reference, file=path)
    return Painting(target)


def _frames(dataset: Dataset, n_frames: int, path: Path) -> npt.NDArray[Any]:
    require_memory((dataset.get("Rows") or 0, dataset.get("Columns") or 0, n_frames), 1, path)
    with typed_errors("pixel data cannot be decoded", path):
        pixels = dataset.pixel_array.reshape(-1, int(dataset.Rows), int(dataset.Columns))
    if len(pixels) != n_frames:
        raise DataError("frames and their headers differ in number", file=path, received=len(pixels), expected=n_frames)
    return np.asarray(pixels)


def _thick_as(plane: Geometry, reference: Geometry) -> Geometry:
    """Return a plane as thick as the reference's slices: a step along its normal is one voxel of the reference."""
    cosines = reference.direction.T @ plane.direction[:, 2]
    axis = int(np.argmax(np.abs(cosines)))
    affine = np.array(plane.affine)
    affine[:3, 2] = np.sign(cosines[axis]) * reference.affine[:3, axis]
    return Geometry(affine, plane.shape)


def _source_images(planes: Sequence[SourcePlane]) -> tuple[list[Dataset], list[int]]:
    """Return what highdicom needs to know of the planes' files, without the patient, and the planes' frame numbers.

    highdicom takes a single multi-frame file, and all of its frames. A file may have more frames than were read, such
    as other phases at the same positions, so its description has only the frames that were read.
    """
    numbers = [plane.frame for plane in planes if plane.frame is not None]
    placements = _placements(planes)
    if not numbers:
        return [_described(plane.header, place) for plane, place in zip(planes, placements, strict=True)], []
    header = planes[0].header
    if len(numbers) < len(planes) or any(plane.header is not header for plane in planes):
        raise DataError("a DICOM SEG can refer to the frames of one multi-frame file only")
    image = _described(header, Dataset())
    image.NumberOfFrames = len(numbers)
    image.SharedFunctionalGroupsSequence = [
        item(PlaneOrientationSequence=placements[:1], PixelMeasuresSequence=placements[:1])
    ]
    image.PerFrameFunctionalGroupsSequence = [item(PlanePositionSequence=[placement]) for placement in placements]
    return [image], numbers


def _described(header: Dataset, placement: Dataset) -> Dataset:
    # LINKS are copied later: highdicom rejects headers that lack one, or have an invalid value
    image = item(SpecificCharacterSet="ISO_IR 192", **dict.fromkeys(LINKS, ""))  # names of labels may be in any script
    for name in _DESCRIPTION:
        if name in header:
            image.add(header[name])
    image.update(placement)
    return image


def _placements(planes: Sequence[SourcePlane]) -> list[Dataset]:
    """Return the positions of planes in the patient.

    A DICOM SEG has one orientation and one pixel spacing. All planes get those of the first, because highdicom rejects
    the differences in the last digits that the reader allows.
    """
    _, spacing, direction = planes[0].geometry.to_lps()
    cosines = np.reshape(direction, (3, 3)).T[:2].ravel().tolist()
    thickness = _thickness(planes)
    return [
        item(
            ImagePositionPatient=[format_number_as_ds(value) for value in plane.geometry.to_lps()[0]],
            ImageOrientationPatient=[format_number_as_ds(value) for value in cosines],
            PixelSpacing=[format_number_as_ds(value) for value in (spacing[1], spacing[0])],
            SliceThickness=format_number_as_ds(thickness),
        )
        for plane in planes
    ]


def _thickness(planes: Sequence[SourcePlane]) -> float:
    """Return the source's slice thickness, or the distance between its slices if the headers have none."""
    header, frame = planes[0].header, planes[0].frame
    levels = frame_levels(header)[frame - 1] if frame else [header]
    thickness = find_decimals(levels, "PixelMeasuresSequence", "SliceThickness")
    if thickness and thickness[0]:
        return thickness[0]
    if len(planes) == 1:
        raise DataError("the header lacks SliceThickness, which a DICOM SEG needs")
    first, second = (plane.geometry.affine for plane in planes[:2])
    return float(abs((second - first)[:3, 3] @ first[:3, 2]))  # the third axis of a plane is 1 mm long


def _refer_to_frames(result: Dataset, numbers: Sequence[int]) -> None:
    """Replace the numbers of the reduced header's frames by those of the file's."""
    for group in result.PerFrameFunctionalGroupsSequence if numbers else ():
        for derivation in group.get("DerivationImageSequence") or ():
            for image in derivation.SourceImageSequence:
                image.ReferencedFrameNumber = numbers[int(image.ReferencedFrameNumber) - 1]


def _description(hd: ModuleType, number: int, segment: Segment, algorithm: Mapping[str, str]) -> Any:
    lightness, a, b = rgb2lab(np.array(segment.color, dtype=np.float64) / 255)
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.name[:LARGEST_LABEL],
        segmented_property_category=Code(*segment.category),
        segmented_property_type=Code(*segment.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm["name"],
            version=algorithm["version"],
            family=Code("123110", "DCM", "Artificial Intelligence"),  # CID 7162
            source=algorithm.get("source"),
        ),
        display_color=hd.color.CIELabColor(float(np.clip(lightness, 0, 100)), float(a), float(b)),
    )
