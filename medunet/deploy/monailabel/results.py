"""A prediction as the file that a client asks for."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor

from medunet.errors import ConfigError
from medunet.io import split_suffix, write_volume
from medunet.io.segments import Segment

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha")
PLANAR_ENDINGS = (".png", ".tif", ".tiff")


def choose_ending(asked: str | None, source: Path, *, spatial_dims: int) -> str:
    """Ending of the result: what the client asks for, else the image's own where it keeps labels.

    Args:
        asked: ``result_extension`` of MONAI Label's request.
        source: the image.
        spatial_dims: 2 or 3.

    Raises:
        ConfigError: an ending that cannot hold these labels.

    Example:
        >>> choose_ending(None, Path("ct.nii.gz"), spatial_dims=3), choose_ending("nrrd", Path("a.nii"), spatial_dims=3)
        ('.nii.gz', '.nrrd')
        >>> choose_ending(None, Path("a.jpg"), spatial_dims=2), choose_ending(".nrrd", Path("a.png"), spatial_dims=2)
        ('.png', '.png')
    """
    known = VOLUME_ENDINGS if spatial_dims == 3 else PLANAR_ENDINGS
    if not asked:
        own = split_suffix(source.name)[1].lower()
        return own if own in known else known[0]
    ending = asked.lower() if asked.startswith(".") else f".{asked.lower()}"
    if spatial_dims == 2 and ending in VOLUME_ENDINGS:
        return known[0]  # a viewer of volumes asks for its own format whatever the image is
    if ending not in known:
        raise ConfigError("unknown result_extension", received=asked, expected=", ".join(known))
    return ending


def write_result(
    labels: MetaTensor, folder: Path, ending: str, *, segments: Sequence[Segment], dtype: str | None = None
) -> Path:
    """Write a label map under a name of its own.

    Args:
        labels: ``(1, *spatial)`` with the values for the file, on the image's grid.
        folder: where.
        ending: of :func:`choose_ending`.
        segments: the bundle's labels, for the formats that keep names.
        dtype: MONAI Label's ``result_dtype``; by default the smallest that all programs read.

    Raises:
        ConfigError: a type that is none of numbers.
        DataError: values that the type does not hold.
    """
    voxels = np.asarray(labels.as_tensor().cpu())[0]
    with tempfile.NamedTemporaryFile(dir=folder, suffix=ending, delete=False) as file:
        path = Path(file.name)
    try:
        return write_volume(
            voxels, path, affine=labels.affine.cpu(), dtype=_number_type(dtype, voxels, segments), labels=segments
        )
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def describe_result(labels: MetaTensor, segments: Sequence[Segment]) -> dict[str, Any]:
    """What the answer says beside the mask, by name: values, colours and volumes.

    Returns:
        ``label_names`` (name to value, as MONAI Label's clients expect), ``label_colors`` (red, green, blue, 0 to 255)
        and ``volume_ml`` (millilitres, 2D: ``area_mm2``).
    """
    voxels = np.asarray(labels.as_tensor().cpu())[0]
    affine = np.asarray(labels.affine.cpu())
    counts = _counts(voxels)
    unit = abs(float(np.linalg.det(affine[: voxels.ndim, : voxels.ndim])))
    sizes = {s.name: counts.get(s.value, 0) * unit for s in segments}
    return {
        "label_names": {s.name: s.value for s in segments},
        "label_colors": {s.name: list(s.color) for s in segments},
        **(
            {"volume_ml": {name: round(size / 1000, 4) for name, size in sizes.items()}}
            if voxels.ndim == 3
            else {"area_mm2": {name: round(size, 4) for name, size in sizes.items()}}
        ),
    }


def _counts(voxels: npt.NDArray[Any]) -> dict[int, int]:
    """Voxels of each value."""
    if voxels.dtype == np.uint8:  # nearly always, and eight times as fast
        return dict(enumerate(np.bincount(voxels.ravel()).tolist()))
    found, numbers = np.unique(voxels, return_counts=True)
    return dict(zip(found.tolist(), numbers.tolist(), strict=True))


def _number_type(asked: str | None, voxels: npt.NDArray[Any], segments: Sequence[Segment]) -> np.dtype[Any]:
    if asked:
        try:
            return np.dtype(asked)
        except TypeError as error:
            raise ConfigError("unknown result_dtype", received=asked, expected="uint8, uint16, int32, ...") from error
    largest = max([int(voxels.max(initial=0)), *(segment.value for segment in segments)])
    return np.dtype(np.uint8 if largest < 256 else np.uint16 if largest < 1 << 16 else np.int32)
