"""What was read: kept beside the voxels, without patient identity.

A record never contains a name, a patient's or study's identifier, a date, an institution or a description. `path` is
what the caller gave. Of a DICOM series it keeps the modality, the files that were read, and a hash of the
SeriesInstanceUID: two readings of one series are recognised by it, but the series cannot be looked up in an archive.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from medunet.geometry import Geometry

PICTURE_FORMATS = ("png", "bmp", "jpeg", "tiff", "dicom-picture")
"""Formats without a placement in a patient."""


class SourceFrame(NamedTuple):
    """One DICOM slice that was read.

    Args:
        file: its file.
        number: of the frame in the file, counted from 0.
    """

    file: Path
    number: int


def encode_frames(frames: Sequence[SourceFrame]) -> str:
    """Return frames as text: unlike a list, text passes through the collation of batches of any size."""
    return json.dumps([[str(frame.file), frame.number] for frame in frames])


def decode_frames(text: str) -> tuple[SourceFrame, ...]:
    """Return the frames of `encode_frames`.

    Example:
        >>> decode_frames(encode_frames([SourceFrame(Path("ct/7.dcm"), 0)]))[0].number
        0
    """
    return tuple(SourceFrame(Path(file), number) for file, number in json.loads(text))


@dataclass(frozen=True)
class ReadRecord:
    """What a reader met in a file or folder.

    Args:
        path: the file or folder that was asked for.
        format: 'nifti', 'dicom', 'dicom-picture' (without a place in a patient), 'tiff', 'png', ...
        geometry: grid in RAS mm; spatial axes only.
        channels: number of channels.
        dtype: numpy name of the type in the file.
        warnings: what was unusual but could be read.
        files: number of files that the voxels came from.
        modality: DICOM's code of two letters or more, such as 'CT'; '' for other formats.
        series: first 12 hexadecimal digits of the SHA-256 of the SeriesInstanceUID; '' for other formats.
        frames: the DICOM slices that were read, in the order of the volume's slices; empty for other formats, and for
            a series that was resampled, whose volume has other slices than the series.
    """

    path: Path
    format: str
    geometry: Geometry
    channels: int = 1
    dtype: str = "float32"
    warnings: tuple[str, ...] = ()
    files: int = 1
    modality: str = ""
    series: str = ""
    frames: tuple[SourceFrame, ...] = field(default=(), repr=False)

    @property
    def is_placed(self) -> bool:
        """Whether the format places images in a patient; pictures have no placement."""
        return self.format not in PICTURE_FORMATS

    def is_on_grid_of(self, other: ReadRecord) -> bool:
        """Whether two images have the same grid. If one of them is not placed, only the shapes are compared."""
        if self.is_placed and other.is_placed:
            return self.geometry.is_close(other.geometry)
        return self.geometry.shape == other.geometry.shape

    @property
    def is_single_slice(self) -> bool:
        """Whether it is a volume ``(x, y, 1)``, which `spatial_dims=2` reads as an image in the plane."""
        return len(self.geometry.shape) == 3 and self.geometry.shape[2] == 1 and self.is_placed
