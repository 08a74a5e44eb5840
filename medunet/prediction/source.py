"""Inputs of a predictor: files by path and arrays in memory; and their existing results."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from medunet.errors import DataError, GeometryError, first_cause
from medunet.geometry import Geometry
from medunet.io import SavePredictiond, output_name, split_suffix
from medunet.io.dicom.sr import ENDING as SR_ENDING
from medunet.io.object_table import OBJECT_FILES
from medunet.io.reader import PathLike
from medunet.io.writer import result_suffix

DICOM_SUFFIXES = ("", ".dcm", ".dicom", ".ima")
MESSAGE_LENGTH = 300  # characters shown of a third-party message


@dataclass(frozen=True)
class NamedSource:
    """An image, or its channels, and the name of its result.

    Args:
        images: one path per channel.
        name: without suffix, relative to the output folder; may have folders, such as ``patient_7/ct``.
    """

    images: tuple[PathLike, ...]
    name: str


Source = PathLike | Sequence[PathLike] | NamedSource


def parts(source: Source) -> tuple[str | list[str], str | None]:
    """Return the image or its channels as MONAI's transforms expect them, and the name if one is given."""
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
    """Return an array with the metadata that a reader gives."""
    if affine is None:
        raise GeometryError("an array needs an affine", expected="4x4, from voxel indices to RAS millimetres")
    try:
        if isinstance(image, torch.Tensor):
            voxels = image.detach().cpu().clone()
        else:
            voxels = torch.from_numpy(np.asarray(image).astype(np.float32, casting="same_kind"))
        matrix = np.asarray(affine, dtype=np.float64).copy()
    except (TypeError, ValueError) as error:
        received = " and ".join(str(getattr(part, "dtype", type(part).__name__)) for part in (image, affine))
        raise DataError("image and affine must be arrays of numbers", received=received) from error
    if voxels.is_complex() or not voxels.isfinite().all():
        raise DataError("voxels must be finite real numbers", received=voxels.dtype)
    if voxels.ndim != spatial_dims + 1 or voxels.shape[0] != channels:
        expected = (channels, *"xyz"[:spatial_dims])
        raise GeometryError("the array does not fit this bundle", received=tuple(voxels.shape), expected=expected)
    Geometry(matrix, tuple(voxels.shape[1:]))  # rejects an invalid affine
    meta = {"original_affine": matrix.copy(), "spatial_shape": np.array(voxels.shape[1:]), "original_channel_dim": 0}
    return MetaTensor(voxels.float().contiguous(), affine=torch.from_numpy(matrix), meta=meta)


def unexpected(failure: Exception, source: Source) -> DataError:
    """Return a typed error for an exception that no reader or transform anticipates."""
    cause = first_cause(failure)
    received = f"{type(cause).__name__}: {' '.join(str(cause).split())[:MESSAGE_LENGTH]}"
    remedy = "--verbose shows the traceback"
    error = DataError("unexpected error", file=first_path(source), received=received, remedy=remedy)
    error.__cause__ = failure
    return error


def existing_result(source: Source, saver: SavePredictiond) -> Path | None:
    """Return the label map that a saver wrote for an image, without reading the image; None if the case is not done.

    A case is not done if its probabilities or tables of objects are wanted and missing, or if its result has another
    format.
    """
    first, stem = Path(first_path(source)), _stem(source, saver)
    if not all((saver.output_dir / (stem + OBJECT_FILES[kind])).is_file() for kind in saver.objects):
        return None
    # the number of axes is known only after reading, so both suffixes count
    axes = [2, 3]
    if saver.prob_key is not None:
        axes = [n for n in axes if (saver.output_dir / f"{stem}_prob{'.npy' if n == 2 else '.nii.gz'}").is_file()]
    if saver.format == "auto":  # a DICOM series becomes a DICOM SEG if possible
        suffixes = [*(result_suffix(first, spatial_dims=n) for n in axes), ".dcm"]
    else:
        suffixes = [".dcm" if saver.format in ("dicom-seg", "rtstruct") else f".{saver.format}"]
    paths = (saver.output_dir / (stem + suffix) for suffix in suffixes if axes)
    return next((path for path in paths if path.is_file()), None)


def result_files(label_map: PathLike, saver: SavePredictiond) -> list[str]:
    """Return the files that a saver wrote for a case: the label map, probabilities, tables of objects, and the SR."""
    path = Path(label_map)
    endings = [OBJECT_FILES[kind] for kind in saver.objects]
    if saver.prob_key is not None:
        endings += ["_prob.nii.gz", "_prob.npy"]
    if saver.structures is not None:
        endings.append(SR_ENDING)
    files = (path.with_name(split_suffix(path.name)[0] + ending) for ending in endings)
    return [str(path), *(str(file) for file in files if file.is_file())]


def expected_result(source: Source, saver: SavePredictiond, *, spatial_dims: int) -> Path:
    """Return the label map that a saver will write for an image, as far as this is known without reading the image.

    With the format `auto`, a DICOM series that a DICOM SEG cannot refer to becomes ``.nii.gz``.
    """
    first = Path(first_path(source))
    is_dicom = first.is_dir() or split_suffix(first.name)[1].lower() in DICOM_SUFFIXES
    if saver.format in ("dicom-seg", "rtstruct") or (saver.format == "auto" and is_dicom and find_spec("highdicom")):
        suffix = ".dcm"
    else:
        suffix = result_suffix(first, spatial_dims=spatial_dims) if saver.format == "auto" else f".{saver.format}"
    return saver.output_dir / (_stem(source, saver) + suffix)


def _stem(source: Source, saver: SavePredictiond) -> str:
    images, name = parts(source)
    code = None if saver.pseudonyms is None else saver.pseudonyms.code(Path(first_path(source)))
    return code or name or output_name(images)
