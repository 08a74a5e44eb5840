"""What was read: kept beside the voxels, without patient identity."""

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
    """

    path: Path
    format: str
    geometry: Geometry
    channels: int = 1
    dtype: str = "float32"
    warnings: tuple[str, ...] = ()
