"""Which cases are done: results that lie in the output folder already."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from medunet.io import SavePredictiond, output_name
from medunet.io.reader import PathLike
from medunet.io.writer import result_suffix

_DICOM_ENDINGS = {"dicom-seg": ".dcm", "rtstruct": ".dcm"}


def existing_result(
    source: PathLike | Sequence[PathLike], saver: SavePredictiond, *, name: str | None = None
) -> Path | None:
    """The label map that a saver wrote for an image, without reading the image; None where the case is not done.

    A case whose probabilities are wanted and missing is not done, and neither is one that was written in another
    format than the saver's (with the format ``auto``: than one that it may choose for this image).

    Args:
        source: the image, or its channels.
        saver: the last transform of the bundle.
        name: of the case, where it is not its file's.
    """
    first = Path(source if isinstance(source, str | os.PathLike) else source[0])
    own = output_name(source if isinstance(source, str | os.PathLike) else list(source))
    code = None if saver.pseudonyms is None else saver.pseudonyms.code(first)
    stem = (code or name or own) + saver.suffix
    # how many axes an image has is known only after reading it, so both endings count
    endings = {2: result_suffix(first, spatial_dims=2), 3: result_suffix(first, spatial_dims=3)}
    if saver.prob_key is not None:
        wanted = {2: f"{stem}_prob.npy", 3: f"{stem}_prob.nii.gz"}
        endings = {axes: ending for axes, ending in endings.items() if (saver.output_dir / wanted[axes]).is_file()}
    if not endings:
        return None
    if saver.format == "auto":
        candidates = [*endings.values(), ".dcm"]  # a DICOM series becomes a DICOM SEG where it can
    else:
        candidates = [_DICOM_ENDINGS.get(saver.format, f".{saver.format}")]
    paths = (saver.output_dir / (stem + ending) for ending in candidates)
    return next((path for path in paths if path.is_file()), None)
