"""Writing images and label maps: atomic, on a given grid, in the format that the name asks for."""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import tifffile
import torch
from PIL import Image

from medunet.errors import DataError, GeometryError
from medunet.files import atomic_path, write_atomically
from medunet.geometry import Geometry

from .deflate import compress_parts
from .layout import copy_in_order
from .names import split_suffix
from .nrrd import SEG_NRRD_SUFFIX, seg_nrrd_bytes
from .segments import Segment, as_segments

_NIFTI1_LARGEST_AXIS = 32767
"""NIfTI-1 keeps sizes as int16; larger volumes are written as NIfTI-2."""

_PART_BYTES = 32 << 20
"""Bytes of voxels that are put in the file's order, compressed and written at a time."""

_NO_EXTENSION = bytes(4)
_EXTENSION_FOLLOWS = bytes([1, 0, 0, 0])
_COMMENT = 6
"""NIfTI's code of an extension that holds plain text."""
_EXTENSION_BLOCK = 16
"""An extension's length is a multiple of this."""
_LABELS_KEY = "medunet_labels"
_SCANNER = 1
"""NIfTI code of a placement in scanner coordinates."""

_PLANAR_TYPES = ("uint8", "uint16")
_LABEL_TYPES = ("uint8", "int16", "int32")

WRITE_SUFFIXES = (".nii", ".nii.gz", ".png", ".tif", ".tiff", ".npy", SEG_NRRD_SUFFIX, ".nrrd", ".mha")
"""Endings that `write_volume` knows, the longer before the shorter."""


def write_volume(
    array: npt.ArrayLike | torch.Tensor,
    path: str | os.PathLike[str],
    *,
    affine: npt.ArrayLike | torch.Tensor | None = None,
    dtype: npt.DTypeLike | None = None,
    labels: Mapping[str, int] | Sequence[Segment] | None = None,
    overwrite: bool = True,
) -> Path:
    """Write voxels to a file whose ending chooses the format.

    Args:
        array: ``(*spatial)``, without channel axis, in the order that `read_volume` gives; for NIfTI and `.npy` a last
            axis of channels may follow three spatial ones.
        path: `.nii`, `.nii.gz`, `.nrrd`, `.seg.nrrd`, `.mha` (placed in the patient), `.png` (in the plane), `.tif` (an
            image or a stack of pages), `.npy`. Pictures are ``(x, y)``, x along the width; stacks ``(x, y, pages)``.
        affine: 4x4, RAS mm; identity when missing. PNG, TIFF and npy do not keep it.
        dtype: type in the file; values that it cannot hold are refused. By default the array's own type.
        labels: what the values of a label map are called. A `.seg.nrrd` keeps them as segments, a NIfTI file in an
            extension of its header, which other programs pass over; other formats have no place for them.
        overwrite: whether an existing file may be replaced.

    Returns:
        The path written.

    Raises:
        DataError: unknown ending, wrong number of axes, a type or values that the format cannot hold, no permission.
        GeometryError: an affine that is not one.
    """
    target = Path(path)
    voxels = _as_numpy(array)
    if dtype is not None:
        voxels = _cast(voxels, np.dtype(dtype), target)
    elif voxels.dtype == bool:
        voxels = voxels.astype(np.uint8)
    matrix = np.eye(4) if affine is None else np.asarray(_as_numpy(affine), dtype=np.float64)
    try:
        geometry = Geometry(matrix, voxels.shape[:3])
    except GeometryError as error:
        raise error.at(target) from error
    suffix = next((s for s in WRITE_SUFFIXES if target.name.lower().endswith(s)), None)
    if suffix in (".nii", ".nii.gz"):
        data = _nifti_parts(voxels, geometry, target, extension=_label_extension(labels))
        write_atomically(target, compress_parts(data) if suffix == ".nii.gz" else data, overwrite=overwrite)
    elif suffix == SEG_NRRD_SUFFIX:
        whole = _cast(voxels, label_dtype(voxels, planar=False), target)
        segments = as_segments(labels, values=whole) if labels is None or isinstance(labels, Mapping) else labels
        write_atomically(target, seg_nrrd_bytes(whole, geometry, segments), overwrite=overwrite)
    elif suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, voxels)
        write_atomically(target, buffer.getvalue(), overwrite=overwrite)
    elif suffix == ".png":
        buffer = io.BytesIO()
        Image.fromarray(_planar(voxels, target, axes=(2,))).save(buffer, format="PNG")
        write_atomically(target, buffer.getvalue(), overwrite=overwrite)
    elif suffix in (".tif", ".tiff"):
        pages = _planar(voxels, target, axes=(2, 3))
        with atomic_path(target, overwrite=overwrite) as temporary:
            tifffile.imwrite(temporary, pages, photometric="minisblack", compression="zlib")
    elif suffix in (".nrrd", ".mha"):
        with atomic_path(target, overwrite=overwrite) as temporary:
            sitk.WriteImage(_itk_image(voxels, geometry, target), str(temporary), useCompression=True)
    else:
        raise DataError("unknown format", file=target, expected=", ".join(WRITE_SUFFIXES))
    return target


def label_dtype(values: npt.ArrayLike, *, planar: bool) -> np.dtype[Any]:
    """The smallest type for label values that other programs expect: uint8, else int16 and int32, uint16 in the plane.

    Raises:
        DataError: negative or larger values than the types hold.

    Example:
        >>> label_dtype([0, 255], planar=False), label_dtype([0, 300], planar=True)
        (dtype('uint8'), dtype('uint16'))
    """
    found = np.asarray(values)
    low, high = (found.min(), found.max()) if found.size else (0, 0)
    names = _PLANAR_TYPES if planar else _LABEL_TYPES
    for name in names:
        if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
            return np.dtype(name)
    raise DataError("label values are too large for the format", received=(low, high), expected=" or ".join(names))


def _as_numpy(array: npt.ArrayLike | torch.Tensor) -> npt.NDArray[Any]:
    if isinstance(array, torch.Tensor):
        tensor = array.detach().cpu()
        if hasattr(tensor, "as_tensor"):  # a MetaTensor
            tensor = tensor.as_tensor()
        if tensor.dtype == torch.bfloat16:  # unknown to numpy
            tensor = tensor.float()
        return np.asarray(tensor.numpy())
    return np.asarray(array)


def _cast(voxels: npt.NDArray[Any], dtype: np.dtype[Any], path: Path) -> npt.NDArray[Any]:
    if dtype.kind in "iu" and voxels.size:
        low, high = voxels.min(), voxels.max()
        info = np.iinfo(dtype)
        if not (low >= info.min and high <= info.max):  # false for NaN too
            raise DataError(
                f"values do not fit {dtype}",
                file=path,
                received=f"{low} to {high}",
                expected=f"{info.min} to {info.max}",
            )
        if voxels.dtype.kind == "f" and not np.array_equal(np.rint(voxels), voxels):
            raise DataError(f"fractional values do not fit {dtype}", file=path, remedy="round them or write float32")
    return voxels.astype(dtype)


def parse_label_names(extension: bytes) -> dict[str, int] | None:
    """Name to value from the content of a NIfTI extension, or None where it is another one.

    Example:
        >>> parse_label_names(b'{"medunet_labels": {"liver": 1}}'), parse_label_names(b"made by hand")
        ({'liver': 1}, None)
    """
    try:
        found = json.loads(extension.rstrip(b"\0"))[_LABELS_KEY]
        return {str(name): int(value) for name, value in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _label_extension(labels: Mapping[str, int] | Sequence[Segment] | None) -> bytes:
    """What lies between a NIfTI header and its voxels."""
    if not labels:
        return _NO_EXTENSION
    names = dict(labels) if isinstance(labels, Mapping) else {segment.name: segment.value for segment in labels}
    text = json.dumps({_LABELS_KEY: {name: int(value) for name, value in names.items()}}).encode()
    length = -(-(8 + len(text)) // _EXTENSION_BLOCK) * _EXTENSION_BLOCK
    return _EXTENSION_FOLLOWS + struct.pack("<ii", length, _COMMENT) + text.ljust(length - 8, b"\0")


def _nifti_parts(
    voxels: npt.NDArray[Any], geometry: Geometry, path: Path, *, extension: bytes
) -> Iterator[bytes | memoryview]:
    """The file's bytes, part by part: of a chest CT, or of the probabilities of many classes, no copy is made."""
    if voxels.ndim > 4:
        raise DataError("too many axes", file=path, received=voxels.shape)
    if voxels.dtype.kind not in "iuf" or voxels.dtype.itemsize > 8:
        raise DataError("type cannot be written", file=path, received=str(voxels.dtype))
    if voxels.dtype == np.float16:
        voxels = voxels.astype(np.float32)
    large = max(voxels.shape) > _NIFTI1_LARGEST_AXIS
    header = nib.Nifti2Header(endianness="<") if large else nib.Nifti1Header(endianness="<")
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_slope_inter(1.0, 0.0)
    header.set_xyzt_units("mm")
    header.set_sform(geometry.affine, code=_SCANNER)
    # A qform cannot hold shear, and near a half turn it rounds coarsely: there only the sform is given, so that no
    # reader sees two grids.
    header.set_qform(geometry.affine, code=_SCANNER, strip_shears=True)
    if geometry.is_sheared or not Geometry(header.get_qform(), geometry.shape).is_close(geometry):
        header["qform_code"] = 0
    header["vox_offset"] = len(header.binaryblock) + len(extension)
    header["magic"] = b"n+2" if large else b"n+1"
    head = header.binaryblock + extension
    little = voxels.dtype.newbyteorder("<")
    yield head
    if not voxels.size:
        return
    slab = voxels[..., :1].nbytes  # the last axis varies slowest in the file
    at_once = max(1, _PART_BYTES // slab)
    for start in range(0, voxels.shape[-1], at_once):
        part = voxels[..., start : start + at_once]
        out = np.empty(part.shape, dtype=little, order="F")
        copy_in_order(part, dtype=little, order="F", out=out)
        yield out.reshape(-1, order="F").data.cast("B")


def _planar(voxels: npt.NDArray[Any], path: Path, *, axes: tuple[int, ...]) -> npt.NDArray[Any]:
    if voxels.ndim not in axes:
        raise DataError(
            "wrong number of axes for the format", file=path, received=voxels.ndim, expected=axes, remedy="use .nii.gz"
        )
    if voxels.dtype.name not in _PLANAR_TYPES and voxels.dtype != np.float32:
        voxels = _cast(voxels, label_dtype(voxels, planar=True), path)
    if voxels.dtype == np.float32 and path.suffix.lower() == ".png":
        voxels = _cast(voxels, label_dtype(voxels, planar=True), path)
    return np.ascontiguousarray(voxels.T)  # files keep rows first


def _itk_image(voxels: npt.NDArray[Any], geometry: Geometry, path: Path) -> sitk.Image:
    if voxels.ndim not in (2, 3):
        raise DataError("wrong number of axes for the format", file=path, received=voxels.ndim, expected="2 or 3")
    n_axes = voxels.ndim
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    origin, spacing, direction = geometry.to_lps()
    image.SetOrigin(origin[:n_axes])
    image.SetSpacing(spacing[:n_axes])
    image.SetDirection(np.reshape(direction, (3, 3))[:n_axes, :n_axes].ravel().tolist())
    return image


def result_suffix(source: str | os.PathLike[str], *, spatial_dims: int) -> str:
    """Ending of a label map for an image: the image's own where it keeps labels without loss and with its placement.

    Example:
        >>> [result_suffix(name, spatial_dims=3) for name in ("a.nii.gz", "a.nii", "a.nrrd", "series", "stack.tif")]
        ['.nii.gz', '.nii', '.nii.gz', '.nii.gz', '.tif']
        >>> [result_suffix(name, spatial_dims=2) for name in ("a.png", "a.tif", "a.jpg", "a.bmp")]
        ['.png', '.tif', '.png', '.png']
    """
    suffix = split_suffix(Path(source).name)[1].lower()
    if suffix in (".nii", ".nii.gz", ".tif", ".tiff"):
        return suffix
    return ".png" if spatial_dims == 2 and suffix not in (".nrrd", ".nhdr", ".mha", ".mhd") else ".nii.gz"
