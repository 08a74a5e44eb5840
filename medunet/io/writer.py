"""Writing images and label maps: atomically, on a given grid, in the format that the file name selects."""

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lazy_loader
import nibabel as nib
import numpy as np
import numpy.typing as npt
import tifffile
import torch
from PIL import Image

from medunet.errors import DataError, GeometryError
from medunet.files import atomic_path
from medunet.geometry import Geometry

from .itk import SEG_NRRD_SUFFIX, segment_fields
from .layout import copy_in_order
from .names import split_suffix
from .packed import gzip_parts
from .segments import Segment, as_segments

sitk: Any = lazy_loader.load("SimpleITK")  # the other formats work without it

Labels = Mapping[str, int] | Sequence[Segment]

_NIFTI1_LARGEST_AXIS = 32767  # NIfTI-1 stores sizes as int16; larger volumes are written as NIfTI-2
_PART_BYTES = 32 << 20  # voxels that are put in the file's order, compressed and written at a time
_COMMENT = 6  # NIfTI's code of an extension that has plain text
_LABELS_KEY = "medunet_labels"
_SCANNER = 1  # NIfTI's code of a placement in scanner coordinates

# Integer types by suffix that other programs read; PNG has no others. Formats that are not listed have `_LABEL_TYPES`.
_PLANAR_TYPES = {".png": ("uint8", "uint16"), **dict.fromkeys((".tif", ".tiff"), ("uint8", "uint16", "uint32"))}
_LABEL_TYPES = ("uint8", "int16", "int32")

WRITE_SUFFIXES = (".nii", ".nii.gz", ".png", ".tif", ".tiff", ".npy", SEG_NRRD_SUFFIX, ".nrrd", ".mha")  # longer first


def write_volume(
    array: npt.ArrayLike | torch.Tensor,
    path: str | os.PathLike[str],
    *,
    affine: npt.ArrayLike | torch.Tensor | None = None,
    dtype: npt.DTypeLike | None = None,
    labels: Labels | None = None,
    overwrite: bool = True,
) -> Path:
    """Write voxels to a file whose suffix chooses the format.

    Args:
        array: ``(*spatial)``, without channel axis, in the order of `read_volume`; for NIfTI and `.npy` a last axis of
            channels may follow three spatial ones.
        path: `.nii`, `.nii.gz`, `.nrrd`, `.seg.nrrd`, `.mha` (placed in the patient), `.png` (2D), `.tif` (2D, or a
            stack of pages), `.npy`. Pictures are ``(x, y)``, x along the width; stacks ``(x, y, pages)``.
        affine: 4x4, RAS mm; the default is the identity. PNG, TIFF and npy do not store it.
        dtype: type in the file; values that it cannot represent are rejected. The default is the array's own type.
        labels: names of a label map's values. A `.seg.nrrd` stores them as segments, a NIfTI file in an extension of
            its header, which other programs ignore; other formats do not store them.
        overwrite: whether an existing file may be replaced.

    Returns:
        The path.

    Raises:
        DataError: unknown suffix, wrong number of axes, a type or values that the format cannot store, no permission.
        GeometryError: an invalid affine.
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
    if suffix is None:
        raise DataError("unknown format", file=target, expected=", ".join(WRITE_SUFFIXES))
    with atomic_path(target, overwrite=overwrite) as temporary:
        if suffix in (".nii", ".nii.gz"):
            parts = _nifti_parts(voxels, geometry, target, labels=labels)
            with temporary.open("wb") as file:
                file.writelines(gzip_parts(parts) if suffix == ".nii.gz" else parts)
        elif suffix == ".npy":
            with temporary.open("wb") as file:
                np.save(file, voxels)
        elif suffix == ".png":
            Image.fromarray(_planar(voxels, target, axes=(2,))).save(temporary, format="PNG")
        elif suffix in (".tif", ".tiff"):
            pages = _planar(voxels, target, axes=(2, 3))
            tifffile.imwrite(temporary, pages, photometric="minisblack", compression="zlib")
        else:
            image = _itk_image(voxels, geometry, target, labels=labels)
            sitk.WriteImage(image, str(temporary), useCompression=True)
    return target


def label_dtype(values: npt.ArrayLike, path: Path, *, bits: int = 8) -> np.dtype[Any]:
    """Return the smallest integer type, of at least `bits`, that has all label values and that other programs read.

    Raises:
        DataError: the format of the path has no such type.
    """
    array = np.asarray(values)
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    names = _PLANAR_TYPES.get(path.suffix.lower(), _LABEL_TYPES)
    for info in (np.iinfo(np.dtype(name)) for name in names):
        if info.bits >= bits and info.min <= low and high <= info.max:
            return info.dtype
    cause, expected = "label values are too large for the format", " or ".join(names)
    remedy = "write .tif or .nii.gz" if path.suffix.lower() == ".png" else None
    raise DataError(cause, file=path, received=f"{low} to {high}", expected=expected, remedy=remedy)


def _as_numpy(array: npt.ArrayLike | torch.Tensor) -> npt.NDArray[Any]:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()  # numpy does not know bfloat16
    return np.asarray(array)


def _cast(voxels: npt.NDArray[Any], dtype: np.dtype[Any], path: Path) -> npt.NDArray[Any]:
    if dtype.kind in "iu" and voxels.size:
        low, high = voxels.min(), voxels.max()
        info = np.iinfo(dtype)
        if not (low >= info.min and high <= info.max):  # false for NaN too
            received, expected = f"{low} to {high}", f"{info.min} to {info.max}"
            raise DataError(f"values do not fit {dtype}", file=path, received=received, expected=expected)
        if voxels.dtype.kind == "f" and not np.array_equal(np.rint(voxels), voxels):
            raise DataError(f"fractional values do not fit {dtype}", file=path)
    return voxels.astype(dtype)


def nifti_labels(path: Path) -> dict[str, int] | None:
    """Return the label names that `write_volume` stored in a NIfTI file: value by name, or None."""
    for extension in nib.load(path).header.extensions:
        content = extension.get_content()
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # of another program
            text = content.rstrip(b"\0") if isinstance(content, bytes) else content
            return {str(name): int(value) for name, value in json.loads(text)[_LABELS_KEY].items()} or None
    return None


def _nifti_parts(
    voxels: npt.NDArray[Any], geometry: Geometry, path: Path, *, labels: Labels | None
) -> Iterator[bytes | memoryview]:
    """Yield the file's bytes part by part, so that a large volume is not copied as a whole."""
    if voxels.ndim > 4:
        raise DataError("too many axes", file=path, received=voxels.shape)
    if voxels.dtype.kind not in "iuf" or voxels.dtype.itemsize > 8:
        raise DataError("type cannot be written", file=path, received=str(voxels.dtype))
    if voxels.dtype == np.float16:
        voxels = voxels.astype(np.float32)
    is_large = max(voxels.shape) > _NIFTI1_LARGEST_AXIS
    header = (nib.Nifti2Header if is_large else nib.Nifti1Header)(endianness="<")
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_slope_inter(1.0, 0.0)
    header.set_xyzt_units("mm")
    header.set_sform(geometry.affine, code=_SCANNER)
    # A qform cannot represent shear, and near a half turn it rounds coarsely. Then only the sform is written, so that
    # all readers see the same grid.
    header.set_qform(geometry.affine, code=_SCANNER, strip_shears=True)
    if geometry.is_sheared or not Geometry(header.get_qform(), geometry.shape).is_close(geometry):
        header["qform_code"] = 0
    header["magic"] = b"n+2" if is_large else b"n+1"
    if labels:
        names = labels if isinstance(labels, Mapping) else {segment.name: segment.value for segment in labels}
        text = json.dumps({_LABELS_KEY: {name: int(value) for name, value in names.items()}})
        header.extensions.append(nib.nifti1.Nifti1Extension(_COMMENT, text.encode()))
    buffer = io.BytesIO()
    header.write_to(buffer)
    yield buffer.getvalue()
    little = voxels.dtype.newbyteorder("<")
    at_once = max(1, _PART_BYTES // max(1, voxels[..., :1].nbytes))  # the last axis varies slowest in the file
    for start in range(0, voxels.shape[-1], at_once):
        yield copy_in_order(voxels[..., start : start + at_once], dtype=little, order="F").reshape(-1, order="F").data


def _planar(voxels: npt.NDArray[Any], path: Path, *, axes: tuple[int, ...]) -> npt.NDArray[Any]:
    _require_axes(voxels, path, axes)
    if voxels.dtype.name not in _PLANAR_TYPES[path.suffix.lower()] and (
        voxels.dtype != np.float32 or path.suffix.lower() == ".png"
    ):
        voxels = _cast(voxels, label_dtype(voxels, path), path)
    return np.ascontiguousarray(voxels.T)  # files store rows first


def _itk_image(voxels: npt.NDArray[Any], geometry: Geometry, path: Path, *, labels: Labels | None) -> Any:
    is_segmentation = path.name.lower().endswith(SEG_NRRD_SUFFIX)
    _require_axes(voxels, path, (3,) if is_segmentation else (2, 3))
    if is_segmentation:
        voxels = _cast(voxels, label_dtype(voxels, path), path)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    n_axes = voxels.ndim
    origin, spacing, direction = geometry.to_lps()
    image.SetOrigin(origin[:n_axes])
    image.SetSpacing(spacing[:n_axes])
    image.SetDirection(np.reshape(direction, (3, 3))[:n_axes, :n_axes].ravel().tolist())
    if is_segmentation:
        segments = as_segments(labels, values=voxels) if labels is None or isinstance(labels, Mapping) else labels
        for key, value in segment_fields(voxels, segments).items():
            image.SetMetaData(key, value)
    return image


def _require_axes(voxels: npt.NDArray[Any], path: Path, axes: tuple[int, ...]) -> None:
    if voxels.ndim not in axes:
        raise DataError("wrong number of axes for the format", file=path, received=voxels.ndim, expected=axes)


def result_suffix(source: str | os.PathLike[str], *, spatial_dims: int) -> str:
    """Return the suffix of an image's label map: the image's own if it stores labels without loss and with placement.

    Examples:
        >>> [result_suffix(name, spatial_dims=3) for name in ("a.nii.gz", "a.nii", "a.nrrd", "series", "stack.tif")]
        ['.nii.gz', '.nii', '.nii.gz', '.nii.gz', '.tif']
        >>> [result_suffix(name, spatial_dims=2) for name in ("a.png", "a.tif", "a.jpg")]
        ['.png', '.tif', '.png']
    """
    suffix = split_suffix(Path(source).name)[1].lower()
    if suffix in (".nii", ".nii.gz", ".tif", ".tiff"):
        return suffix
    return ".png" if spatial_dims == 2 and suffix not in (".nrrd", ".nhdr", ".mha", ".mhd") else ".nii.gz"
