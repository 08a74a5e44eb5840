"""Values of DICOM tags from their raw bytes.

Our own few lines, because pydicom's conversions warn about harmless blemishes (a UID with a leading zero) for every
file, and take most of the time of a series of many slices.
"""

from __future__ import annotations

import logging
import math
import struct
import warnings

import pydicom
from pydicom.tag import Tag


class _WithoutValues(logging.Filter):
    """Lets pydicom warn, but not quote: of a damaged header its message may hold everything behind the damage."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = "a DICOM header has an unusual value (not quoted here)", ()
        return True


# wherever pydicom is asked for a value: a patient's name in a log cannot be called back
logging.getLogger("pydicom").addFilter(_WithoutValues())
warnings.filterwarnings("ignore", category=UserWarning, module="pydicom")  # they say the same

TEMPORAL_KEYS = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "NominalPercentageOfCardiacPhase",
    "TriggerTime",
    "DiffusionBValue",
    "EchoNumbers",
    "EchoTime",
    "EffectiveEchoTime",
    "InversionTime",
    "FlipAngle",
    "ImageType",
    "AcquisitionNumber",
    "FrameAcquisitionNumber",
    "AcquisitionTime",
    "ContentTime",
)
"""What may tell the phases of a series apart, the most telling first."""

IDENTITY = {
    "PatientID": "patients",
    "PatientName": "patients",
    "StudyInstanceUID": "studies",
    "FrameOfReferenceUID": "frames of reference",
}
"""Tags whose values must agree within a series, and what different values mean."""

BINARY_TAGS = {
    "SamplesPerPixel": "H",
    "Rows": "H",
    "Columns": "H",
    "BitsAllocated": "H",
    "BitsStored": "H",
    "HighBit": "H",
    "PixelRepresentation": "H",
    "PixelPaddingValue": "H",
    "PixelPaddingRangeLimit": "H",
    "TemporalPositionIndex": "I",
    "FrameAcquisitionNumber": "H",
    "NominalPercentageOfCardiacPhase": "d",
    "DiffusionBValue": "d",
    "EffectiveEchoTime": "d",
}
"""Tags kept in binary, with their `struct` format; all others are text."""

_TEXT = (
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "SeriesInstanceUID",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "PixelSpacing",
    "SliceThickness",
    "ImagerPixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "RescaleSlope",
    "RescaleIntercept",
    "NominalScannedPixelSpacing",
    "PixelAspectRatio",
    "LossyImageCompression",
    "ReferencedFileID",
    "InstanceNumber",
    *(key for key in TEMPORAL_KEYS if key not in BINARY_TAGS),
    *IDENTITY,
)
_SEQUENCES = (
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "FrameContentSequence",
    "MREchoSequence",
    "MRDiffusionSequence",
    "DirectoryRecordSequence",
    "ModalityLUTSequence",
)
_TAG = {keyword: Tag(keyword) for keyword in (*_TEXT, *BINARY_TAGS, *_SEQUENCES)}

TOP_LEVEL_TAGS = [_TAG[keyword] for keyword in (*_TEXT, *BINARY_TAGS, *_SEQUENCES[:2], "ModalityLUTSequence")]
"""What is read of each header. Of the patient's identity only `IDENTITY` is read, and only to be compared."""


def text(dataset: pydicom.Dataset, keyword: str) -> str:
    """A tag as text, several values divided by a backslash; '' where it is missing or empty."""
    tag = _TAG[keyword]
    if tag not in dataset:
        return ""
    value = dataset.get_item(tag).value
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("latin-1").strip(" \0")
    if isinstance(value, str):
        return value.strip(" \0")
    return "\\".join(map(str, value)) if hasattr(value, "__iter__") else str(value)


def decimals(dataset: pydicom.Dataset, keyword: str) -> tuple[float, ...] | None:
    """A text tag as numbers; NaN where a part is no number, None where the tag is missing or empty."""
    written = text(dataset, keyword)
    if not written:
        return None
    return tuple(_to_float(part) for part in written.split("\\"))


def number(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """The first value of a binary tag, None where it is missing or empty."""
    tag = _TAG[keyword]
    if tag not in dataset:
        return None
    element = dataset.get_item(tag)
    value = element.value
    if isinstance(value, bytes):
        form = BINARY_TAGS[keyword]
        if len(value) < struct.calcsize(form):
            return None
        little = getattr(element, "is_little_endian", True)
        return float(struct.unpack_from(("<" if little else ">") + form, value)[0])
    return None if value in (None, "") else float(value)


def _to_float(part: str) -> float:
    try:
        return float(part)
    except ValueError:
        return math.nan


def has(dataset: pydicom.Dataset, keyword: str) -> bool:
    """Whether a tag is there, though maybe empty."""
    return _TAG[keyword] in dataset


def items(dataset: pydicom.Dataset, keyword: str) -> list[pydicom.Dataset]:
    """The items of a sequence, none where it is missing."""
    tag = _TAG[keyword]
    return list(dataset[tag].value or []) if tag in dataset else []
