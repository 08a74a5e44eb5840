"""Options for reading files that can be interpreted in more than one way."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from medunet.errors import ConfigError

Form = Literal["agree", "sform", "qform", "pixdim"]
Uneven = Literal["refuse", "resample"]
Tilt = Literal["keep", "resample"]

# Options that a user chooses. A bundle's configs have ids of these names; the bundle sets the other options itself.
READING_IDS = ("series_uid", "phase", "uneven", "tilt", "form", "fill_value", "skip_unreadable")


@dataclass(frozen=True)
class ReadOptions:
    """The keyword arguments of `medunet.io.read_volume`. The defaults reject every ambiguous file.

    Args:
        channels: number of channels that a NIfTI file with a fourth axis must have; None rejects such files. If it is
            3, a single grey picture (PNG, BMP, JPEG or a 2D TIFF) is read as colour, with a warning.
        form: which placement of a header to use. 'agree' rejects a file whose sform and qform (NIfTI) contradict each
            other, or that has no placement; 'pixdim' uses only the spacing of NIfTI, Analyze, MGH, NRRD and MetaImage.
        fill_value: NIfTI: replaces NaN and infinite voxels; None rejects them.
        series_uid: DICOM: SeriesInstanceUID of the series to read from a folder with several.
        uneven: DICOM: reject slices at uneven distances, or interpolate linearly between neighbours. A missing slice is
            always rejected.
        tilt: DICOM: keep a tilted gantry as shear in the affine, or resample to a grid with right angles.
        phase: DICOM: which volume of a series of several, or which frame without a position, counted from 0; None
            rejects such a series.
        spatial_dims: 3 rejects 2D images and volumes of one slice; 2 rejects volumes and reads a single slice as a 2D
            image. None accepts both, but rejects a DICOM folder with a single slice.
        skip_unreadable: DICOM: leave out files that are zeroed, truncated or unreadable, with a warning; False rejects
            a folder with such a file. A slice that is then missing between others is still rejected.

    Raises:
        ConfigError: an unknown choice, or a value of the wrong type.
    """

    channels: int | None = None
    form: Form = "agree"
    fill_value: float | None = None
    series_uid: str | None = None
    uneven: Uneven = "refuse"
    tilt: Tilt = "keep"
    phase: int | None = None
    spatial_dims: int | None = None
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ConfigError(f"unknown {name}", received=value, expected=", ".join(map(str, known)))
        for name, (kinds, expected) in _TYPES.items():
            value = getattr(self, name)
            is_wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
            if value is not None and is_wrong:
                raise ConfigError(f"{name} must be {expected}", received=repr(value))

    @property
    def chosen(self) -> dict[str, Any]:
        """The user's choices: the values of `READING_IDS` that differ from the defaults."""
        return {name: getattr(self, name) for name in READING_IDS if getattr(self, name) != getattr(DEFAULTS, name)}

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "ReadOptions":
        """Return the reading options that a bundle's config sets (the ids in `READING_IDS`)."""
        return cls(**{name: config[name] for name in READING_IDS if name in config})


_CHOICES = {"form": get_args(Form), "uneven": get_args(Uneven), "tilt": get_args(Tilt), "spatial_dims": (None, 2, 3)}

_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "series_uid": ((str,), "a SeriesInstanceUID"),
    "phase": ((int,), "a whole number"),
    "fill_value": ((int, float), "a number"),
    "skip_unreadable": ((bool,), "true or false"),
}

DEFAULTS = ReadOptions()
