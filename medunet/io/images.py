"""PNG, TIFF, BMP and JPEG through Pillow and tifffile; NRRD and MetaImage through SimpleITK.

Images in the plane are never transposed: axis 0 counts rows, axis 1 columns. They have no placement in a patient, so
that their affine is the identity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import tifffile
from PIL import Image

from medunet.errors import DataError, GeometryError
from medunet.geometry import Geometry

from .layout import copy_in_order
from .limits import refuse_foreign_data, require_memory
from .record import ReadRecord

PILLOW_SUFFIXES = (".png", ".bmp", ".jpg", ".jpeg")
TIFF_SUFFIXES = (".tif", ".tiff")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")

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
        ``(H, W)`` for grey images, ``(3, H, W)`` for colour, and the record.

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
    if array.ndim == 3:
        array = np.moveaxis(array, -1, 0)[: record.channels]  # alpha dropped
        array = array[0] if record.channels == 1 else array
    return np.array(array, dtype=np.float32, order="C"), record


def read_pillow_header(path: Path) -> ReadRecord:
    """The record of `read_pillow` without decoding pixels."""
    _refuse_missing_or_empty(path)
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
    return _planar_record(path, kind=kind, shape=(height, width), channels=channels, dtype=dtype, warnings=dropped)


def read_tiff(path: Path) -> tuple[npt.NDArray[np.float32], ReadRecord]:
    """Read a TIFF: one page is an image in the plane, several pages of equal size are a volume.

    Returns:
        ``(H, W)``, ``(pages, H, W)``, or with a leading axis of channels for colour; and the record.

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
            array = np.moveaxis(array, -1, 0)[: record.channels]
            array = array.reshape(record.channels, *record.geometry.shape)
        else:
            array = array.reshape(record.geometry.shape)
    except ValueError as error:  # pages of which some are damaged
        raise DataError("pixels are not those of the header", file=path, received=array.shape) from error
    voxels = np.array(array, dtype=np.float32, order="C")
    if not np.isfinite(voxels).all():
        raise DataError("pixels are NaN or infinite", file=path)
    return voxels, record


def read_tiff_header(path: Path) -> ReadRecord:
    """The record of `read_tiff` without decoding pixels."""
    _refuse_missing_or_empty(path)
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
    return _planar_record(path, kind="tiff", shape=spatial, channels=channels, dtype=dtype.name, warnings=warnings)


def read_itk(path: Path) -> tuple[npt.NDArray[np.float32], ReadRecord]:
    """Read NRRD, MHA or MHD.

    Returns:
        ``(x, y[, z])``, with a leading axis of channels for vector images, and the record in RAS.

    Raises:
        DataError: unreadable, or NaN voxels.
        GeometryError: impossible spacing.
        SecurityError: a header that takes its voxels from another folder.
    """
    record = read_itk_header(path)
    require_memory(record.geometry.shape, record.channels, path)
    try:
        image = sitk.ReadImage(str(path), imageIO=_itk_format(path))
    except RuntimeError as error:
        raise DataError(f"cannot be read: {_itk_cause(error)}", file=path) from error
    return itk_voxels(image, path), record


def read_itk_header(path: Path) -> ReadRecord:
    """The record of `read_itk` without the voxels."""
    _refuse_missing_or_empty(path)
    refuse_foreign_data(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_itk_format(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(f"cannot be read: {_itk_cause(error)}", file=path) from error
    name = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in name:
        raise DataError("voxels have no order", file=path, received=name)
    return ReadRecord(
        path=path,
        format=path.suffix.lower().lstrip("."),
        geometry=itk_geometry(reader, path),
        channels=reader.GetNumberOfComponents(),
        dtype=name,
    )


def _itk_format(path: Path) -> str:
    """The one of ITK's some thirty parsers that a file gets: the one of its name, whatever its content claims."""
    return "NrrdImageIO" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImageIO"


def itk_geometry(image: Any, path: Path) -> Geometry:
    """Geometry in RAS of a `SimpleITK.Image`, or of a reader that has read the header."""
    n_axes = image.GetDimension()
    if n_axes not in (2, 3):
        raise GeometryError("an image has two or three axes", file=path, received=n_axes)
    direction = np.eye(3)
    direction[:n_axes, :n_axes] = np.reshape(image.GetDirection(), (n_axes, n_axes))
    try:
        return Geometry.from_lps(
            origin=(*image.GetOrigin(), 0.0)[:3],
            spacing=(*image.GetSpacing(), 1.0)[:3],
            direction=direction.ravel().tolist(),
            shape=image.GetSize(),
        )
    except GeometryError as error:
        raise GeometryError(error.cause, file=path, received=error.received, expected=error.expected) from error


def itk_voxels(image: sitk.Image, path: Path) -> npt.NDArray[np.float32]:
    """Voxels in the order of the affine: SimpleITK's arrays count z first, ours x."""
    array = sitk.GetArrayViewFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
        array = array.transpose(0, *range(array.ndim - 1, 0, -1))
    else:
        array = array.T
    voxels = copy_in_order(array, dtype=np.float32)
    if not np.isfinite(voxels).all():
        raise DataError("voxels are NaN or infinite", file=path)
    return voxels


def _planar_record(
    path: Path, *, kind: str, shape: tuple[int, ...], channels: int, dtype: str, warnings: tuple[str, ...]
) -> ReadRecord:
    geometry = Geometry(np.eye(4), shape)
    return ReadRecord(path=path, format=kind, geometry=geometry, channels=channels, dtype=dtype, warnings=warnings)


def _refuse_missing_or_empty(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror or error}", file=path) from error
    if size == 0:
        raise DataError("file has zero bytes", file=path, remedy="copy it again from its source")


def _itk_cause(error: RuntimeError) -> str:
    """The last line of ITK's several, which holds the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "unknown cause"
