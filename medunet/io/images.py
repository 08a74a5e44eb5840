"""PNG, TIFF, BMP and JPEG through Pillow, imagecodecs and tifffile, with the axes of MONAI's readers.

The affine is the identity, or the spacing of a stack if its file states it along all three axes.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from medunet.errors import DataError, MedunetError
from medunet.geometry import Geometry

from .layout import copy_in_order
from .limits import open_for_reading, require_content, require_memory
from .options import DEFAULTS, ReadOptions
from .record import ReadRecord

PILLOW_SUFFIXES = (".png", ".bmp", ".jpg", ".jpeg")
TIFF_SUFFIXES = (".tif", ".tiff")

_PILLOW_FORMATS = ("PNG", "BMP", "DIB", "JPEG", "MPO")  # one of Pillow's other parsers starts Ghostscript

# Number of channels without alpha for each mode that is read. A palette image (P) yields its indices.
_PILLOW_CHANNELS = {"1": 1, "L": 1, "P": 1, "I": 1, "I;16": 1, "I;16B": 1, "F": 1, "LA": 1, "RGB": 3, "RGBA": 3}

# Pillow's names for 16-bit PNG of several samples: channels without alpha.
_DEEP_COLOURS = {"RGB;16B": 3, "LA;16B": 1, "RGBA;16B": 3}

_SCALED_GREY = {"L;2": 255 // 3, "L;4": 255 // 15}  # factors by which Pillow scales grey values of 2 and 4 bits

# OME-TIFF and Micro-Manager's formats name other files, in any folder, that have pages of the image.
_ONE_FILE: dict[str, Any] = {"_multifile": False, "is_mmstack": False, "is_ndtiff": False}

# tifffile's letters: channels and samples of a pixel; depth, and pages whose meaning the file does not state.
_CHANNEL_AXES, _DEPTH_AXES = "CS", "ZIQ"

_COLOURS = {"MINISWHITE", "MINISBLACK", "RGB", "PALETTE"}
_JPEG_COLOURS = {"YCBCR"}  # JPEG decoders convert these to RGB; otherwise tifffile returns them as they are
_ALPHA = (1, 2)  # codes of extra samples that are alpha; 0 is a sample of unknown meaning, which is a channel
_ALPHA_WARNING = ("alpha channel dropped",)

_MICROMETRES = dict.fromkeys(("um", "\u00b5m", "\u03bcm", "micron", "microns"), 1e-3)
_UNITS_MM = {"nm": 1e-6, **_MICROMETRES, "mm": 1.0, "cm": 10.0}  # units of length that ImageJ and OME write


def read_pillow(path: Path, _: ReadOptions = DEFAULTS) -> tuple[npt.NDArray[np.float32], ReadRecord]:
    """Read PNG, BMP or JPEG as ``(x, y)`` or, for colour, ``(3, x, y)``, with the values that the file stores.

    A palette image yields its indices, because label editors store label maps that way. Grey values of 2 and 4 bits are
    not scaled to 8 bits for the same reason.
    """
    record, raw_mode = _open_pillow(path)
    require_memory(record.geometry.shape, record.channels, path)
    try:
        if raw_mode in _DEEP_COLOURS:  # Pillow keeps 8 of the 16 bits
            array = imagecodecs.png_decode(path.read_bytes())
        else:
            with Image.open(path, formats=_PILLOW_FORMATS) as image:
                array = np.asarray(image) // _SCALED_GREY.get(raw_mode, 1)
    except Exception as error:  # Pillow and imagecodecs raise many types for damaged data
        raise DataError(f"image cannot be decoded: {error}", file=path) from error
    array = array.T  # (x, y) or (samples, x, y)
    if array.ndim == 3:
        record = _without_alpha(record, array[record.channels :])
        array = array[: record.channels] if record.channels > 1 else array[0]  # without alpha
    if array.shape[-2:] != record.geometry.shape:
        raise DataError("pixels do not match the header", file=path, received=array.shape)
    return np.array(array, dtype=np.float32, order="C"), record


def read_pillow_header(path: Path, _: ReadOptions = DEFAULTS) -> ReadRecord:
    """Return the record of `read_pillow` without decoding pixels."""
    return _open_pillow(path)[0]


def _open_pillow(path: Path) -> tuple[ReadRecord, str]:
    """Return the record and Pillow's name for the stored pixels, after every checksum of a PNG is verified."""
    require_content(path)
    try:
        with Image.open(path, formats=_PILLOW_FORMATS) as image:
            mode, shape, kind = image.mode, image.size, (image.format or "").lower()
            raw_mode = image.tile[0][3] if kind == "png" else ""
            image.verify()  # Pillow skips the checksums of pixels when it decodes them
    except Exception as error:  # Pillow raises many types for damaged data
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"cannot be opened: {error.strerror}", file=path) from error
        raise DataError("not a readable image, or damaged", file=path) from error
    channels = _PILLOW_CHANNELS.get(mode)
    dtype = {"I": "int32", "F": "float32"}.get(mode, "uint16" if mode.startswith("I;16") else "uint8")
    if raw_mode in _DEEP_COLOURS:
        channels, dtype = _DEEP_COLOURS[raw_mode], "uint16"
    if channels is None:
        raise _unsupported_colours(path, mode)
    kind = {"mpo": "jpeg", "dib": "bmp"}.get(kind, kind)
    return ReadRecord(path, kind, Geometry(np.eye(4), shape), channels, dtype), raw_mode


def _without_alpha(record: ReadRecord, dropped: npt.NDArray[Any]) -> ReadRecord:
    """Return the record with a warning, unless the dropped samples are the same everywhere and say nothing."""
    return replace(record, warnings=_ALPHA_WARNING) if dropped.size and dropped.min() != dropped.max() else record


def _unsupported_colours(path: Path, colours: str) -> DataError:
    return DataError("unsupported colours", file=path, received=colours, expected="grey, palette or RGB")


def read_tiff(path: Path, _: ReadOptions = DEFAULTS) -> tuple[npt.NDArray[np.float32], ReadRecord]:
    """Read a TIFF as ``(x, y)``, ``(x, y, z)``, or with a leading axis of channels.

    Depth, or pages without a stated meaning, make a volume. Channels are axis C of ImageJ and OME, or samples of a
    pixel. Images whose 0 is white are inverted, so that large values are bright in every image.
    """
    with _open_tiff(path) as (tiff, series):
        layout = _TiffLayout.of(tiff, series, path)
        require_memory(layout.record.geometry.shape, layout.record.channels, path)
        if any(0 in page.databytecounts for page in series.pages if page is not None):
            raise DataError("pixels are missing", file=path)
        array = tiff.asarray(series=0)
    if array.size != np.prod(layout.sizes):
        raise DataError("pixels do not match the header", file=path, received=array.shape)
    array = array.reshape(layout.sizes).transpose(layout.order)
    record = layout.record
    if record.channels > 1 or array.ndim > len(record.geometry.shape):
        record = _without_alpha(record, array[record.channels :])
        array = array[: record.channels] if record.channels > 1 else array[0]
    if layout.white is not None:
        array = layout.white - array
    voxels = copy_in_order(array, dtype=np.float32)
    if not np.isfinite(voxels).all():
        raise DataError("pixels are NaN or infinite", file=path)
    return voxels, record


def read_tiff_header(path: Path, _: ReadOptions = DEFAULTS) -> ReadRecord:
    """Return the record of `read_tiff` without decoding pixels."""
    with _open_tiff(path) as (tiff, series):
        return _TiffLayout.of(tiff, series, path).record


@contextmanager
def _open_tiff(path: Path) -> Iterator[tuple[tifffile.TiffFile, tifffile.TiffPageSeries]]:
    """Open a TIFF that has one series of pages of equal size; what tifffile raises in the block is a DataError."""
    require_content(path)
    _reject_endless_pages(path)
    try:
        with tifffile.TiffFile(path, **_ONE_FILE) as tiff:
            series = tiff.series
            if len(series) != 1:
                raise DataError("pages have different sizes", file=path, received=f"{len(series)} kinds")
            yield tiff, series[0]
    except (MedunetError, MemoryError):
        raise
    except Exception as error:  # tifffile and its codecs raise many types for damaged data
        raise DataError(f"TIFF cannot be read: {error}", file=path) from error


def _reject_endless_pages(path: Path) -> None:
    """Reject a chain of pages that returns to an earlier page; tifffile follows it for hours.

    Layout: byte order, 42 or 43 (BigTIFF), offset of the first page; a page has its number of tags, the tags, and the
    offset of the next page, which is 0 for the last one.
    """
    with open_for_reading(path) as file:
        head = file.read(4)
        endian: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
        kind = int.from_bytes(head[2:], endian)
        if head[:2] not in (b"II", b"MM") or kind not in (42, 43):
            raise DataError("not a readable TIFF", file=path)
        offset_bytes, number_bytes, tag_bytes = (4, 2, 12) if kind == 42 else (8, 8, 20)
        size, seen = file.seek(0, os.SEEK_END), set[int]()
        file.seek(offset_bytes)
        while 0 < (offset := int.from_bytes(file.read(offset_bytes), endian)) < size:
            if offset in seen:
                raise DataError("damaged TIFF: its chain of pages has no end", file=path)
            seen.add(offset)
            file.seek(offset)
            n_tags = int.from_bytes(file.read(number_bytes), endian)
            file.seek(min(offset + number_bytes + n_tags * tag_bytes, size))


@dataclass(frozen=True)
class _TiffLayout:
    """How the pixels of a series become an image."""

    record: ReadRecord
    sizes: tuple[int, ...]  # of the axes of more than one pixel, in the order of the file
    order: tuple[int, ...]  # of these axes: channels, x, y, depth
    white: int | None  # value of white, from which pixels are subtracted; None if 0 is black

    @classmethod
    def of(cls, tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, path: Path) -> "_TiffLayout":
        page, dtype = series.keyframe, series.dtype
        if dtype is None or dtype.kind not in "iufb":
            raise DataError("voxel type is not supported", file=path, received=str(dtype))
        sizes = {axis: int(n) for axis, n in zip(series.axes, series.shape, strict=True) if n > 1 or axis in "YX"}
        described = f"{series.axes} {tuple(series.shape)}"
        if sizes.get("T", 1) > 1:
            raise DataError("image has a time axis", file=path, received=described, remedy="save each point separately")
        channel = [axis for axis in sizes if axis in _CHANNEL_AXES]
        depth = [axis for axis in sizes if axis in _DEPTH_AXES]
        order = [*channel, "X", "Y", *depth]
        if len(channel) > 1 or len(depth) > 1 or sorted(order) != sorted(sizes):
            expected = "channels, x, y and depth"
            raise DataError("image has too many axes", file=path, received=described, expected=expected)
        alpha = [code for code in page.extrasamples if code in _ALPHA] if "S" in channel else []
        colours = page.photometric.name if hasattr(page.photometric, "name") else str(page.photometric)
        is_jpeg = "JPEG" in str(getattr(page.compression, "name", page.compression))
        if colours not in (_COLOURS | _JPEG_COLOURS if is_jpeg else _COLOURS):
            raise _unsupported_colours(path, colours)
        if alpha and page.extrasamples[-len(alpha) :] != tuple(alpha):
            raise DataError("unsupported order of samples", file=path, received=page.extrasamples)
        white = (1 << int(np.max(page.bitspersample))) - 1 if colours == "MINISWHITE" else None
        if white is not None and dtype.kind not in "ub":
            raise DataError("unsupported type for an image whose 0 is white", file=path, received=str(dtype))
        spacing = _stated_spacing(tiff) if depth else None
        affine = np.eye(4) if spacing is None else np.diag([*spacing, 1.0])
        geometry = Geometry(affine, tuple(sizes[axis] for axis in ("X", "Y", *depth)))
        channels = (sizes[channel[0]] if channel else 1) - len(alpha)
        record = ReadRecord(path, "tiff", geometry, channels, dtype.name)
        return cls(record, tuple(sizes.values()), tuple(map(list(sizes).index, order)), white)


def _stated_spacing(tiff: tifffile.TiffFile) -> tuple[float, ...] | None:
    """Return the spacing along x, y and z in mm if ImageJ or OME state all three and their unit."""
    if tiff.is_ome and tiff.ome_metadata:
        image = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
        pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
        values = [pixels.get(f"PhysicalSize{axis}") for axis in "XYZ"]
        units = [pixels.get(f"PhysicalSize{axis}Unit", "\u00b5m") for axis in "XYZ"]  # OME's default
    elif tiff.is_imagej and tiff.imagej_metadata:
        tags = tiff.pages.first.tags
        resolution = [tags[name].value if name in tags else (0, 1) for name in ("XResolution", "YResolution")]
        values = [below / above if above else None for above, below in resolution]
        values.append(tiff.imagej_metadata.get("spacing"))
        units = [str(tiff.imagej_metadata.get("unit", "")).replace("\\u00B5", "\u00b5")] * 3
    else:
        return None
    pairs = list(zip(values, units, strict=True))
    if not all(isinstance(value, int | float) and value > 0 and unit in _UNITS_MM for value, unit in pairs):
        return None
    return tuple(float(value) * _UNITS_MM[unit] for value, unit in pairs)
