"""Images that a predictor takes: files by path and arrays in memory; and results that exist for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from medunet.errors import DataError, GeometryError, first_cause
from medunet.geometry import Geometry
from medunet.io import SavePredictiond, output_name
from medunet.io.reader import PathLike
from medunet.io.writer import result_suffix

MESSAGE_LENGTH = 300  # characters shown of a third-party message
_DICOM_ENDINGS = {"dicom-seg": ".dcm", "rtstruct": ".dcm"}


@dataclass(frozen=True)
class NamedSource:
    """An image, or its channels, and the name of its result.

    Args:
        images: one path per channel.
        name: without ending, relative to the output folder; may have folders, such as ``patient_7/ct``.
    """

    images: tuple[PathLike, ...]
    name: str


Source = PathLike | Sequence[PathLike] | NamedSource


def parts(source: Source) -> tuple[str | list[str], str | None]:
    """Return the image or its channels as MONAI's transforms take them, and the name if one is given."""
    images, name = (source.images, source.name) if isinstance(source, NamedSource) else (source, None)
    if isinstance(images, str | os.PathLike):
        return os.fspath(images), name
    paths = [os.fspath(path) for path in images]
    return (paths[0] if name is not None and len(paths) == 1 else paths), name


def first_path(source: Source) -> str:
    """Return the path of an image or of its first channel."""
    images, _ = parts(source)
    return images if isinstance(images, str) else images[0]


def from_array(image: Any, affine: Any, *, channels: int, spatial_dims: int) -> MetaTensor:
    """Return an array with the metadata that a reader gives.

    Raises:
        DataError: image or affine is not an array of numbers.
        GeometryError: no affine, an invalid one, or an image with another number of channels or axes.
    """
    if affine is None:
        raise GeometryError("an array needs an affine", expected="4x4, from voxel indices to RAS millimetres")
    try:
        voxels = torch.as_tensor(np.asarray(image, dtype=np.float32))
        matrix = np.array(affine, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError("image and affine must be arrays of numbers", received=type(image).__name__) from error
    if voxels.ndim != spatial_dims + 1 or voxels.shape[0] != channels:
        expected = (channels, *"xyz"[:spatial_dims])
        raise GeometryError("the array does not fit this bundle", received=tuple(voxels.shape), expected=expected)
    Geometry(matrix, tuple(voxels.shape[1:]))  # rejects an invalid affine
    meta = {"original_affine": matrix.copy(), "spatial_shape": np.array(voxels.shape[1:]), "original_channel_dim": 0}
    return MetaTensor(voxels.contiguous(), affine=torch.from_numpy(matrix), meta=meta)


def unexpected(failure: Exception, source: Source) -> DataError:
    """Return a typed error for an exception that no reader or transform foresees."""
    cause = first_cause(failure)
    error = DataError(
        "unexpected error",
        file=first_path(source),
        received=f"{type(cause).__name__}: {' '.join(str(cause).split())[:MESSAGE_LENGTH]}",
        remedy="the traceback is shown by --verbose",
    )
    error.__cause__ = failure
    return error


def existing_result(source: Source, saver: SavePredictiond) -> Path | None:
    """Return the label map that a saver wrote for an image, without reading the image; None if the case is not done.

    A case is not done if its probabilities are wanted and missing, or if its result has another format than the
    saver's (with the format ``auto``: than one that the saver may choose for this image).
    """
    images, name = parts(source)
    first = Path(first_path(source))
    code = None if saver.pseudonyms is None else saver.pseudonyms.code(first)
    stem = (code or name or output_name(images)) + saver.suffix
    # the number of axes is known only after reading, so both endings count
    endings = {axes: result_suffix(first, spatial_dims=axes) for axes in (2, 3)}
    if saver.prob_key is not None:
        probabilities = {2: f"{stem}_prob.npy", 3: f"{stem}_prob.nii.gz"}
        endings = {axes: end for axes, end in endings.items() if (saver.output_dir / probabilities[axes]).is_file()}
        if not endings:
            return None
    if saver.format == "auto":
        candidates = [*endings.values(), ".dcm"]  # a DICOM series becomes a DICOM SEG if possible
    else:
        candidates = [_DICOM_ENDINGS.get(saver.format, f".{saver.format}")]
    paths = (saver.output_dir / (stem + ending) for ending in candidates)
    return next((path for path in paths if path.is_file()), None)
