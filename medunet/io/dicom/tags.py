"""Values of DICOM tags, decoded from their raw bytes.

pydicom's own conversions warn about harmless flaws (a UID with a leading zero) in every file, and take most of the time
of a series of many slices.
"""

import logging
import math
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.tag import BaseTag, Tag

from medunet.errors import DataError, MedunetError


def _hide_value(record: logging.LogRecord) -> bool:
    """Replace pydicom's warnings: those about a damaged header may quote everything after the damage."""
    record.msg, record.args = "a DICOM header has an unusual value (not quoted here)", ()
    return True


# for every use of pydicom: a patient's name in a log cannot be taken back
logging.getLogger("pydicom").addFilter(_hide_value)
warnings.filterwarnings("ignore", category=UserWarning, module="pydicom")  # repeat the log lines


def keywords(names: str) -> tuple[str, ...]:
    """Return the names in a text, separated by white space."""
    return tuple(names.split())


# Tags that may distinguish the phases of a series, the most specific first.
TEMPORAL_KEYS = keywords("""
    TemporalPositionIdentifier TemporalPositionIndex NominalPercentageOfCardiacPhase TriggerTime DiffusionBValue
    EchoNumbers EchoTime EffectiveEchoTime InversionTime FlipAngle ImageType AcquisitionNumber FrameAcquisitionNumber
    AcquisitionTime ContentTime""")

# Tags whose values must agree within a series, and what different values mean.
IDENTITY = {
    "PatientID": "patients",
    "PatientName": "patients",
    "StudyInstanceUID": "studies",
    "FrameOfReferenceUID": "frames of reference",
}

_SHORTS = keywords("""
    SamplesPerPixel Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue
    PixelPaddingRangeLimit FrameAcquisitionNumber""")
_DOUBLES = ["NominalPercentageOfCardiacPhase", "DiffusionBValue", "EffectiveEchoTime"]
BINARY_TAGS = {**dict.fromkeys(_SHORTS, "H"), "TemporalPositionIndex": "I", **dict.fromkeys(_DOUBLES, "d")}
"""Binary tags and their `struct` formats; all others are text."""

_TEXTS = keywords("""
    SOPClassUID SOPInstanceUID Modality SeriesInstanceUID PhotometricInterpretation NumberOfFrames PixelSpacing
    SliceThickness ImagerPixelSpacing ImagePositionPatient ImageOrientationPatient RescaleSlope RescaleIntercept
    NominalScannedPixelSpacing PixelAspectRatio LossyImageCompression ReferencedFileID InstanceNumber
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence ModalityLUTSequence""")
TOP_LEVEL_TAGS = list(map(Tag, dict.fromkeys([*_TEXTS, *TEMPORAL_KEYS, *IDENTITY, *BINARY_TAGS])))
"""What is read of each header. Of the patient's identity only `IDENTITY` is read, and only to be compared."""

Levels = Sequence[pydicom.Dataset]
"""Where the attributes of a frame may be: its own functional groups, the shared ones, and the header, in this order."""


@contextmanager
def typed_errors(cause: str, file: Path) -> Iterator[None]:
    """Turn the errors of pydicom and its plugins about damaged bytes, which have any type, into a DataError."""
    try:
        yield
    except MedunetError:
        raise
    except Exception as error:
        raise DataError(f"{cause}: {type(error).__name__}", file=file) from error


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def text(dataset: pydicom.Dataset, keyword: str) -> str:
    """Return a tag as text, several values separated by a backslash; '' if it is missing or empty."""
    tag = _tag(keyword)
    value = dataset.get_item(tag).value if tag in dataset else None
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        return value.strip(" \0")
    if value is None:
        return ""
    return "\\".join(map(str, value)) if hasattr(value, "__iter__") else str(value)


def decimals(dataset: pydicom.Dataset | None, keyword: str) -> tuple[float, ...] | None:
    """Return a text tag as numbers, NaN for parts that are not numbers; None if the tag is missing or empty."""
    written = "" if dataset is None else text(dataset, keyword)
    return tuple(map(_to_float, written.split("\\"))) if written else None


def _to_float(part: str) -> float:
    try:
        return float(part)
    except ValueError:
        return math.nan


def number(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """Return the first value of a binary tag; None if it is missing or empty."""
    tag = _tag(keyword)
    if tag not in dataset:
        return None
    element = dataset.get_item(tag)
    value = element.value
    if isinstance(value, bytes):
        form = ("<" if getattr(element, "is_little_endian", True) else ">") + BINARY_TAGS[keyword]
        return float(struct.unpack_from(form, value)[0]) if len(value) >= struct.calcsize(form) else None
    return None if value in (None, "") else float(value)


def items(dataset: pydicom.Dataset, keyword: str) -> list[pydicom.Dataset]:
    """Return the items of a sequence; none if it is missing."""
    tag = _tag(keyword)
    return list(dataset[tag].value or []) if tag in dataset else []


def frame_levels(header: pydicom.Dataset) -> list[list[pydicom.Dataset]]:
    """Return the levels of each frame that has its own functional groups."""
    shared = items(header, "SharedFunctionalGroupsSequence")
    return [[group, *shared, header] for group in items(header, "PerFrameFunctionalGroupsSequence")]


def find(levels: Levels, sequence: str, keyword: str) -> pydicom.Dataset | None:
    """Return the first data set that has a tag: a level, or an item of its sequence."""
    tag = _tag(keyword)
    return next((item for level in levels for item in (level, *items(level, sequence)) if tag in item), None)


def find_decimals(levels: Levels, sequence: str, keyword: str) -> tuple[float, ...] | None:
    """Return the numbers of the first tag that `find` finds."""
    return decimals(find(levels, sequence, keyword), keyword)


class ModalityLut(NamedTuple):
    """A table that maps stored values to output values instead of a slope and an intercept."""

    first: int  # stored value of the first entry; values outside the table take its first or last entry
    values: npt.NDArray[np.uint16]
    bits_stored: int  # of the entries

    def apply(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
        """Map stored values to output values."""
        return self.values[np.clip(stored.astype(np.int64) - self.first, 0, len(self.values) - 1)]


def read_modality_lut(
    header: pydicom.Dataset, path: Path, *, is_signed: bool, is_big_endian: bool
) -> ModalityLut | None:
    """Return the table of a header, or None if it has none; a damaged table is a DataError."""
    tables = items(header, "ModalityLUTSequence")
    if not tables:
        return None
    order = ">" if is_big_endian else "<"
    with typed_errors("damaged ModalityLUTSequence", path):
        descriptor = _words(tables[0].LUTDescriptor, order)
        count, first, bits = int(descriptor[0]) or 1 << 16, int(descriptor[1]), int(descriptor[2])
        data = tables[0].LUTData
        is_packed = bits <= 8 and isinstance(data, bytes) and len(data) in (count, count + 1)  # padded to be even
        values = np.frombuffer(data, np.uint8)[:count].astype(np.uint16) if is_packed else _words(data, order)
    if len(tables) > 1 or not 1 <= bits <= 16 or values.size != count or int(values.max()) >= 1 << bits:
        received, expected = f"{len(tables)} tables, {values.size} entries", f"{count} entries of {bits} bits"
        cause = "ModalityLUTSequence does not match its descriptor"
        raise DataError(cause, file=path, received=received, expected=expected)
    return ModalityLut(first - (1 << 16) if is_signed and first >= 1 << 15 else first, values, bits)


def _words(value: Any, order: str) -> npt.NDArray[np.uint16]:
    """Return a value of ambiguous representation (US, SS or OW) as unsigned 16-bit numbers."""
    if isinstance(value, bytes):
        return np.frombuffer(value, f"{order}u2").astype(np.uint16)
    return (np.atleast_1d(np.array(value, dtype=np.int64)) & 0xFFFF).astype(np.uint16)
