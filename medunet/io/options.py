"""How to read: what a user may decide where a file leaves a choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medunet.errors import ConfigError

Form = Literal["agree", "sform", "qform", "pixdim"]
"""Which of a NIfTI header's placements to use: 'agree' refuses when sform and qform contradict each other or both are
missing; 'pixdim' uses the spacing only."""

Uneven = Literal["refuse", "resample"]
"""What to do with DICOM slices at uneven distances: refuse them, or interpolate linearly between neighbours. A missing
slice is refused in any case."""

Tilt = Literal["keep", "resample"]
"""What to do with a tilted gantry: keep the shear in the affine, or resample to a grid with right angles."""

_CHOICES = {
    "form": ("agree", "sform", "qform", "pixdim"),
    "uneven": ("refuse", "resample"),
    "tilt": ("keep", "resample"),
    "spatial_dims": (None, 2, 3),
}


@dataclass(frozen=True)
class ReadOptions:
    """The keyword arguments of `medunet.io.read_volume`.

    Args:
        channels: number of channels that a NIfTI file with a fourth axis must have; without it such files are refused.
        form: NIfTI: which placement of the header to use.
        fill_value: NIfTI: replaces NaN and infinite voxels, which are refused otherwise.
        series_uid: DICOM: SeriesInstanceUID to read where there are several series.
        uneven: DICOM: what to do with slices at uneven distances.
        tilt: DICOM: what to do with a tilted gantry.
        phase: DICOM: which phase of a sequence in time, counted from 0; without it such a series is refused.
        spatial_dims: 3 refuses an image in the plane, and a volume of one slice; 2 refuses volumes, and reads one slice
            as an image in the plane. None takes what is there, but refuses a DICOM folder with a single slice.

    Raises:
        ConfigError: an unknown choice.
    """

    channels: int | None = None
    form: Form = "agree"
    fill_value: float | None = None
    series_uid: str | None = None
    uneven: Uneven = "refuse"
    tilt: Tilt = "keep"
    phase: int | None = None
    spatial_dims: int | None = None

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"unknown {name}", received=value, expected=", ".join(map(str, known)))


DEFAULTS = ReadOptions()
"""Nothing decided: whatever leaves a choice is refused."""
