"""What kind of intensities a channel holds: Hounsfield units, which are absolute, or grey values, which are not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .measure import CaseMeasure

Kind = Literal["CT", "MR", "colour", "grey"]

AIR_HU = -200.0
"""An image of whole numbers that goes below this is taken for CT: air is -1000, and MR has no negative values."""

LOWEST_HU = -4096.0
"""Nothing in a CT image, padding included, lies below the 12 bits that scanners store."""

SHARE_OF_CASES = 0.9
"""Part of the cases that must look like CT; some may be cropped to soft tissue."""

_CT_WORDS = {"ct", "cbct", "hu", "hounsfield"}
_MR_WORDS = {"mr", "mri", "t1", "t2", "t1w", "t2w", "t1c", "t1ce", "t1gd", "flair", "adc", "dwi", "pd", "swi", "tof"}
_OTHER_WORDS = {"pet", "suv", "spect", "us", "ultrasound", "oct", "xray", "dx", "cr", "em"}
_COLOUR_WORDS = {"r", "g", "b", "red", "green", "blue", "rgb"}


@dataclass(frozen=True)
class Modality:
    """What a channel holds.

    Args:
        kind: 'CT' is normalised by the same numbers in all images, everything else image by image.
        reason: how it was decided.
    """

    kind: Kind
    reason: str


def guess_modality(channel: str, index: int, cases: Sequence[CaseMeasure], *, spatial_dims: int) -> Modality:
    """Decide by DICOM's modality, by the channel's name, or by the values, in this order.

    Args:
        channel: its name.
        index: its number.
        cases: measured.
        spatial_dims: 2 or 3.
    """
    n_channels = max((len(case.channels) for case in cases), default=1)
    # the record of several channels speaks of the first series only
    codes = {case.modality for case in cases if case.modality} if n_channels == 1 else set()
    if codes == {"CT"} and all(case.modality for case in cases):
        return Modality("CT", "the DICOM headers say CT")
    if codes:
        return Modality("MR" if codes == {"MR"} else "grey", f"the DICOM headers say {', '.join(sorted(codes))}")
    words = set(re.findall(r"[a-z]+\d*[a-z]*", channel.lower().replace("_", " ")))
    if words & _CT_WORDS:
        return Modality("CT", f"the channel is called '{channel}'")
    if words & _MR_WORDS:
        return Modality("MR", f"the channel is called '{channel}'")
    if words & _OTHER_WORDS:
        return Modality("grey", f"the channel is called '{channel}'")
    if spatial_dims == 2:
        colour = n_channels == 3 or bool(words & _COLOUR_WORDS)
        return Modality("colour" if colour else "grey", f"images in the plane with {n_channels} channels")
    lowest = np.array([case.channels[index].minimum for case in cases if index < len(case.channels)])
    whole = np.array([case.whole_numbers for case in cases if index < len(case.channels)])
    looks = whole & (lowest <= AIR_HU) & (lowest >= LOWEST_HU)
    if len(looks) and looks.mean() >= SHARE_OF_CASES:
        reason = f"whole numbers down to {np.median(lowest):g} (median), as Hounsfield units have"
        return Modality("CT", reason)
    return Modality("grey", f"neither named nor like Hounsfield units (smallest value {np.median(lowest):g})")
