"""What was read: stored beside the voxels, without patient identity."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from medunet.geometry import Geometry

PICTURE_FORMATS = ("png", "bmp", "jpeg", "tiff", "dicom-picture")  # formats without a placement in a patient


class SourceFrame(NamedTuple):
    """One DICOM slice that was read: its file, and its frame in that file, counted from 0."""

    file: Path
    number: int


@dataclass(frozen=True)
class ReadRecord:
    """What a reader found in a file or folder, without a name, identifier, date, institution or description.

    The hash of the SeriesInstanceUID identifies two readings of one series, but does not find the series in an archive.

    Args:
        path: the caller's file or folder.
        format: 'nifti', 'dicom', 'dicom-picture' (without a place in a patient), 'tiff', 'png', ...
        geometry: grid in RAS mm; spatial axes only.
        channels: number of channels.
        dtype: numpy name of the type in the file.
        warnings: what was unusual but could be read.
        files: number of files that the voxels came from.
        modality: DICOM's code of two letters or more, such as 'CT'; '' for other formats.
        series: first 12 hexadecimal digits of the SHA-256 of the SeriesInstanceUID; '' for other formats.
        frames: the DICOM slices that were read, in the order of the volume's slices; empty for other formats, and for
            a series that was resampled.
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

    def is_on_grid_of(self, other: "ReadRecord") -> bool:
        """Return whether two images have the same grid. If one of them is not placed, only the shapes are compared."""
        if self.is_placed and other.is_placed:
            return self.geometry.is_close(other.geometry)
        return self.geometry.shape == other.geometry.shape

    @property
    def is_single_slice(self) -> bool:
        """Whether it is a volume ``(x, y, 1)``, which `spatial_dims=2` reads as a 2D image."""
        return len(self.geometry.shape) == 3 and self.geometry.shape[2] == 1 and self.is_placed
