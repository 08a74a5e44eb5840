"""What a predictor predicts: files by path, and images in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from medunet.errors import DataError, GeometryError, first_cause
from medunet.geometry import Geometry
from medunet.io.reader import PathLike

MESSAGE_LENGTH = 300
"""Characters of a foreign message that are shown; PyTorch's may be pages."""


@dataclass(frozen=True)
class NamedSource:
    """An image, or its channels, with the name that its result is to bear.

    Args:
        images: one path per channel.
        name: without ending, relative to the output folder; may have folders, such as ``patient_7/ct``.
    """

    images: tuple[PathLike, ...]
    name: str


Source = PathLike | Sequence[PathLike] | NamedSource


def parts(source: Source) -> tuple[PathLike | Sequence[PathLike], str | None]:
    """Return the image or its channels, and the name if one is given."""
    if not isinstance(source, NamedSource):
        return source, None
    return (source.images[0] if len(source.images) == 1 else source.images), source.name


def as_text(source: PathLike | Sequence[PathLike]) -> str | list[str]:
    """Return paths as MONAI's transforms take them."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else [os.fspath(path) for path in source]


def as_if_read(image: Any, affine: Any, *, channels: int, spatial_dims: int) -> MetaTensor:
    """Give an image in memory the meta data that a reader gives.

    Raises:
        DataError: image or affine is not an array of numbers.
        GeometryError: no affine, an invalid one, or an image of another number of channels or axes.
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
    Geometry(matrix, tuple(voxels.shape[1:]))  # rejects what is not an affine
    meta = {"original_affine": matrix.copy(), "spatial_shape": np.array(voxels.shape[1:]), "original_channel_dim": 0}
    return MetaTensor(voxels.contiguous(), affine=torch.from_numpy(matrix), meta=meta)


def check_channels(image: torch.Tensor, channels: int, source: Source) -> None:
    """Reject a preprocessed image that the network cannot take.

    Raises:
        DataError: the image has another number of channels than the network.
    """
    if len(image) != channels:
        raise DataError(
            "the preprocessed image must have the channels of the network first",
            file=_first_path(source),
            received=tuple(image.shape),
            expected=(channels, *"xyz"[: image.ndim - 1]),
        )


def _first_path(source: Source) -> PathLike:
    images, _ = parts(source)
    return images if isinstance(images, str | os.PathLike) else images[0]


def unexpected(failure: Exception, source: Source) -> DataError:
    """Return a typed error about what no reader or transform foresees."""
    cause = first_cause(failure)
    error = DataError(
        "unexpected error",
        file=_first_path(source),
        received=f"{type(cause).__name__}: {' '.join(str(cause).split())[:MESSAGE_LENGTH]}",
        remedy="the traceback is shown by --verbose",
    )
    error.__cause__ = failure
    return error
