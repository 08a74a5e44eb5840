"""Write a prediction as the file that a client asks for."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor

from medunet.errors import ConfigError
from medunet.io import split_suffix, write_volume
from medunet.io.segments import Segment

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha")
PICTURE_SUFFIXES = (".png", ".tif", ".tiff")


def choose_suffix(wanted: str | None, source: Path, *, spatial_dims: int) -> str:
    """Choose the file suffix of a result: the client's `result_extension`, else the image's if it can store labels.

    Examples:
        >>> choose_suffix(None, Path("ct.nii.gz"), spatial_dims=3), choose_suffix("nrrd", Path("a.nii"), spatial_dims=3)
        ('.nii.gz', '.nrrd')
        >>> choose_suffix(None, Path("a.jpg"), spatial_dims=2), choose_suffix(".nrrd", Path("a.png"), spatial_dims=2)
        ('.png', '.png')
    """
    known = VOLUME_SUFFIXES if spatial_dims == 3 else PICTURE_SUFFIXES
    suffix = f".{wanted.lower().lstrip('.')}" if wanted else split_suffix(source.name)[1].lower()
    if suffix in known:
        return suffix
    if not wanted or (spatial_dims == 2 and suffix in VOLUME_SUFFIXES):
        return known[0]  # viewers of volumes ask for their own format even of pictures
    raise ConfigError("unknown result_extension", received=wanted, expected=", ".join(known))


def write_result(
    labels: MetaTensor, folder: Path, suffix: str, *, segments: Sequence[Segment], dtype: str | None = None
) -> Path:
    """Write a label map `(1, *spatial)` to a new file; by default in the smallest type that all programs read."""
    voxels = np.asarray(labels.as_tensor().cpu())[0]
    largest = max([int(voxels.max(initial=0)), *(segment.value for segment in segments)])
    try:
        kind = np.dtype(dtype or ("uint8" if largest < 256 else "uint16" if largest < 1 << 16 else "int32"))
    except TypeError as error:
        raise ConfigError("unknown result_dtype", received=dtype, expected="uint8, uint16, int32, ...") from error
    path = folder / f"{uuid.uuid4().hex}{suffix}"
    return write_volume(voxels, path, affine=labels.affine.cpu(), dtype=kind, labels=segments)


def describe_result(labels: MetaTensor, segments: Sequence[Segment]) -> dict[str, Any]:
    """Return values, colours (RGB, 0 to 255) and sizes (`volume_ml`, in 2D `area_mm2`) of the labels by name."""
    voxels, affine = np.asarray(labels.as_tensor().cpu())[0], np.asarray(labels.affine.cpu())
    counts = np.bincount(voxels.ravel(), minlength=1 + max((segment.value for segment in segments), default=0))
    key, unit = ("volume_ml", 1000) if voxels.ndim == 3 else ("area_mm2", 1)
    voxel = abs(float(np.linalg.det(affine[: voxels.ndim, : voxels.ndim]))) / unit
    return {
        "label_names": {segment.name: segment.value for segment in segments},
        "label_colors": {segment.name: list(segment.color) for segment in segments},
        key: {segment.name: round(int(counts[segment.value]) * voxel, 4) for segment in segments},
    }
