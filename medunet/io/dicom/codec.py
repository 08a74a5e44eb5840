"""Stored values of DICOM frames: native ones straight from the file, compressed ones by pydicom or imagecodecs.

GDCM supports all of these syntaxes too, but a damaged JPEG-LS codestream makes it end the process (SimpleITK 2.5.7:
floating point exception), where these decoders raise an error.
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

from medunet.errors import DataError, MedunetError
from medunet.io.limits import require_memory

from .header import BIG_ENDIAN, JPEG, PALETTE, Frame, ImageFile
from .values import damaged, keywords

try:
    from pydicom.pixels import apply_color_lut, pixel_array
except ImportError:  # pydicom 2
    from pydicom.pixel_data_handlers.util import apply_color_lut, convert_color_space  # type: ignore[no-redef]

    pixel_array: Any = None  # type: ignore[no-redef]

Stored = npt.NDArray[Any]
"""Integers as in the file, ``(rows, columns)``."""

_CODECS = {
    **dict.fromkeys(("50", "51", "57", "70"), ("JPEG8", "jpeg8_decode", "pylibjpeg-libjpeg")),
    **dict.fromkeys(("80", "81"), ("JPEGLS", "jpegls_decode", "pylibjpeg-libjpeg")),
    **dict.fromkeys(("90", "91"), ("JPEG2K", "jpeg2k_decode", "pylibjpeg-openjpeg")),
    **dict.fromkeys(("201", "202", "203"), ("HTJ2K", "htj2k_decode", "pylibjpeg-openjpeg")),
}
"""Last part of a JPEG transfer syntax to imagecodecs' name and function, and to pydicom's plugin of pylibjpeg."""

_RLE = "1.2.840.10008.1.2.5"

_PIXEL_TAGS = keywords("""
    SamplesPerPixel PhotometricInterpretation NumberOfFrames Rows Columns BitsAllocated BitsStored HighBit
    PixelRepresentation PixelData""")


class Decoder:
    """Stored values of frames; keeps the last compressed file, because its frames follow each other."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._frames: Stored = np.empty(0)

    def stored(self, frame: Frame) -> Stored:
        """Return values as in the file, including bits beyond BitsStored if the pixels are native.

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
    """Return one frame of uncompressed pixels, straight from the file."""
    order = ">" if file.syntax == BIG_ENDIAN else "<"
    dtype = np.dtype(f"{order}{'i' if file.is_signed else 'u'}{file.bits_allocated // 8}")
    offset = (file.pixel_offset or 0) + index * file.frame_bytes
    values = np.fromfile(file.path, dtype=dtype, count=file.rows * file.columns, offset=offset)
    if values.size < file.rows * file.columns:
        raise damaged("truncated pixel data", file.path)
    return values.reshape(file.rows, file.columns)


def _all_frames(file: ImageFile) -> Stored:
    """Return all frames of a compressed file, or all tiles of a mosaic."""
    n, rows, columns = file.tiles, file.rows, file.columns
    if n == 1:
        return _decode(file).reshape(file.n_frames, rows, columns)
    whole = replace(file, tiles=1, rows=n * rows, columns=n * columns)
    pixels = _native(whole, 0) if is_plain(whole) else _decode(whole)
    return pixels.reshape(n, rows, n, columns).swapaxes(1, 2).reshape(n * n, rows, columns)


def is_plain(file: ImageFile) -> bool:
    """Return whether numpy can read the pixels from the file; bytes of 16-bit big-endian words are swapped."""
    return file.pixel_offset is not None and not (file.syntax == BIG_ENDIAN and file.bits_allocated == 8)


def same_pixels(first: Frame, second: Frame) -> bool:
    """Return whether two frames have the same stored values and the same slope."""
    decoder = Decoder()
    if (first.slope, first.intercept) != (second.slope, second.intercept):
        return False
    return np.array_equal(decoder.stored(first), decoder.stored(second))


def _decode(file: ImageFile) -> Stored:
    """Return all frames of a compressed file."""
    try:
        dataset = pydicom.dcmread(file.path, specific_tags=list(_PIXEL_TAGS))
    except Exception as error:  # pydicom raises many kinds for damaged data
        raise _undecodable(file, error) from error
    try:
        pixels = np.asarray(dataset.pixel_array)
    except Exception as error:  # as above, and its plugins more
        name, function, package = _CODECS.get(file.syntax.removeprefix(JPEG), ("", "", ""))
        if not name and (file.syntax == _RLE or not file.syntax.startswith(JPEG)):
            raise _undecodable(file, error) from error
        if not name or not getattr(imagecodecs, name).available:
            raise DataError(
                f"codec missing: {UID(file.syntax).name}",
                file=file.path,
                remedy=f"pip install {'pylibjpeg ' + package if package else 'python-gdcm'}, or decompress the series",
            ) from error
        pixels = _decode_codestreams(file, dataset, getattr(imagecodecs, function))
    if pixels.size != file.n_frames * file.rows * file.columns:
        raise _wrong_size(file, pixels)
    return pixels


def _decode_codestreams(file: ImageFile, dataset: pydicom.Dataset, decode: Callable[[bytes], Stored]) -> Stored:
    try:
        if hasattr(encaps, "generate_frames"):
            streams = encaps.generate_frames(dataset.PixelData, number_of_frames=file.n_frames)
        else:  # pydicom 2
            streams = encaps.generate_pixel_data_frame(dataset.PixelData, file.n_frames)
        pixels = np.stack([decode(stream) for stream in streams])
    except Exception as error:  # as above
        raise _undecodable(file, error) from error
    if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize * 8 > file.bits_allocated:
        raise DataError("pixel data has the wrong type", file=file.path, received=str(pixels.dtype))
    if file.is_signed and pixels.dtype.kind == "u":  # the codestream only has bits: extend the sign
        unused = file.bits_allocated - file.bits_stored
        pixels = pixels.astype(f"u{file.bits_allocated // 8}").view(f"i{file.bits_allocated // 8}")
        pixels = (pixels << unused) >> unused
    return pixels


def read_colour(frame: Frame) -> npt.NDArray[np.float32]:
    """Return red, green and blue ``(3, columns, rows)`` of one frame, decoded by pydicom.

    Raises:
        DataError: pixels that cannot be decoded.
    """
    file = frame.file
    require_memory((file.columns, file.rows), len("RGB"), file.path)
    if pixel_array is None and not is_plain(file):
        raise DataError("compressed colour images need pydicom 3", file=file.path, remedy="decompress the image")
    try:
        dataset = pydicom.dcmread(file.path)
        if pixel_array is not None:
            pixels = pixel_array(dataset, index=frame.index)  # RGB, if it was YBR
        else:
            pixels = dataset.pixel_array[frame.index] if file.n_frames > 1 else dataset.pixel_array
            pixels = pixels if file.photometric == PALETTE else convert_color_space(pixels, file.photometric, "RGB")
        if file.photometric == PALETTE:
            pixels = apply_color_lut(pixels, dataset)
    except Exception as error:  # pydicom and its plugins raise many kinds for damaged data
        raise _undecodable(file, error) from error
    if pixels.shape[:2] != (file.rows, file.columns) or pixels.shape[2:] not in ((3,), (4,)):
        raise _wrong_size(file, pixels)
    return np.array(pixels.T[:3], dtype=np.float32, order="C")  # a palette may have an alpha channel


def _wrong_size(file: ImageFile, pixels: Stored) -> DataError:
    expected = f"{file.n_frames} frames"
    return DataError("pixel data has the wrong size", file=file.path, received=pixels.shape, expected=expected)


def _undecodable(file: ImageFile, error: Exception) -> MedunetError:
    return damaged(f"pixel data cannot be decoded: {type(error).__name__}", file.path)
