"""DICOM RT Structure Sets: contours in the planes of slices, written and read by pydicom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import generate_uid

from medunet.errors import DataError, GeometryError
from medunet.geometry import Geometry, flip_ras_lps
from medunet.io.segments import TISSUE, Segment
from medunet.io.structures import Painting, Structure

from .contours import Polygon, fill_contours, trace_contours
from .references import LINKS, RTSTRUCT_CLASS, SourcePlane, copy_values, read_dataset, series_number

PLANE_TOLERANCE_VOXELS = 0.1
"""How far the points of one contour may leave their plane, and so how oblique it may lie."""

SLICE_TOLERANCE_VOXELS = 0.25
"""A contour further than this from the slice that it is counted to is recorded: it was drawn on another image."""

_DECIMALS = 5
"""Of coordinates in mm: with five a number fits the 16 characters of VR DS, and no voxel changes sides."""

_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management: retired, but what RTReferencedStudySequence still asks for by convention."""

_CLOSED = ("CLOSED_PLANAR", "CLOSED_PLANAR_XOR", "CLOSEDPLANAR_XOR")


def make_rtstruct(
    voxels: npt.NDArray[Any],
    segments: Sequence[Segment],
    planes: Sequence[SourcePlane],
    *,
    algorithm: Mapping[str, str],
    description: str = "medunet segmentation",
) -> Dataset:
    """Return a structure set with one region of interest per segment, including segments without voxels.

    Args:
        voxels: ``(columns, rows, slices)`` of label values.
        segments: numbered from 1 in this order.
        planes: the slices of the source, from `read_planes`.
        algorithm: `name` and `version` of what made the labels.
        description: SeriesDescription.

    Raises:
        DataError: no segment.
    """
    if not segments:
        raise DataError("an RTSTRUCT needs at least one label besides the background", remedy="name them: label_names")
    first = planes[0].header
    dataset = _empty_structure_set(first, algorithm, description)
    dataset.FrameOfReferenceUID = first.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = str(first.get("PositionReferenceIndicator") or "")
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(planes)]
    for number, segment in enumerate(segments, start=1):
        roi = Dataset()
        roi.ROINumber = number
        roi.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
        roi.ROIName = segment.name[:64]
        roi.ROIGenerationAlgorithm = "AUTOMATIC"
        dataset.StructureSetROISequence.append(roi)

        contours = Dataset()
        contours.ROIDisplayColor = list(segment.color)
        contours.ReferencedROINumber = number
        items = [
            _contour(polygon, plane)
            for index, plane in enumerate(planes)
            for polygon in trace_contours(voxels[:, :, index] == segment.value)
        ]
        if items:
            contours.ContourSequence = DicomSequence(items)
        dataset.ROIContourSequence.append(contours)

        observation = Dataset()
        observation.ObservationNumber = number
        observation.ReferencedROINumber = number
        if segment.type != TISSUE:
            observation.RTROIIdentificationCodeSequence = [_code(segment)]
        observation.RTROIInterpretedType = ""
        observation.ROIInterpreter = ""
        dataset.RTROIObservationsSequence.append(observation)
    return dataset


def read_regions(path: Path) -> list[Structure]:
    """The regions of interest of an RTSTRUCT, also those without contours.

    Raises:
        DataError: nothing in it.
    """
    dataset = read_dataset(path)
    contours = {int(item.ReferencedROINumber): item for item in dataset.get("ROIContourSequence") or ()}
    regions = list(dataset.get("StructureSetROISequence") or ())
    if not regions:
        raise DataError("holds no region of interest", file=path)
    return [
        Structure(
            str(item.get("ROIName", "")),
            int(item.ROINumber),
            partial(_paint, contours.get(int(item.ROINumber)), path),
        )
        for item in regions
    ]


def _paint(region: Dataset | None, path: Path, reference: Geometry) -> Painting:
    if len(reference.shape) != 3:
        raise GeometryError("contours in a patient need an image volume", file=path, received=reference.shape)
    mask = np.zeros(reference.shape, dtype=bool)
    inverse = np.linalg.inv(flip_ras_lps(reference.affine))
    by_slice: dict[tuple[int, int], list[Polygon]] = defaultdict(list)
    warnings: list[str] = []
    skipped = between = 0
    for item in (region.get("ContourSequence") if region is not None else None) or ():
        points = _points(item, path)
        if str(item.get("ContourGeometricType", _CLOSED[0])) not in _CLOSED or len(points) < 3:
            skipped += 1
            continue
        indices = points @ inverse[:3, :3].T + inverse[:3, 3]
        spread = np.ptp(indices, axis=0)
        axis = int(np.argmin(spread))
        if spread[axis] > PLANE_TOLERANCE_VOXELS:
            raise GeometryError(
                "a contour lies across the image's slices",
                file=path,
                received=f"{spread[axis]:.2f} voxels deep",
                expected=f"at most {PLANE_TOLERANCE_VOXELS}",
                remedy="give the image that it was drawn on",
            )
        depth = float(indices[:, axis].mean())
        index = round(depth)
        between += abs(depth - index) > SLICE_TOLERANCE_VOXELS
        if not 0 <= index < reference.shape[axis]:
            raise GeometryError(
                "a contour lies outside the image",
                file=path,
                received=f"slice {index}",
                expected=f"0 to {reference.shape[axis] - 1}",
                remedy="give the image that it was drawn on",
            )
        by_slice[axis, index].append(np.delete(indices, axis, axis=1))
    doubles = 0
    for (axis, index), polygons in by_slice.items():
        single = list({polygon.tobytes(): polygon for polygon in polygons}.values())
        doubles += len(polygons) - len(single)
        view = np.moveaxis(mask, axis, 0)[index]
        view |= fill_contours(single, (view.shape[0], view.shape[1]))
    if skipped:
        warnings.append(f"{skipped} points and open contours left out")
    if doubles:
        warnings.append(f"{doubles} contours are there twice and counted once")
    if between:
        warnings.append(f"{between} contours lie between two slices and are counted to the nearer one")
    if gaps := _gaps(by_slice):
        warnings.append(f"{gaps} slices without contour between slices with one")
    return Painting(mask, tuple(warnings))


def _gaps(by_slice: Mapping[tuple[int, int], object]) -> int:
    numbers = sorted({index for _, index in by_slice})
    return numbers[-1] - numbers[0] + 1 - len(numbers) if numbers else 0


def _points(item: Dataset, path: Path) -> npt.NDArray[np.float64]:
    value = item.get("ContourData")
    if isinstance(value, bytes):  # more than 64 kB in a file with types: kept as bytes of unknown type
        value = value.decode("ascii", "replace").strip("\0 ").split("\\")
    try:
        numbers = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError("a contour has no usable ContourData", file=path) from None  # it would list all points
    if numbers.size % 3 or not np.isfinite(numbers).all():
        raise DataError("a contour is no list of points", file=path, received=f"{numbers.size} numbers")
    return numbers.reshape(-1, 3)


def _contour(polygon: Polygon, plane: SourcePlane) -> Dataset:
    lps = flip_ras_lps(plane.geometry.affine)
    points = polygon @ lps[:3, :2].T + lps[:3, 3]
    item = Dataset()
    item.ContourImageSequence = [_image(plane)]
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = len(points)
    item.ContourData = [f"{number:.{_DECIMALS}f}" for number in (points.ravel() + 0.0)]
    return item


def _image(plane: SourcePlane) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = plane.header.SOPClassUID
    item.ReferencedSOPInstanceUID = plane.header.SOPInstanceUID
    if plane.frame is not None:
        item.ReferencedFrameNumber = plane.frame
    return item


def _frame_of_reference(planes: Sequence[SourcePlane]) -> Dataset:
    header = planes[0].header
    series = Dataset()
    series.SeriesInstanceUID = header.SeriesInstanceUID
    series.ContourImageSequence = [_image(plane) for plane in planes]
    study = Dataset()
    study.ReferencedSOPClassUID = _STUDY_CLASS
    study.ReferencedSOPInstanceUID = header.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = header.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _empty_structure_set(source: Dataset, algorithm: Mapping[str, str], description: str) -> Dataset:
    now = datetime.now()
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"  # names of labels may be in any script
    dataset.SOPClassUID = RTSTRUCT_CLASS
    dataset.SOPInstanceUID = generate_uid(prefix=None)
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    copy_values(source, dataset, LINKS)
    dataset.ReferringPhysicianName = ""  # the standard wants the attribute, not the name
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesInstanceUID = generate_uid(prefix=None)
    dataset.SeriesNumber = 2000 + series_number(source)
    dataset.SeriesDescription = description
    dataset.OperatorsName = ""
    dataset.Manufacturer = "medunet"
    dataset.ManufacturerModelName = algorithm["name"]
    dataset.SoftwareVersions = algorithm["version"]
    dataset.InstanceNumber = 1
    dataset.StructureSetLabel = "medunet"
    dataset.StructureSetDate, dataset.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.StructureSetROISequence = DicomSequence()
    dataset.ROIContourSequence = DicomSequence()
    dataset.RTROIObservationsSequence = DicomSequence()
    return dataset


def _code(segment: Segment) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = segment.type
    return item
