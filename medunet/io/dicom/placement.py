"""Slices of files that do not place them frame by frame: Siemens mosaics and nuclear medicine.

A mosaic is one image with the slices of a volume as tiles::

    0 1 2      The header's position is that of a slice as large as the whole mosaic with the same centre, so the first
    3 4 5      tile is offset by half the difference in size. Tile k is k slice distances from the first along the
    6 . .      CSA header's normal.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medunet.errors import DataError, GeometryError

from .grid import numbers_of
from .header import Frame
from .references import read_dataset
from .tags import typed_errors

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # nibabel calls all of its DICOM readers experimental
    from nibabel.nicom import csareader

_MAX_TILES = 1024  # Siemens stores at most some hundred
_NORMAL_TOLERANCE = 1e-3  # of the cosine between the normal of the CSA header and that of the image
_RECONSTRUCTED = ("RECON TOMO", "RECON GATED TOMO")  # ImageType's third value if frames are slices, not projections


def split_mosaic(mosaic: Frame) -> list[Frame]:
    """Return the slices of a mosaic, placed by its CSA header.

    A missing or mismatched header is a DataError; a header without distance or normal is a GeometryError.
    """
    file = mosaic.file
    count, normal, distance = _csa_geometry(mosaic)
    tiles = math.ceil(math.sqrt(count))
    if file.n_frames != 1 or file.rows % tiles or file.columns % tiles:
        received = f"{file.n_frames} frames of {file.columns} x {file.rows} pixels, {count} slices"
        raise DataError("mosaic cannot be divided into its tiles", file=file.path, received=received)
    rows, columns = file.rows // tiles, file.columns // tiles
    image = replace(file, rows=rows, columns=columns, tiles=tiles)
    axes = np.reshape(numbers_of(mosaic, "orientation"), (2, 3))
    row_mm, column_mm = numbers_of(mosaic, "spacing")  # PixelSpacing counts rows first
    first = np.array(numbers_of(mosaic, "position"))
    first = first + axes[0] * column_mm * (file.columns - columns) / 2 + axes[1] * row_mm * (file.rows - rows) / 2
    if abs(abs(float(np.dot(np.cross(*axes), normal))) - 1) > _NORMAL_TOLERANCE:
        cause, expected = "SliceNormalVector must be normal to the mosaic's rows and columns", np.cross(*axes).tolist()
        raise GeometryError(cause, file=file.path, received=normal.tolist(), expected=expected)
    positions = [tuple((first + k * distance * normal).tolist()) for k in range(count)]
    return [replace(mosaic, file=image, index=k, position=position) for k, position in enumerate(positions)]


def _csa_geometry(mosaic: Frame) -> tuple[int, np.ndarray, float]:
    """Return the number of slices, their normal and their spacing."""
    path = mosaic.file.path
    header = read_dataset(path, stop_before_pixels=True)
    with typed_errors("damaged header of a mosaic", path):
        csa = csareader.get_csa_header(header)
        count = csareader.get_n_mosaic(csa) if csa else None
        normal = csareader.get_slice_normal(csa) if csa else None
        distance = float(header.get("SpacingBetweenSlices") or 0)
    if not count or normal is None or not 1 <= count <= _MAX_TILES or not np.isfinite(normal).all():
        remedy = "export the series with its private attributes, or as single slices"
        raise DataError("mosaic has no CSA header that places its slices", file=path, remedy=remedy)
    if not 0 < distance < math.inf:
        raise GeometryError("mosaic has no SpacingBetweenSlices", file=path, received=distance)
    return int(count), np.asarray(normal, dtype=np.float64), distance


def place_slices(frames: Sequence[Frame]) -> list[Frame]:
    """Return the slices of a nuclear medicine reconstruction, placed by its detector (PS3.3 C.8.4).

    Slice k is k SpacingBetweenSlices from the detector's position along the normal; its sign is the direction. Frames
    of other images are returned as they are. A reconstruction without slice positions is a GeometryError.
    """
    path = frames[0].file.path
    header = read_dataset(path, stop_before_pixels=True)
    with typed_errors("damaged attributes of a nuclear medicine image", path):
        if len(header.get("ImageType") or ()) < 3 or header.ImageType[2] not in _RECONSTRUCTED:
            return list(frames)
        detectors = list(header.get("DetectorInformationSequence") or ())
        position, orientation = (
            np.array([detector.get(name) or () for detector in detectors], dtype=np.float64)
            for name in ("ImagePositionPatient", "ImageOrientationPatient")
        )
        spacing = float(header.get("SpacingBetweenSlices") or 0)
        numbers = np.atleast_1d(np.array(header.get("SliceVector") or range(1, len(frames) + 1), dtype=np.int64))
    shapes = position.shape, orientation.shape, numbers.shape
    is_finite = np.isfinite(position).all() and np.isfinite(orientation).all() and math.isfinite(spacing)
    if shapes != ((1, 3), (1, 6), (len(frames),)) or not is_finite or not spacing:
        raise GeometryError(
            "reconstruction lacks the positions of its slices",
            file=path,
            received=f"{len(detectors)} detectors, SpacingBetweenSlices {spacing:g}, {numbers.size} slice numbers",
            expected="one detector with position and orientation, a distance, and one slice number per frame",
        )
    step = np.cross(orientation[0, :3], orientation[0, 3:]) * spacing
    axes = tuple(orientation[0].tolist())
    return [
        replace(frame, position=tuple((position[0] + (number - 1) * step).tolist()), orientation=axes)
        for frame, number in zip(frames, numbers.tolist(), strict=True)
    ]
