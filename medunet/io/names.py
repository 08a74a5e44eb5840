"""Names of cases and results, which follow from their input files."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

_DOUBLE_SUFFIXES = (".nii.gz", ".nii.bz2", ".seg.nrrd", ".ome.tif", ".ome.tiff")
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}$")
_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")  # nnU-Net names the channels of `case` `case_0000`, ...


def split_suffix(name: str) -> tuple[str, str]:
    """Return stem and suffix of a file name; some suffixes have two parts.

    Examples:
        >>> split_suffix("a.b.nii.gz"), split_suffix("em_16.png"), split_suffix("1.2.840")
        (('a.b', '.nii.gz'), ('em_16', '.png'), ('1.2.840', ''))
    """
    for double in _DOUBLE_SUFFIXES:
        if name.lower().endswith(double) and len(name) > len(double):
            return name[: -len(double)], name[-len(double) :]
    match = _SUFFIX.search(name)
    return (name[: match.start()], match.group()) if match and match.start() else (name, "")


def split_channel(stem: str) -> tuple[str, int | None]:
    """Return case and channel of a stem in nnU-Net's style, or the stem and None.

    Examples:
        >>> split_channel("liver_7_0001"), split_channel("liver_7")
        (('liver_7', 1), ('liver_7', None))
    """
    match = _CHANNEL.match(stem)
    return (match["case"], int(match["channel"])) if match else (stem, None)


def output_name(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], suffix: str = "") -> str:
    """Return the name of a case: the input's without its suffix, plus `suffix`.

    The `_0000` of nnU-Net's channels is dropped for a list of files, and for a single file without an `_0001` beside it
    (else it is one frame of a sequence, and the number is part of its name).

    Examples:
        >>> output_name("in/hippocampus_001.nii.gz", ".nii.gz")
        'hippocampus_001.nii.gz'
        >>> output_name(["in/brats_7_0000.nii.gz", "in/brats_7_0001.nii.gz"])
        'brats_7'
    """
    is_single = isinstance(path, str | os.PathLike)
    first = Path(path) if isinstance(path, str | os.PathLike) else Path(path[0])
    stem, ending = (first.name, "") if first.is_dir() else split_suffix(first.name)
    case, channel = split_channel(stem)
    if channel == 0 and (not is_single or not first.with_name(f"{case}_0001{ending}").exists()):
        stem = case
    return stem + suffix
