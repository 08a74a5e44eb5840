"""Colour DICOM images, decoded to RGB by pydicom."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from medunet.errors import DataError
from medunet.io.limits import require_memory

from .codec import is_plain, undecodable
from .header import PALETTE, Frame

try:
    from pydicom.pixels import apply_color_lut, pixel_array
except ImportError:  # pydicom 2
    from pydicom.pixel_data_handlers.util import apply_color_lut, convert_color_space  # type: ignore[no-redef]

    pixel_array: Any = None  # type: ignore[no-redef]


def read_colour(frame: Frame) -> npt.NDArray[np.float32]:
    """Return red, green and blue ``(3, columns, rows)`` of one frame.

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
        raise undecodable(file, error) from error
    if pixels.shape[:2] != (file.rows, file.columns) or pixels.shape[2:] not in ((3,), (4,)):
        raise DataError("pixel data has the wrong size", file=file.path, received=pixels.shape)
    return np.array(pixels.T[:3], dtype=np.float32, order="C")  # a palette may have an alpha channel
