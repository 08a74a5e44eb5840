"""DICOM Structured Reports (TID 1500) with the measurements of the segments of a DICOM SEG."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from medunet.errors import DataError
from medunet.io.extras import import_extra

from .references import LINKS, copy_links, item, series_number
from .seg import LARGEST_LABEL

ENDING = "_sr.dcm"
_SIZES = {
    "volume_mm3": Code("118565006", "SCT", "Volume"),
    "surface_mm2": Code("C0JK", "IBSI", "Surface Area of Mesh"),
    "area_mm2": Code("42798000", "SCT", "Area"),
    "diameter_mm": Code("L0JK", "IBSI", "Maximum 3D Diameter of a Mesh"),
    "long_axis_mm": Code("103339001", "SCT", "Long axis"),
    "short_axis_mm": Code("103340004", "SCT", "Short axis"),
}
_STATISTICS = {
    "intensity_mean": Code("373098007", "SCT", "Mean"),
    "intensity_std": Code("386136009", "SCT", "Standard Deviation"),
    "intensity_min": Code("255605001", "SCT", "Minimum"),
    "intensity_median": Code("373099004", "SCT", "Median"),
    "intensity_max": Code("56851009", "SCT", "Maximum"),
}
_HOUNSFIELD = Code("112031", "DCM", "Attenuation Coefficient"), Code("[hnsf'U]", "UCUM", "Hounsfield unit")
_STORED = Code("INTENSITY", "99MEDUNET", "Intensity"), Code("1", "UCUM", "no units")  # of the other modalities
_CUT_OFF = Code("CUTOFF", "99MEDUNET", "Touches the border of the image")
_YES = Code("373066001", "SCT", "Yes")
_IMAGING = Code("363679005", "SCT", "Imaging procedure")


def make_measurement_report(
    rows: Sequence[Mapping[str, Any]], seg: Dataset, source: Dataset, algorithm: Mapping[str, str]
) -> Dataset:
    """Return an Enhanced SR with the measurements of segments.

    Args:
        rows: of :func:`medunet.metrics.measure_labels`; their names, and numbers of objects, are labels of segments.
        seg: the DICOM SEG, whose study the report belongs to.
        source: header of one slice of the series that was segmented.
        algorithm: `name` and `version` of what measured.

    Raises:
        ConfigError: highdicom is not installed.
        DataError: no row belongs to a segment, or headers that highdicom rejects.
    """
    hd = import_extra("highdicom", extra="dicom", purpose="writing DICOM SR")
    segments = {str(one.get("SegmentLabel", "")): one for one in seg.get("SegmentSequence") or ()}
    named = [(f"{row['structure']} {row.get('object', '')}".strip()[:LARGEST_LABEL], row) for row in rows]
    if not (found := [(name, row) for name, row in named if name in segments]):
        raise DataError("a DICOM SR needs measurements of a segment", expected=", ".join(segments))
    try:
        uid = generate_uid(entropy_srcs=list(algorithm.values()))
        device = hd.sr.DeviceObserverIdentifyingAttributes(uid=uid, name=algorithm["name"])
        observer = hd.sr.ObserverContext(Code("121007", "DCM", "Device"), device)
        groups = [_group(hd, row, segments[name], seg, source) for name, row in found]
        report = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(observer_device_context=observer),
            procedure_reported=_IMAGING,
            imaging_measurements=groups,
        )
        names = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
        uids = {name: seg[name].value for name in names}
        # LINKS are copied later: highdicom rejects invalid values
        evidence = item(SpecificCharacterSet="ISO_IR 192", **{**dict.fromkeys(LINKS, ""), **uids})
        result: Dataset = hd.sr.EnhancedSR(
            evidence=[evidence],
            content=report[0],
            series_instance_uid=generate_uid(prefix=None),
            series_number=3000 + series_number(source),
            sop_instance_uid=generate_uid(prefix=None),
            instance_number=1,
            manufacturer="medunet",
            is_complete=True,
            manufacturer_model_name=algorithm["name"],
            software_versions=algorithm["version"],
            device_serial_number="0",
            series_description="medunet measurements",
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(f"highdicom rejects the headers of the DICOM SEG ({type(error).__name__})") from None
    copy_links(seg, result)
    result.ReferringPhysicianName = ""  # required by the standard, may be empty
    return result


def _group(hd: ModuleType, row: Mapping[str, Any], segment: Dataset, seg: Dataset, source: Dataset) -> Any:
    sr, label = hd.sr, str(segment.SegmentLabel)
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    intensity, unit = _HOUNSFIELD if source.get("Modality") == "CT" else _STORED
    units = {key: Code(of := key.rpartition("_")[2], "UCUM", of) for key in _SIZES}
    measurements = [sr.Measurement(code, row[key], units[key]) for key, code in _SIZES.items() if key in row]
    measurements += [
        sr.Measurement(intensity, row[key], unit, derivation=code) for key, code in _STATISTICS.items() if key in row
    ]
    flags = [sr.QualitativeEvaluation(_CUT_OFF, _YES)] if row.get("is_cut_off") else []
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=generate_uid(prefix=None), identifier=label),
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=int(segment.SegmentNumber),
            source_series=sr.SourceSeriesForSegmentation(source.SeriesInstanceUID),
        ),
        finding_type=Code(str(kind.CodeValue), str(kind.CodingSchemeDesignator), str(kind.CodeMeaning)),
        measurements=measurements,
        qualitative_evaluations=flags,
    )
