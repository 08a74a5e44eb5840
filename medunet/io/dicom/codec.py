"""Stored values of DICOM frames: native ones straight from the file, compressed ones by imagecodecs or pydicom.

GDCM supports all of these syntaxes too, but a damaged JPEG-LS codestream makes it end the process (SimpleITK 2.5.7:
floating point exception), where these decoders raise an error.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import encaps
from pydicom.uid import UID

from medunet.errors import DataError
from medunet.io.limits import require_memory

from .header import BIG_ENDIAN, JPEG, PALETTE, Frame, ImageFile
from .tags import keywords, typed_errors

try:
    from pydicom.pixels import apply_color_lut, pixel_array
except ImportError:  # pydicom 2
    from pydicom.pixel_data_handlers.util import apply_color_lut, convert_color_space  # type: ignore[no-redef]

    pixel_array: Any = None  # type: ignore[no-redef]

Stored = npt.NDArray[Any]
"""Integers as in the file, ``(rows, columns)``."""

# Last part of a JPEG transfer syntax to the name of its decoder in imagecodecs.
_CODECS = {
    **dict.fromkeys(("50", "51", "57", "70"), "jpeg8"),
    **dict.fromkeys(("80", "81"), "jpegls"),
    **dict.fromkeys(("90", "91"), "jpeg2k"),
    **dict.fromkeys(("201", "202", "203"), "htj2k"),
}
_PIXEL_TAGS = keywords("""
    SamplesPerPixel PhotometricInterpretation NumberOfFrames Rows Columns BitsAllocated BitsStored HighBit
    PixelRepresentation PixelData""")
_UNDECODABLE = "pixel data cannot be decoded"


def frame_decoder() -> Callable[[Frame], Stored]:
    """Return a function that reads the stored values of a frame; it caches the last compressed file for the next frame.

    Bits beyond BitsStored are included if the pixels are native. Damaged pixels, and a transfer syntax without a
    decoder, are a DataError.
    """
    all_frames = lru_cache(maxsize=1)(_all_frames)

    def stored(frame: Frame) -> Stored:
        file = frame.file
        return _native(file, frame.index) if file.tiles == 1 and is_plain(file) else all_frames(file)[frame.index]

    return stored


def _native(file: ImageFile, index: int) -> Stored:
    """Return one frame of uncompressed pixels, straight from the file."""
    order = ">" if file.syntax == BIG_ENDIAN else "<"
    dtype = np.dtype(f"{order}{'i' if file.is_signed else 'u'}{file.bits_allocated // 8}")
    offset = (file.pixel_offset or 0) + index * file.frame_bytes
    values = np.fromfile(file.path, dtype=dtype, count=file.rows * file.columns, offset=offset)
    if values.size < file.rows * file.columns:
        raise DataError("truncated pixel data", file=file.path)
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
    stored, same_scale = frame_decoder(), (first.slope, first.intercept) == (second.slope, second.intercept)
    return same_scale and np.array_equal(stored(first), stored(second))


def _decode(file: ImageFile) -> Stored:
    """Return all frames of a compressed file."""
    name = _CODECS.get(file.syntax.removeprefix(JPEG), "")
    is_known = bool(name) and getattr(imagecodecs, name.upper()).available
    with typed_errors(_UNDECODABLE, file.path):
        dataset = pydicom.dcmread(file.path, specific_tags=list(_PIXEL_TAGS))
        try:
            pixels = _decode_codestreams(file, dataset, name) if is_known else np.asarray(dataset.pixel_array)
        except Exception as error:
            if is_known or not file.syntax.startswith(JPEG):
                raise
            remedy = "pip install 'pylibjpeg[all]', or decompress the series"
            raise DataError(f"codec missing: {UID(file.syntax).name}", file=file.path, remedy=remedy) from error
    if pixels.size != file.n_frames * file.rows * file.columns:
        raise _wrong_size(file, pixels)
    return pixels


def _decode_codestreams(file: ImageFile, dataset: pydicom.Dataset, name: str) -> Stored:
    if hasattr(encaps, "generate_frames"):
        streams = encaps.generate_frames(dataset.PixelData, number_of_frames=file.n_frames)
    else:  # pydicom 2
        streams = encaps.generate_pixel_data_frame(dataset.PixelData, file.n_frames)
    pixels = np.stack([getattr(imagecodecs, f"{name}_decode")(stream) for stream in streams])
    if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize * 8 > file.bits_allocated:
        raise DataError("pixel data has the wrong type", file=file.path, received=str(pixels.dtype))
    if file.is_signed and pixels.dtype.kind == "u":  # the codestream only has bits: extend the sign
        unused = file.bits_allocated - file.bits_stored
        pixels = pixels.astype(f"u{file.bits_allocated // 8}").view(f"i{file.bits_allocated // 8}")
        pixels = (pixels << unused) >> unused
    return pixels


def read_colour(frame: Frame) -> npt.NDArray[np.float32]:
    """Return red, green and blue ``(3, columns, rows)`` of one frame; pixels that cannot be decoded are a DataError."""
    file = frame.file
    require_memory((file.columns, file.rows), len("RGB"), file.path)
    if pixel_array is None and not is_plain(file):
        raise DataError("compressed colour images need pydicom 3", file=file.path)
    with typed_errors(_UNDECODABLE, file.path):
        dataset = pydicom.dcmread(file.path)
        if pixel_array is not None:
            pixels = pixel_array(dataset, index=frame.index)  # RGB, if it was YBR
        else:
            pixels = dataset.pixel_array[frame.index] if file.n_frames > 1 else dataset.pixel_array
            pixels = pixels if file.photometric == PALETTE else convert_color_space(pixels, file.photometric, "RGB")
        if file.photometric == PALETTE:
            pixels = apply_color_lut(pixels, dataset)
    if pixels.shape[:2] != (file.rows, file.columns) or pixels.shape[2:] not in ((3,), (4,)):
        raise _wrong_size(file, pixels)
    return np.array(pixels.T[:3], dtype=np.float32, order="C")  # a palette may have an alpha channel


def _wrong_size(file: ImageFile, pixels: Stored) -> DataError:
    expected = f"{file.n_frames} frames"
    return DataError("pixel data has the wrong size", file=file.path, received=pixels.shape, expected=expected)
