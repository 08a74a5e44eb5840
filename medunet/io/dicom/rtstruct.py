"""DICOM RT Structure Sets: contours in the planes of slices, written and read by pydicom."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from medunet.errors import DataError, GeometryError
from medunet.geometry import Geometry, flip_ras_lps
from medunet.io.segments import TISSUE, Segment
from medunet.io.structures import Painting, Structure

from .contours import Polygon, fill_contours, trace_contours
from .references import RTSTRUCT_CLASS, SourcePlane, code_item, copy_links, item, read_dataset, series_number

PLANE_TOLERANCE_VOXELS = 0.1  # how far the points of one contour may be from their plane
SLICE_TOLERANCE_VOXELS = 0.25  # a contour further than this from its slice is reported: it was drawn on another image

_DECIMALS = 5  # of coordinates in mm: a number then fits the 16 characters of VR DS, and no voxel changes sides
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management: retired, but conventional in references
_CLOSED = ("CLOSED_PLANAR", "CLOSED_PLANAR_XOR", "CLOSEDPLANAR_XOR")


def make_rtstruct(
    voxels: npt.NDArray[Any], segments: Sequence[Segment], planes: Sequence[SourcePlane], algorithm: Mapping[str, str]
) -> Dataset:
    """Return a structure set with one region of interest per segment, including segments without voxels.

    Args:
        voxels: ``(columns, rows, slices)`` of label values.
        segments: numbered from 1 in this order.
        planes: the slices of the source, from `read_planes`.
        algorithm: `name` and `version` of the model that made the labels.

    Raises:
        DataError: no segment.
    """
    if not segments:
        raise DataError("an RTSTRUCT needs at least one label besides the background")
    first = planes[0].header
    now = datetime.now()
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    rois, regions, observations = [], [], []
    for number, segment in enumerate(segments, start=1):
        contours = [
            _contour(polygon, plane)
            for index, plane in enumerate(planes)
            for polygon in trace_contours(voxels[:, :, index] == segment.value)
        ]
        roi = item(ROINumber=number, ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID, ROIName=segment.name[:64])
        roi.ROIGenerationAlgorithm = "AUTOMATIC"
        rois.append(roi)
        region = item(ROIDisplayColor=list(segment.color), ReferencedROINumber=number, ContourSequence=contours or None)
        regions.append(region)
        codes = None if segment.type == TISSUE else [code_item(*segment.type)]
        observation = item(ObservationNumber=number, ReferencedROINumber=number, RTROIIdentificationCodeSequence=codes)
        observation.RTROIInterpretedType = observation.ROIInterpreter = ""
        observations.append(observation)
    result = item(
        SpecificCharacterSet="ISO_IR 192",  # names of labels may be in any script
        SOPClassUID=RTSTRUCT_CLASS,
        SOPInstanceUID=generate_uid(prefix=None),
        InstanceCreationDate=date,
        InstanceCreationTime=time,
        ReferringPhysicianName="",  # the standard requires the attribute, not the name
        Modality="RTSTRUCT",
        SeriesInstanceUID=generate_uid(prefix=None),
        SeriesNumber=2000 + series_number(first),
        SeriesDescription="medunet segmentation",
        OperatorsName="",
        Manufacturer="medunet",
        ManufacturerModelName=algorithm["name"],
        SoftwareVersions=algorithm["version"],
        InstanceNumber=1,
        StructureSetLabel="medunet",
        StructureSetDate=date,
        StructureSetTime=time,
        ApprovalStatus="UNAPPROVED",
        FrameOfReferenceUID=first.FrameOfReferenceUID,
        PositionReferenceIndicator=str(first.get("PositionReferenceIndicator") or ""),
        ReferencedFrameOfReferenceSequence=[_frame_of_reference(planes)],
        StructureSetROISequence=rois,
        ROIContourSequence=regions,
        RTROIObservationsSequence=observations,
    )
    copy_links(first, result)
    return result


def read_regions(path: Path) -> list[Structure]:
    """Return the regions of interest of an RTSTRUCT, including those without contours."""
    dataset = read_dataset(path)
    contours = {int(one.ReferencedROINumber): one for one in dataset.get("ROIContourSequence") or ()}
    regions = [
        (int(one.ROINumber), str(one.get("ROIName", ""))) for one in dataset.get("StructureSetROISequence") or ()
    ]
    if not regions:
        raise DataError("file has no region of interest", file=path)
    return [Structure(name, number, partial(_paint, contours.get(number), path)) for number, name in regions]


def _paint(region: Dataset | None, path: Path, reference: Geometry) -> Painting:
    if len(reference.shape) != 3:
        raise GeometryError("contours in a patient need an image volume", file=path, received=reference.shape)
    mask = np.zeros(reference.shape, dtype=bool)
    inverse = np.linalg.inv(flip_ras_lps(reference.affine))
    by_slice: dict[tuple[int, int], list[Polygon]] = defaultdict(list)
    skipped = between = duplicates = 0
    for contour in (region.get("ContourSequence") if region is not None else None) or ():
        points = _points(contour, path)
        if str(contour.get("ContourGeometricType", _CLOSED[0])) not in _CLOSED or len(points) < 3:
            skipped += 1
            continue
        indices = points @ inverse[:3, :3].T + inverse[:3, 3]
        spread = np.ptp(indices, axis=0)
        axis = int(np.argmin(spread))
        depth = float(indices[:, axis].mean())
        index = round(depth)
        cause = None
        if spread[axis] > PLANE_TOLERANCE_VOXELS:
            cause = f"crosses the image's slices: it is {spread[axis]:.2f} voxels deep"
        elif not 0 <= index < reference.shape[axis]:
            cause = f"is outside the image, which has no slice {index}"
        if cause:
            raise GeometryError(f"a contour {cause}", file=path, remedy="give the image that it was drawn on")
        between += abs(depth - index) > SLICE_TOLERANCE_VOXELS
        by_slice[axis, index].append(np.delete(indices, axis, axis=1))
    for (axis, index), polygons in by_slice.items():
        single = list({polygon.tobytes(): polygon for polygon in polygons}.values())
        duplicates += len(polygons) - len(single)
        view = np.moveaxis(mask, axis, 0)[index]
        view |= fill_contours(single, (view.shape[0], view.shape[1]))
    numbers = {index for _, index in by_slice}
    gaps = max(numbers) - min(numbers) + 1 - len(numbers) if numbers else 0
    warnings = (
        (skipped, "points and open contours left out"),
        (duplicates, "duplicate contours counted once"),
        (between, "contours between two slices counted to the nearer one"),
        (gaps, "slices without contour between slices with one"),
    )
    return Painting(mask, tuple(f"{count} {what}" for count, what in warnings if count))


def _points(contour: Dataset, path: Path) -> npt.NDArray[np.float64]:
    value = contour.get("ContourData")
    if isinstance(value, bytes):  # more than 64 kB in a file with types: pydicom returns bytes of unknown type
        value = value.decode("ascii", "replace").strip("\0 ").split("\\")
    try:
        numbers = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError("a contour has no usable ContourData", file=path) from None  # it would list all points
    if numbers.size % 3 or not np.isfinite(numbers).all():
        raise DataError("a contour must be a list of points", file=path, received=f"{numbers.size} numbers")
    return numbers.reshape(-1, 3)


def _contour(polygon: Polygon, plane: SourcePlane) -> Dataset:
    lps = flip_ras_lps(plane.geometry.affine)
    points = polygon @ lps[:3, :2].T + lps[:3, 3]
    return item(
        ContourImageSequence=[_image(plane)],
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=len(points),
        ContourData=[f"{number:.{_DECIMALS}f}" for number in (points.ravel() + 0.0)],
    )


def _image(plane: SourcePlane) -> Dataset:
    header = plane.header
    image = item(ReferencedSOPClassUID=header.SOPClassUID, ReferencedFrameNumber=plane.frame)
    image.ReferencedSOPInstanceUID = header.SOPInstanceUID
    return image


def _frame_of_reference(planes: Sequence[SourcePlane]) -> Dataset:
    header = planes[0].header
    images = [_image(plane) for plane in planes]
    series = item(SeriesInstanceUID=header.SeriesInstanceUID, ContourImageSequence=images)
    study = item(ReferencedSOPClassUID=_STUDY_CLASS, ReferencedSOPInstanceUID=header.StudyInstanceUID)
    study.RTReferencedSeriesSequence = [series]
    return item(FrameOfReferenceUID=header.FrameOfReferenceUID, RTReferencedStudySequence=[study])
