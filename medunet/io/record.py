"""What was read: kept beside the voxels, without patient identity.

A record never holds a name, a patient's or study's identifier, a date, an institution or a description. `path` is what
the caller gave. Of a DICOM series it keeps the modality and a hash of the SeriesInstanceUID, by which two readings of
one series are recognised while nobody finds the series in an archive by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medunet.geometry import Geometry


@dataclass(frozen=True)
class ReadRecord:
    """What a reader met in a file or folder.

    Args:
        path: the file or folder that was asked for.
        format: 'nifti', 'dicom', 'tiff', 'png', ...
        geometry: grid in RAS mm; spatial axes only.
        channels: number of channels.
        dtype: numpy name of the type in the file.
        warnings: what was unusual but could be read.
        files: number of files that the voxels came from.
        modality: DICOM's code of two letters or more, such as 'CT'; '' for other formats.
        series: first 12 hexadecimal digits of the SHA-256 of the SeriesInstanceUID; '' for other formats.
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

    @property
    def is_single_slice(self) -> bool:
        """Whether it is a volume ``(x, y, 1)``, which `spatial_dims=2` reads as an image in the plane."""
        return len(self.geometry.shape) == 3 and self.geometry.shape[2] == 1 and self.format != "tiff"
