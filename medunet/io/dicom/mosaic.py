"""Siemens mosaics: one image that holds the slices of a volume as tiles.

::

    tiles of 7 slices    0 1 2      The header's position is that of a slice as large as the whole mosaic, around the
                         3 4 5      same centre: the first tile begins half of the difference further.
                         6 . .      Tile k lies k slice distances from the first along the CSA header's normal.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Literal

import numpy as np

from medunet.errors import DataError, GeometryError

from .header import Frame
from .references import read_dataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # nibabel calls all of its DICOM readers experimental
    from nibabel.nicom import csareader

_MAX_TILES = 1024
"""Tiles of one mosaic; Siemens stores at most some hundred."""


def split_mosaic(mosaic: Frame) -> list[Frame]:
    """Return the slices of a mosaic, placed as its CSA header says.

    Raises:
        DataError: no CSA header, or one that does not fit the image.
        GeometryError: no distance between slices, or a normal that is not the slices' normal.
    """
    file = mosaic.file
    count, normal, distance = _csa_geometry(mosaic)
    tiles = math.ceil(math.sqrt(count))
    if file.n_frames != 1 or file.rows % tiles or file.columns % tiles:
        raise DataError(
            "mosaic cannot be divided into its tiles",
            file=file.path,
            received=f"{file.n_frames} frames of {file.columns} x {file.rows} pixels, {count} slices",
        )
    rows, columns = file.rows // tiles, file.columns // tiles
    image = replace(file, rows=rows, columns=columns, tiles=tiles)
    axes = _numbers(mosaic, "orientation", 6).reshape(2, 3)
    row_mm, column_mm = _numbers(mosaic, "spacing", 2)  # PixelSpacing counts rows first
    first = _numbers(mosaic, "position", 3)
    first = first + axes[0] * column_mm * (file.columns - columns) / 2 + axes[1] * row_mm * (file.rows - rows) / 2
    if abs(abs(float(np.dot(np.cross(*axes), normal))) - 1) > _NORMAL_TOLERANCE:
        raise GeometryError(
            "SliceNormalVector is not the normal of the mosaic's rows and columns",
            file=file.path,
            received=normal.tolist(),
            expected=np.cross(*axes).tolist(),
        )
    return [
        replace(mosaic, file=image, index=k, position=tuple((first + k * distance * normal).tolist()))
        for k in range(count)
    ]


_NORMAL_TOLERANCE = 1e-3
"""Largest difference of a cosine from 1 between the normal of the CSA header and that of the image."""


def _numbers(mosaic: Frame, name: Literal["position", "orientation", "spacing"], length: int) -> np.ndarray:
    values = np.array(getattr(mosaic, name) or (), dtype=np.float64)
    if values.shape != (length,) or not np.isfinite(values).all():
        raise GeometryError(f"mosaic has no {name}", file=mosaic.file.path, expected=f"{length} numbers")
    return values


def _csa_geometry(mosaic: Frame) -> tuple[int, np.ndarray, float]:
    """Return the number of slices, their normal and their distance."""
    path = mosaic.file.path
    header = read_dataset(path, stop_before_pixels=True)
    try:
        found = csareader.get_csa_header(header)
        count = csareader.get_n_mosaic(found) if found else None
        normal = csareader.get_slice_normal(found) if found else None
        distance = float(header.get("SpacingBetweenSlices") or 0)
    except Exception as error:  # nibabel and pydicom raise many kinds for damaged headers
        raise DataError("damaged header of a mosaic", file=path, remedy="export it again") from error
    if not count or normal is None or not 1 <= count <= _MAX_TILES or not np.isfinite(normal).all():
        raise DataError(
            "mosaic has no CSA header that says where its slices lie",
            file=path,
            remedy="export the series with its private attributes, or as single slices",
        )
    if not 0 < distance < math.inf:
        raise GeometryError(
            "mosaic has no SpacingBetweenSlices", file=path, received=distance, remedy="export it as single slices"
        )
    return int(count), np.asarray(normal, dtype=np.float64), distance
