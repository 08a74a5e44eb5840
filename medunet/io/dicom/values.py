"""Values of DICOM tags, decoded from their raw bytes.

pydicom's own conversions warn about harmless flaws (a UID with a leading zero) in every file, and take most of the time
of a series of many slices.
"""

from __future__ import annotations

import logging
import math
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import pydicom
from pydicom.tag import Tag

from medunet.errors import DataError, MedunetError


class _WithoutValues(logging.Filter):
    """Removes quotations from pydicom's warnings: for a damaged header they may have everything after the damage."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = "a DICOM header has an unusual value (not quoted here)", ()
        return True


# for every use of pydicom: a patient's name in a log cannot be taken back
logging.getLogger("pydicom").addFilter(_WithoutValues())
warnings.filterwarnings("ignore", category=UserWarning, module="pydicom")  # repeat the log lines


def keywords(names: str) -> tuple[str, ...]:
    """Return the names in a text, separated by white space."""
    return tuple(names.split())


TEMPORAL_KEYS = keywords("""
    TemporalPositionIdentifier TemporalPositionIndex NominalPercentageOfCardiacPhase TriggerTime DiffusionBValue
    EchoNumbers EchoTime EffectiveEchoTime InversionTime FlipAngle ImageType AcquisitionNumber FrameAcquisitionNumber
    AcquisitionTime ContentTime""")
"""Tags that may distinguish the phases of a series, the most specific first."""

IDENTITY = {
    "PatientID": "patients",
    "PatientName": "patients",
    "StudyInstanceUID": "studies",
    "FrameOfReferenceUID": "frames of reference",
}
"""Tags whose values must agree within a series, and what different values mean."""

BINARY_TAGS = {
    **dict.fromkeys(
        keywords("""
        SamplesPerPixel Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue
        PixelPaddingRangeLimit FrameAcquisitionNumber"""),
        "H",
    ),
    "TemporalPositionIndex": "I",
    **dict.fromkeys(["NominalPercentageOfCardiacPhase", "DiffusionBValue", "EffectiveEchoTime"], "d"),
}
"""Binary tags and their `struct` formats; all others are text."""

_TOP_LEVEL = [
    *keywords("""
    SOPClassUID SOPInstanceUID Modality SeriesInstanceUID PhotometricInterpretation NumberOfFrames PixelSpacing
    SliceThickness ImagerPixelSpacing ImagePositionPatient ImageOrientationPatient RescaleSlope RescaleIntercept
    NominalScannedPixelSpacing PixelAspectRatio LossyImageCompression ReferencedFileID InstanceNumber
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence ModalityLUTSequence"""),
    *TEMPORAL_KEYS,
    *IDENTITY,
    *BINARY_TAGS,
]
_IN_SEQUENCES = keywords("""
    PlanePositionSequence PlaneOrientationSequence PixelMeasuresSequence FrameContentSequence
    PixelValueTransformationSequence MREchoSequence MRDiffusionSequence DirectoryRecordSequence
    SegmentIdentificationSequence ReferencedSegmentNumber""")
_TAG = {keyword: Tag(keyword) for keyword in (*_TOP_LEVEL, *_IN_SEQUENCES)}

TOP_LEVEL_TAGS = [_TAG[keyword] for keyword in dict.fromkeys(_TOP_LEVEL)]
"""What is read of each header. Of the patient's identity only `IDENTITY` is read, and only to be compared."""


def text(dataset: pydicom.Dataset, keyword: str) -> str:
    """Return a tag as text, several values separated by a backslash; '' if it is missing or empty."""
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


def decimals(dataset: pydicom.Dataset | None, keyword: str) -> tuple[float, ...] | None:
    """Return a text tag as numbers, NaN for parts that are not numbers; None if the tag is missing or empty."""
    written = "" if dataset is None else text(dataset, keyword)
    return tuple(map(_to_float, written.split("\\"))) if written else None


def number(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """Return the first value of a binary tag; None if it is missing or empty."""
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


def items(dataset: pydicom.Dataset, keyword: str) -> list[pydicom.Dataset]:
    """Return the items of a sequence; none if it is missing."""
    tag = _TAG[keyword]
    return list(dataset[tag].value or []) if tag in dataset else []


Levels = Sequence[pydicom.Dataset]
"""Where the attributes of a frame may be: its own functional groups, the shared ones, and the header, in this order."""


def frame_levels(header: pydicom.Dataset) -> list[list[pydicom.Dataset]]:
    """Return the levels of each frame that has its own functional groups."""
    shared = items(header, "SharedFunctionalGroupsSequence")
    return [[group, *shared, header] for group in items(header, "PerFrameFunctionalGroupsSequence")]


def find(levels: Levels, sequence: str, keyword: str) -> pydicom.Dataset | None:
    """Return the first data set that has a tag: a level, or an item of its sequence."""
    tag = _TAG[keyword]
    for level in levels:
        for item in (level, *items(level, sequence)):
            if tag in item:
                return item
    return None


def find_decimals(levels: Levels, sequence: str, keyword: str) -> tuple[float, ...] | None:
    """Return the numbers of the first tag that `find` finds."""
    return decimals(find(levels, sequence, keyword), keyword)


def damaged(
    cause: str, file: Path, kind: type[MedunetError] = DataError, *, received: object = None, expected: object = None
) -> MedunetError:
    """Return the error for a file that only another export can fix."""
    return kind(cause, file=file, received=received, expected=expected, remedy="export the series again")
