"""Guess the kind of intensities of a channel: Hounsfield units, which are absolute, or relative values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from .measure import CaseMeasure

Kind = Literal["CT", "MR", "colour", "grey"]  # CT is normalised by the same numbers in all images, others per image

AIR_HU = -200.0  # whole numbers below this are CT: air is -1000, and MR has no negative values
LOWEST_HU = -4096.0  # CT values, including padding, have 12 bits
SHARE_OF_CASES = 0.9  # of the cases must look like CT; some may be cropped to soft tissue

_WORDS: dict[Kind, set[str]] = {
    "CT": {"ct", "cbct", "hu", "hounsfield"},
    "MR": {"mr", "mri", "t1", "t2", "t1w", "t2w", "t1c", "t1ce", "t1gd", "flair", "adc", "dwi", "pd", "swi", "tof"},
    "grey": {"pet", "suv", "spect", "us", "ultrasound", "oct", "xray", "dx", "cr", "em"},
}
_COLOUR_WORDS = {"r", "g", "b", "red", "green", "blue", "rgb"}


def guess_modality(channel: str, index: int, cases: Sequence[CaseMeasure], *, spatial_dims: int) -> tuple[Kind, str]:
    """Return the kind of a channel and the reason: DICOM's modality, else the channel's name, else the values."""
    n_channels = max((len(case.channels) for case in cases), default=1)
    # with several channels the record describes only the first series
    codes = {case.modality for case in cases if case.modality} if n_channels == 1 else set()
    if codes == {"CT"} and all(case.modality for case in cases):
        return "CT", "the DICOM headers say CT"
    if codes:
        return "MR" if codes == {"MR"} else "grey", f"the DICOM headers say {', '.join(sorted(codes))}"
    words = set(re.findall(r"[a-z]+\d*[a-z]*", channel.lower().replace("_", " ")))
    for kind, names in _WORDS.items():
        if words & names:
            return kind, f"the channel is called '{channel}'"
    if spatial_dims == 2:
        is_colour = n_channels == 3 or bool(words & _COLOUR_WORDS)
        return "colour" if is_colour else "grey", f"2D images with {n_channels} channels"
    lowest = np.array([case.channels[index].minimum for case in cases if index < len(case.channels)])
    whole = np.array([case.whole_numbers for case in cases if index < len(case.channels)])
    is_like_ct = whole & (lowest <= AIR_HU) & (lowest >= LOWEST_HU)
    if len(is_like_ct) and is_like_ct.mean() >= SHARE_OF_CASES:
        return "CT", f"whole numbers down to {np.median(lowest):g} (median), like Hounsfield units"
    return "grey", f"neither a known name nor values like Hounsfield units (lowest value {np.median(lowest):g})"
