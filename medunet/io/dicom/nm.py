"""Nuclear medicine: a multi-frame file whose slices are placed by its detector, not frame by frame (PS3.3 C.8.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medunet.errors import DataError, GeometryError

from .header import Frame
from .references import read_dataset

_RECONSTRUCTED = ("RECON TOMO", "RECON GATED TOMO")
"""Third values of ImageType whose frames are slices; the frames of others are projections."""


def place_slices(frames: Sequence[Frame]) -> list[Frame]:
    """Return the slices of a reconstruction with their places, and the frames of other images as they are.

    Slice k lies k SpacingBetweenSlices from the detector's position along the normal; the sign says in which direction.

    Raises:
        DataError: damaged attributes.
        GeometryError: a reconstruction that does not say where its slices lie.
    """
    path = frames[0].file.path
    header = read_dataset(path, stop_before_pixels=True)
    try:
        if len(header.get("ImageType") or ()) < 3 or header.ImageType[2] not in _RECONSTRUCTED:
            return list(frames)
        detectors = list(header.get("DetectorInformationSequence") or ())
        position, orientation = (
            np.array([detector.get(name) or () for detector in detectors], dtype=np.float64)
            for name in ("ImagePositionPatient", "ImageOrientationPatient")
        )
        spacing = float(header.get("SpacingBetweenSlices") or 0)
        numbers = np.atleast_1d(np.array(header.get("SliceVector") or range(1, len(frames) + 1), dtype=np.int64))
    except Exception as error:  # pydicom raises many kinds for damaged values
        raise DataError(
            "damaged attributes of a nuclear medicine image", file=path, remedy="export it again"
        ) from error
    shapes = position.shape, orientation.shape, numbers.shape
    is_finite = np.isfinite(position).all() and np.isfinite(orientation).all() and math.isfinite(spacing)
    if shapes != ((1, 3), (1, 6), (len(frames),)) or not is_finite or not spacing:
        raise GeometryError(
            "reconstruction does not say where its slices lie",
            file=path,
            received=f"{len(detectors)} detectors, SpacingBetweenSlices {spacing:g}, {numbers.size} slice numbers",
            expected="one detector with position and orientation, a distance, and one slice number per frame",
        )
    step = np.cross(orientation[0, :3], orientation[0, 3:]) * spacing
    return [
        replace(
            frame,
            position=tuple((position[0] + (number - 1) * step).tolist()),
            orientation=tuple(orientation[0].tolist()),
        )
        for frame, number in zip(frames, numbers.tolist(), strict=True)
    ]
