"""Values of DICOM frames: rescaled slice by slice, with padding that stays within the image's values."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medunet.errors import DataError
from medunet.io.layout import transpose
from medunet.io.limits import require_memory

from .codec import Stored, frame_decoder, is_plain
from .header import Frame

SLAB = 64
"""Slices rescaled and transposed together. Fewer visit the cache lines of the volume, whose last axis counts slices,
many times; more take memory and save no time."""

PADDING_MARGIN = 0.01
"""Padding further from the other values than this part of their range is clamped to their lowest. Padding that touches
the range (0 beside the 1 of an MR background) is an ordinary background and stays."""

MEASURED = ("CT", "MR", "PT", "NM")
"""Modalities whose values are measurements, so that MONOCHROME1 only concerns the display. Elsewhere (radiographs)
values are brightness, and MONOCHROME1 inverts them."""

RESCALE_REQUIRED = ("CT", "PT")  # modalities whose slope and intercept the standard requires in every classic image


def check_pixels(frames: Sequence[Frame], *, colour: bool) -> list[str]:
    """Reject frames of one series whose pixels cannot be used (DataError); return warnings on what is unusual."""
    first = frames[0].file
    for frame in frames:
        file = frame.file
        is_grey = file.samples == 1 and file.photometric in ("MONOCHROME1", "MONOCHROME2")
        if not is_grey and not (colour and file.is_colour):
            raise DataError(
                "not a grey image" if file.is_colour else "pixels are neither grey nor colour",
                file=file.path,
                received=f"{file.photometric}, {file.samples} samples per pixel",
                expected="MONOCHROME1 or MONOCHROME2, for a 2D image also colour",
            )
        kind, wanted = f"{file.modality} {file.photometric}", f"{first.modality} {first.photometric}"
        if kind != wanted:
            raise DataError("slices have different kinds of pixels", file=file.path, received=kind, expected=wanted)
        if file.high_bit != file.bits_stored - 1:
            received = f"high bit {file.high_bit} of {file.bits_stored}"
            raise DataError("pixels have unusual bits", file=file.path, received=received)
        if frame.slope == 0 or not np.isfinite(frame.slope or 1.0):
            raise DataError("impossible RescaleSlope", file=file.path, received=frame.slope)
        if not np.isfinite(frame.intercept or 0.0):
            raise DataError("impossible RescaleIntercept", file=file.path, received=frame.intercept)
        if file.lut is not None and (frame.slope or 1.0, frame.intercept or 0.0) != (1.0, 0.0):
            received = f"slope {frame.slope}, intercept {frame.intercept}"
            cause = "ModalityLUTSequence and rescale slope contradict each other"
            raise DataError(cause, file=file.path, received=received)
    warnings = []
    bare = [frame for frame in frames if frame.slope is None and frame.file.lut is None]
    if bare and (first.modality in RESCALE_REQUIRED or len(bare) < len(frames)):
        used = "the intercept alone is applied" if any(f.intercept for f in bare) else "stored values are used"
        warnings.append(f"{len(bare)} of {len(frames)} slices have no rescale slope: {used}")
    if first.photometric == "MONOCHROME1":
        effect = "kept: they are measurements" if first.modality in MEASURED else "inverted: large is bright"
        warnings.append(f"MONOCHROME1: values {effect}")
    if any(frame.file.is_lossy for frame in frames):
        warnings.append("pixels were once compressed with loss")
    return warnings


def read_voxels(frames: Sequence[Frame]) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Return the volume ``(columns, rows, slices)`` of frames in order, and warnings.

    Pixels that cannot be decoded, or more of them than fit into memory, are a DataError.
    """
    file = frames[0].file
    shape = (file.columns, file.rows, len(frames))
    require_memory(shape, 1, file.path)
    volume = np.empty(shape, dtype=np.float32)
    stored = frame_decoder()
    slab = np.empty((SLAB, file.rows, file.columns), dtype=np.float32)
    masks: dict[int, npt.NDArray[np.uint8]] = {}  # packed padding, by slice
    lowest, highest = np.inf, -np.inf  # of all other voxels
    for start in range(0, len(frames), SLAB):
        part = frames[start : start + SLAB]
        for k, frame in enumerate(part):
            mask = _rescale(frame, stored(frame), slab[k])
            values = slab[k]
            if mask is not None:
                masks[start + k] = np.packbits(mask.T)
                values = values[~mask]
            if values.size:
                lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
        transpose(slab[: len(part)], dtype=np.float32, out=volume[..., start : start + len(part)])
    if lowest > highest:
        raise DataError("every pixel is padding", file=file.path)
    if not np.isfinite([lowest, highest]).all():
        raise DataError("rescaled pixels must be finite", file=file.path)
    return volume, _clamp_padding(volume, masks, lowest, highest)


def _rescale(frame: Frame, stored: Stored, target: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_] | None:
    """Write one slice's values to `target`; return the mask of its padding, if any."""
    file = frame.file
    mask = None
    if file.padding is not None:
        low, high = file.padding
        mask = stored == low if low == high else (stored >= low) & (stored <= high)
        mask = mask if mask.any() else None
    unused = file.bits_allocated - file.bits_stored
    if unused and is_plain(file):  # old files have overlays there; decoders have cleared them
        stored = (stored.astype(stored.dtype.newbyteorder("=")) << unused) >> unused
        if mask is not None and file.padding is not None:
            stored[mask] = np.array(file.padding[0]).astype(stored.dtype)
    if file.lut is not None:
        stored = file.lut.apply(stored)
    if file.photometric == "MONOCHROME1" and file.modality not in MEASURED:
        ends = -1 if file.is_signed and file.lut is None else (1 << (file.lut or file).bits_stored) - 1
        stored = ends - stored.astype(np.int64)
    slope, intercept = frame.slope or 1.0, frame.intercept or 0.0
    if slope == 1 and intercept == round(intercept) and file.bits_allocated < 32:
        np.add(stored, np.float32(intercept), out=target, dtype=np.float32, casting="unsafe")
    else:
        target[...] = stored * np.float64(slope) + intercept  # in float64, then rounded once
    return mask


def _clamp_padding(
    volume: npt.NDArray[np.float32], masks: dict[int, npt.NDArray[np.uint8]], lowest: float, highest: float
) -> list[str]:
    """Set padding far outside the other values, on either side, to the lowest of them; return a warning."""
    margin = PADDING_MARGIN * (highest - lowest)
    count, clamped = 0, set()
    for index, packed in masks.items():
        plane = volume[..., index]
        mask = np.unpackbits(packed, count=plane.size).astype(bool).reshape(plane.shape)
        values = plane[mask]
        far = values[(values < lowest - margin) | (values > highest + margin)]
        if far.size:
            clamped.update(np.unique(far).tolist())
            count += far.size
            plane[mask] = lowest
    named = ", ".join(f"{value:g}" for value in sorted(clamped)[:3])
    return [f"{count} padding voxels ({named}) clamped to {lowest:g}"] if count else []
