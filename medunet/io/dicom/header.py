"""Headers of DICOM files and their frames, checked before a pixel is used."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Literal

import pydicom

from medunet.errors import DataError
from medunet.io.limits import open_for_reading, refuse_deflate_bomb

from . import tags

DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")  # files of a series often have no ending
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"  # Media Storage Directory: a DICOMDIR

_PREAMBLE_BYTES = 128
_MAGIC_END = _PREAMBLE_BYTES + 4
_META_BYTES = 512  # beginning of a file that names its class

# Storage classes, including those that extend them by a number, whose objects are damaged if they have no pixels.
_IMAGE_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1.",  # CR, DX, mammography
    "1.2.840.10008.5.1.4.1.1.2.",  # CT, enhanced, legacy converted
    "1.2.840.10008.5.1.4.1.1.4.",  # MR, enhanced, legacy converted
    "1.2.840.10008.5.1.4.1.1.20.",  # nuclear medicine
    "1.2.840.10008.5.1.4.1.1.128.",  # PET, legacy converted
    "1.2.840.10008.5.1.4.1.1.130.",  # PET, enhanced
)
# Storage classes of objects that may have rows and columns, but are not images of the patient.
_OTHER_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.30.",  # parametric map
    "1.2.840.10008.5.1.4.1.1.66.",  # raw data, registration, segmentation, label map
    "1.2.840.10008.5.1.4.1.1.481.",  # radiotherapy: dose and plan
    "1.2.840.10008.5.1.4.1.1.11.",  # presentation states
    "1.2.840.10008.5.1.4.1.1.88.",  # structured reports
)

IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG = "1.2.840.10008.1.2.4."  # start of the transfer syntaxes of JPEG and its successors
JPEG_FAMILY = tags.keywords("50 51 57 70 80 81 90 91 201 202 203")  # ends of those whose codestreams end with a mark
_NATIVE = (IMPLICIT, "1.2.840.10008.1.2.1", BIG_ENDIAN)

PALETTE = "PALETTE COLOR"
_SUBSAMPLED = "YBR_FULL_422"
_COLOURS = ("RGB", "YBR_FULL", _SUBSAMPLED, "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")

_ITEM = b"\xfe\xff\x00\xe0"
_END_OF_ITEMS = b"\xfe\xff\xdd\xe0"
_UNDEFINED = 0xFFFFFFFF
_END_OF_CODESTREAM = b"\xff\xd9"  # of JPEG, JPEG-LS and JPEG 2000

# Functional group of a temporal key if it is not FrameContentSequence.
_MOMENT_SEQUENCE = {"EffectiveEchoTime": "MREchoSequence", "DiffusionBValue": "MRDiffusionSequence"}


@dataclass(frozen=True)
class ImageFile:
    """One DICOM file that has pixels."""

    path: Path
    series_uid: str
    modality: str
    is_localizer: bool
    syntax: str
    rows: int  # of a tile, in a mosaic
    columns: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    n_frames: int
    padding: tuple[int, int] | None  # smallest and largest stored value that marks 'no image here'
    is_lossy: bool
    identity: Mapping[str, str] = field(compare=False, repr=False)  # values of `IDENTITY`: compared, never recorded
    is_mosaic: bool
    lut: tags.ModalityLut | None = field(compare=False)
    pixel_offset: int | None = None  # where native pixels begin in the file; None for compressed ones
    tiles: int = 1  # tiles per row of a Siemens mosaic; a frame's index then counts tiles

    @property
    def is_colour(self) -> bool:
        """Whether pixels are red, green and blue, or indices of a palette."""
        return self.samples == 1 if self.photometric == PALETTE else self.samples == 3 and self.photometric in _COLOURS

    @property
    def frame_bytes(self) -> int:
        """Size of one frame, uncompressed."""
        return self.rows * self.columns * self.bits_allocated // 8


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice: a file, or one frame of a file. Numbers are as in the header, unchecked; None if missing."""

    file: ImageFile
    index: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    slope: float | None
    intercept: float | None
    thickness: float | None
    moments: Mapping[str, str]  # values of the `TEMPORAL_KEYS` that the frame has
    number: int | None  # InstanceNumber of the file


def looks_like_dicom(path: Path) -> bool:
    """Return whether a file has DICOM's magic word."""
    try:
        with path.open("rb") as file:
            return file.read(_MAGIC_END)[_PREAMBLE_BYTES:] == b"DICM"
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False


def _require_no_lost_slice(path: Path) -> None:
    """Reject a file without DICOM's magic word that was meant to be a slice: empty, zeroed or with DICOM's ending."""
    if path.name.startswith("."):  # notes of file systems and programs, such as macOS's ._slice.dcm
        return
    with open_for_reading(path) as file:
        start = file.read(_MAGIC_END)
    if not start.strip(b"\0"):
        raise DataError("file has zeros in place of a DICOM header" if start else "file has zero bytes", file=path)
    if path.suffix.lower() in DICOM_SUFFIXES:
        raise DataError("file has a DICOM ending but no DICOM header", file=path)


def read_frames(path: Path) -> list[Frame] | None:
    """Return the frames of one file, or None for a file without an image (a note, a report, contours, a segmentation).

    A damaged image is a DataError; a deflated one that unpacks to an implausible size is a SecurityError.
    """
    if not looks_like_dicom(path):
        _require_no_lost_slice(path)
        return None
    with tags.typed_errors("damaged DICOM header", path), path.open("rb") as file:
        if DIRECTORY_CLASS.encode() in file.read(_META_BYTES):  # pydicom 2 makes another object of a DICOMDIR
            return None
        refuse_deflate_bomb(file, path)
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags.TOP_LEVEL_TAGS)
        kind = str(header.file_meta.get("MediaStorageSOPClassUID", "")) or tags.text(header, "SOPClassUID")
        if f"{kind}.".startswith(_OTHER_CLASSES):
            return None
        if not tags.number(header, "Rows") or not tags.number(header, "Columns"):
            if not kind or f"{kind}.".startswith(_IMAGE_CLASSES):
                raise DataError("header is truncated: no Rows and Columns", file=path)
            return None
        image = _image_file(path, header, str(header.file_meta.get("TransferSyntaxUID", "")))
        return _frames(replace(image, pixel_offset=_pixel_offset(image, file, file.tell())), header)


def _image_file(path: Path, header: pydicom.Dataset, syntax: str) -> ImageFile:
    def whole(keyword: str, default: int) -> int:
        value = tags.number(header, keyword)
        return default if value is None else int(value)

    bits = whole("BitsAllocated", 16)
    stored = whole("BitsStored", bits)
    signed = whole("PixelRepresentation", 0) == 1
    padding = tags.number(header, "PixelPaddingValue")
    limit = tags.number(header, "PixelPaddingRangeLimit")
    ends = [int(v) for v in (padding, limit if padding is not None else None) if v is not None]
    if signed and bits == 16:  # they are read as unsigned
        ends = [end - (1 << 16) if end >= 1 << 15 else end for end in ends]
    frames = tags.decimals(header, "NumberOfFrames") or (1.0,)
    image_type = tags.text(header, "ImageType").split("\\")
    n_frames = int(frames[0]) if math.isfinite(frames[0]) else 0
    if n_frames < 1 or bits not in (8, 16, 32) or not 1 <= stored <= bits:
        received = f"{frames[0]:g} frames, {stored} of {bits} bits stored"
        raise DataError("impossible pixel format", file=path, received=received)
    return ImageFile(
        path=path,
        series_uid=tags.text(header, "SeriesInstanceUID"),
        modality=tags.text(header, "Modality"),
        is_localizer="LOCALIZER" in image_type,
        syntax=syntax,
        rows=whole("Rows", 0),
        columns=whole("Columns", 0),
        samples=whole("SamplesPerPixel", 1),
        photometric=tags.text(header, "PhotometricInterpretation") or "MONOCHROME2",
        bits_allocated=bits,
        bits_stored=stored,
        high_bit=whole("HighBit", stored - 1),
        is_signed=signed,
        n_frames=n_frames,
        padding=(min(ends), max(ends)) if ends else None,
        is_lossy=tags.text(header, "LossyImageCompression") == "01",
        identity={keyword: tags.text(header, keyword) for keyword in tags.IDENTITY},
        is_mosaic="MOSAIC" in image_type,
        lut=tags.read_modality_lut(header, path, is_signed=signed, is_big_endian=syntax == BIG_ENDIAN),
    )


def _pixel_offset(image: ImageFile, file: BinaryIO, header_end: int) -> int | None:
    """Check that the pixel data are complete; return where native ones begin."""
    if image.syntax == DEFLATED:
        return None
    if not image.syntax:
        raise DataError("file has no transfer syntax", file=image.path)
    size = os.fstat(file.fileno()).st_size
    file.seek(header_end)
    head = file.read(12)
    order: Literal["big", "little"] = "big" if image.syntax == BIG_ENDIAN else "little"
    if len(head) < 8 or (int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order)) != (0x7FE0, 0x0010):
        raise DataError("file has no pixel data", file=image.path)
    start = header_end + (8 if image.syntax == IMPLICIT else 12)
    if image.syntax not in _NATIVE:
        _check_fragments(image, file, start, size)
        return None
    length = int.from_bytes(head[4:8] if image.syntax == IMPLICIT else head[8:12], order)
    samples = 2 if image.photometric == _SUBSAMPLED else image.samples  # two pixels share their chrominance
    present, needed = min(length, size - start), image.frame_bytes * image.n_frames * samples
    if present < needed:
        received, expected = f"{present} bytes", f"{needed} bytes"
        raise DataError("truncated pixel data", file=image.path, received=received, expected=expected)
    return start


def _check_fragments(image: ImageFile, file: BinaryIO, start: int, size: int) -> None:
    """Walk the items of compressed pixel data, an offset table and codestreams, to their end mark without decoding."""
    place, n_items, tail = start, 0, b""
    while True:
        file.seek(place)
        head = file.read(8)
        if head[:4] == _END_OF_ITEMS:
            break
        length = int.from_bytes(head[4:8], "little")
        if len(head) < 8 or length == _UNDEFINED or place + 8 + length > size or head[:4] != _ITEM:
            raise DataError("truncated pixel data", file=image.path, received=f"{n_items} items")
        if n_items and length:
            file.seek(place + 8 + max(length - 8, 0))
            tail = file.read(min(length, 8))
        n_items += 1
        place += 8 + length
    if n_items < 2:
        raise DataError("truncated pixel data: no frame", file=image.path)
    if image.syntax.removeprefix(JPEG) in JPEG_FAMILY and _END_OF_CODESTREAM not in tail:
        raise DataError("truncated pixel data: the codestream has no end", file=image.path)


def _frames(image: ImageFile, header: pydicom.Dataset) -> list[Frame]:
    groups = tags.frame_levels(header)
    if not groups and image.n_frames == 1:
        return [_frame(image, 0, [header])]
    if not groups and not tags.items(header, "SharedFunctionalGroupsSequence"):
        # ultrasound, secondary capture, ...: the header's position is not that of its frames
        if image.n_frames > image.path.stat().st_size:
            raise DataError("impossible number of frames", file=image.path, received=image.n_frames)
        frame = replace(_frame(image, 0, [header]), position=None, orientation=None)
        return [replace(frame, index=index) for index in range(image.n_frames)]
    if len(groups) != image.n_frames:
        received, expected = f"{len(groups)} functional groups", f"{image.n_frames}, one per frame"
        cause = "multi-frame image does not give the positions of its frames"
        raise DataError(cause, file=image.path, received=received, expected=expected)
    return [_frame(image, index, levels) for index, levels in enumerate(groups)]


def _frame(image: ImageFile, index: int, levels: tags.Levels) -> Frame:
    def first(sequence: str, keyword: str) -> float | None:
        values = tags.find_decimals(levels, sequence, keyword)
        return values[0] if values else None

    moments = {}
    for keyword in tags.TEMPORAL_KEYS:
        item = tags.find(levels, _MOMENT_SEQUENCE.get(keyword, "FrameContentSequence"), keyword)
        if item is not None:
            value = tags.number(item, keyword) if keyword in tags.BINARY_TAGS else tags.text(item, keyword)
            if value not in (None, ""):
                moments[keyword] = f"{value:g}" if isinstance(value, float) else str(value)
    instance = tags.decimals(levels[-1], "InstanceNumber") or (math.nan,)
    return Frame(
        file=image,
        index=index,
        position=tags.find_decimals(levels, "PlanePositionSequence", "ImagePositionPatient"),
        orientation=tags.find_decimals(levels, "PlaneOrientationSequence", "ImageOrientationPatient"),
        spacing=tags.find_decimals(levels, "PixelMeasuresSequence", "PixelSpacing"),
        slope=first("PixelValueTransformationSequence", "RescaleSlope"),
        intercept=first("PixelValueTransformationSequence", "RescaleIntercept"),
        thickness=first("PixelMeasuresSequence", "SliceThickness"),
        moments=moments,
        number=int(instance[0]) if math.isfinite(instance[0]) else None,
    )
