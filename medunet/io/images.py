"""PNG, TIFF, BMP and JPEG through Pillow and tifffile.

Axes are those of MONAI's readers: ``(x, y)``, x along the width from the left and y along the height from the top;
pages of a stack are the third axis. Pictures have no placement in a patient, so that their affine is the identity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from medunet.errors import DataError
from medunet.geometry import Geometry

from .limits import require_content, require_memory
from .record import ReadRecord

PILLOW_SUFFIXES = (".png", ".bmp", ".jpg", ".jpeg")
TIFF_SUFFIXES = (".tif", ".tiff")

_ONE_FILE: dict[str, Any] = {"_multifile": False, "is_mmstack": False, "is_ndtiff": False}
"""OME-TIFF and Micro-Manager's kinds name other files that hold pages of theirs, in any folder."""

_PILLOW_FORMATS = ("PNG", "BMP", "DIB", "JPEG", "MPO")
"""Of Pillow's some forty parsers, one of which starts Ghostscript, those of the files that are read."""

_RGB_SAMPLES = (3, 4)
"""Lengths of a last axis that is colour: RGB, and RGBA whose alpha is dropped."""

_PILLOW_CHANNELS = {"1": 1, "L": 1, "I": 1, "I;16": 1, "I;16B": 1, "F": 1, "LA": 1, "RGB": 3, "RGBA": 3}
"""Modes that can be read to the number of channels they yield; a palette (P) has its own rule."""


def read_pillow(path: Path) -> tuple[npt.NDArray[np.float32], ReadRecord]:
    """Read PNG, BMP or JPEG.

    A palette image yields its indices: so do label editors store label maps.

    Returns:
        ``(x, y)`` for grey images, ``(3, x, y)`` for colour, and the record.

    Raises:
        DataError: unreadable, truncated, or a mode such as CMYK.
    """
    record = read_pillow_header(path)
    require_memory(record.geometry.shape, record.channels, path)
    try:
        with Image.open(path, formats=_PILLOW_FORMATS) as image:
            array = np.asarray(image)
    except Exception as error:  # Pillow and its codecs raise many kinds for damaged data
        raise DataError(f"image cannot be decoded: {error}", file=path) from error
    array = array.T  # (x, y), (samples, x, y)
    if array.ndim == 3:
        array = array[: record.channels] if record.channels > 1 else array[0]  # alpha dropped
    return np.array(array, dtype=np.float32, order="C"), record


def read_pillow_header(path: Path) -> ReadRecord:
    """The record of `read_pillow` without decoding pixels."""
    require_content(path)
    try:
        with Image.open(path, formats=_PILLOW_FORMATS) as image:
            mode, (width, height), kind = image.mode, image.size, (image.format or "").lower()
    except Exception as error:  # as above
        raise DataError("not a readable image", file=path, remedy="check that it opens in a viewer") from error
    channels = 1 if mode == "P" else _PILLOW_CHANNELS.get(mode)
    if channels is None:
        raise DataError("unsupported colours", file=path, received=mode, expected="grey, palette or RGB")
    dtype = {"I": "int32", "F": "float32"}.get(mode, "uint16" if mode.startswith("I;16") else "uint8")
    dropped = ("alpha channel dropped",) if mode in ("LA", "RGBA") else ()
    return _planar_record(path, kind=kind, shape=(width, height), channels=channels, dtype=dtype, warnings=dropped)


def read_tiff(path: Path) -> tuple[npt.NDArray[np.float32], ReadRecord]:
    """Read a TIFF: one page is an image in the plane, several pages of equal size are a volume.

    Returns:
        ``(x, y)``, ``(x, y, pages)``, or with a leading axis of channels for colour; and the record.

    Raises:
        DataError: unreadable, truncated, pages of several sizes, NaN pixels, or complex numbers.
    """
    record = read_tiff_header(path)
    require_memory(record.geometry.shape, record.channels, path)
    try:
        with tifffile.TiffFile(path, **_ONE_FILE) as tiff:
            array = tiff.asarray(series=0)
    except Exception as error:  # tifffile and its codecs raise many kinds for damaged data
        raise DataError(f"image cannot be decoded: {error}", file=path) from error
    try:
        if record.channels > 1:
            # planar TIFFs have colour first, chunky ones last
            if array.shape[-1] not in _RGB_SAMPLES:
                array = np.moveaxis(array, -3, -1)
            array = array.reshape(*record.geometry.shape[::-1], -1)[..., : record.channels].T
        else:
            array = array.reshape(record.geometry.shape[::-1]).T
    except ValueError as error:  # pages of which some are damaged
        raise DataError("pixels are not those of the header", file=path, received=array.shape) from error
    voxels = np.array(array, dtype=np.float32, order="C")
    if not np.isfinite(voxels).all():
        raise DataError("pixels are NaN or infinite", file=path)
    return voxels, record


def read_tiff_header(path: Path) -> ReadRecord:
    """The record of `read_tiff` without decoding pixels."""
    require_content(path)
    try:
        with tifffile.TiffFile(path, **_ONE_FILE) as tiff:
            n_series = len(tiff.series)
            series = tiff.series[0]
            shape, dtype, axes = tuple(series.shape), series.dtype, series.axes
    except Exception as error:  # as above
        raise DataError(f"not a readable TIFF: {error}", file=path) from error
    if n_series > 1:
        raise DataError(
            "pages have different sizes", file=path, received=f"{n_series} kinds", remedy="save one image a file"
        )
    if dtype is None or dtype.kind not in "iufb":
        raise DataError("pixels have no order", file=path, received=str(dtype))
    colour = axes.find("S")
    channels = 1
    spatial = shape
    if colour >= 0:
        channels = min(shape[colour], 3) if shape[colour] in _RGB_SAMPLES else 1
        if channels == 1 and shape[colour] != 1:
            raise DataError("unsupported number of samples", file=path, received=shape[colour], expected="1, 3 or 4")
        spatial = shape[:colour] + shape[colour + 1 :]
    spatial = tuple(n for n in spatial[:-2] if n > 1) + spatial[-2:]
    if len(spatial) not in (2, 3):
        raise DataError(
            "too many axes", file=path, received=f"{axes} {shape}", expected="an image or one stack", remedy="split it"
        )
    warnings = ("alpha channel dropped",) if colour >= 0 and shape[colour] == 4 else ()
    return _planar_record(
        path, kind="tiff", shape=spatial[::-1], channels=channels, dtype=dtype.name, warnings=warnings
    )


def _planar_record(
    path: Path, *, kind: str, shape: tuple[int, ...], channels: int, dtype: str, warnings: tuple[str, ...]
) -> ReadRecord:
    geometry = Geometry(np.eye(4), shape)
    return ReadRecord(path=path, format=kind, geometry=geometry, channels=channels, dtype=dtype, warnings=warnings)
