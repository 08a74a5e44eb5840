"""Stored values of DICOM frames: native ones straight from the file, compressed ones by pydicom or imagecodecs.

GDCM, which knows all of these syntaxes too, is not used: a damaged JPEG-LS codestream makes it end the whole process
(SimpleITK 2.5.7: floating point exception), where these decoders raise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import encaps
from pydicom.uid import UID

from medunet.errors import DataError

from .header import BIG_ENDIAN, JPEG, Frame, ImageFile

Stored = npt.NDArray[Any]
"""Integers as in the file, ``(rows, columns)``."""

_CODECS = {
    "50": ("JPEG8", "jpeg8_decode", "pylibjpeg-libjpeg"),
    "51": ("JPEG8", "jpeg8_decode", "pylibjpeg-libjpeg"),
    "57": ("JPEG8", "jpeg8_decode", "pylibjpeg-libjpeg"),
    "70": ("JPEG8", "jpeg8_decode", "pylibjpeg-libjpeg"),
    "80": ("JPEGLS", "jpegls_decode", "pylibjpeg-libjpeg"),
    "81": ("JPEGLS", "jpegls_decode", "pylibjpeg-libjpeg"),
    "90": ("JPEG2K", "jpeg2k_decode", "pylibjpeg-openjpeg"),
    "91": ("JPEG2K", "jpeg2k_decode", "pylibjpeg-openjpeg"),
    "201": ("HTJ2K", "htj2k_decode", "pylibjpeg-openjpeg"),
    "202": ("HTJ2K", "htj2k_decode", "pylibjpeg-openjpeg"),
    "203": ("HTJ2K", "htj2k_decode", "pylibjpeg-openjpeg"),
}
"""Last part of a JPEG transfer syntax to imagecodecs' name and function, and to pydicom's plugin of pylibjpeg."""

_RLE = "1.2.840.10008.1.2.5"

_PIXEL_TAGS = [
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
]


class Decoder:
    """Stored values of frames; keeps the last compressed file, whose frames come in a row."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._frames: Stored = np.empty(0)

    def stored(self, frame: Frame) -> Stored:
        """Values as in the file, bits beyond BitsStored included where the pixels are native.

        Raises:
            DataError: truncated or damaged pixels, or no decoder for the transfer syntax.
        """
        file = frame.file
        if file.tiles == 1 and is_plain(file):
            return _native(file, frame.index)
        if self._path != file.path:
            self._frames, self._path = _all_frames(file), file.path
        return np.asarray(self._frames[frame.index])


def _native(file: ImageFile, index: int) -> Stored:
    """One frame of uncompressed pixels, straight from the file."""
    order = ">" if file.syntax == BIG_ENDIAN else "<"
    dtype = np.dtype(f"{order}{'i' if file.is_signed else 'u'}{file.bits_allocated // 8}")
    offset = (file.pixel_offset or 0) + index * file.frame_bytes
    values = np.fromfile(file.path, dtype=dtype, count=file.rows * file.columns, offset=offset)
    if values.size < file.rows * file.columns:
        raise DataError("truncated pixel data", file=file.path, remedy="export the series again")
    return values.reshape(file.rows, file.columns)


def _all_frames(file: ImageFile) -> Stored:
    """All frames of a compressed file, or all tiles of a mosaic."""
    n, rows, columns = file.tiles, file.rows, file.columns
    if n == 1:
        return _decode(file).reshape(file.n_frames, rows, columns)
    whole = replace(file, tiles=1, rows=n * rows, columns=n * columns)
    pixels = _native(whole, 0) if is_plain(whole) else _decode(whole)
    return pixels.reshape(n, rows, n, columns).swapaxes(1, 2).reshape(n * n, rows, columns)


def is_plain(file: ImageFile) -> bool:
    """Whether the pixels lie in the file as numpy reads them; bytes of big-endian words are exchanged."""
    return file.pixel_offset is not None and not (file.syntax == BIG_ENDIAN and file.bits_allocated == 8)


def same_pixels(first: Frame, second: Frame) -> bool:
    """Whether two frames hold the same stored values under the same slope."""
    decoder = Decoder()
    if (first.slope, first.intercept) != (second.slope, second.intercept):
        return False
    return np.array_equal(decoder.stored(first), decoder.stored(second))


def _decode(file: ImageFile) -> Stored:
    """All frames of a compressed file."""
    try:
        dataset = pydicom.dcmread(file.path, specific_tags=_PIXEL_TAGS)
    except Exception as error:  # pydicom raises many kinds for damaged data
        raise undecodable(file, error) from error
    try:
        pixels = np.asarray(dataset.pixel_array)
    except Exception as error:  # as above, and its plugins more
        name, function, package = _CODECS.get(file.syntax.removeprefix(JPEG), ("", "", ""))
        if not name and (file.syntax == _RLE or not file.syntax.startswith(JPEG)):
            raise undecodable(file, error) from error
        if not name or not getattr(imagecodecs, name).available:
            raise DataError(
                f"codec missing: {UID(file.syntax).name}",
                file=file.path,
                remedy=f"pip install {'pylibjpeg ' + package if package else 'python-gdcm'}, or decompress the series",
            ) from error
        pixels = _decode_codestreams(file, dataset, getattr(imagecodecs, function))
    if pixels.size != file.n_frames * file.rows * file.columns:
        raise DataError(
            "pixel data has the wrong size", file=file.path, received=pixels.shape, expected=f"{file.n_frames} frames"
        )
    return pixels


def _decode_codestreams(file: ImageFile, dataset: pydicom.Dataset, decode: Callable[[bytes], Stored]) -> Stored:
    try:
        if hasattr(encaps, "generate_frames"):
            streams = encaps.generate_frames(dataset.PixelData, number_of_frames=file.n_frames)
        else:  # pydicom 2
            streams = encaps.generate_pixel_data_frame(dataset.PixelData, file.n_frames)
        pixels = np.stack([decode(stream) for stream in streams])
    except Exception as error:  # as above
        raise undecodable(file, error) from error
    if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize * 8 > file.bits_allocated:
        raise DataError("pixel data has the wrong type", file=file.path, received=str(pixels.dtype))
    if file.is_signed and pixels.dtype.kind == "u":  # the codestream knows bits only: extend the sign
        unused = file.bits_allocated - file.bits_stored
        pixels = pixels.astype(f"u{file.bits_allocated // 8}").view(f"i{file.bits_allocated // 8}")
        pixels = (pixels << unused) >> unused
    return pixels


def undecodable(file: ImageFile, error: Exception) -> DataError:
    """Return the error for pixels that a decoder rejects."""
    return DataError(
        f"pixel data cannot be decoded: {type(error).__name__}", file=file.path, remedy="export the series again"
    )
