"""A case made small enough for a page: one sprite of grey slices, and its label maps, cut to what matters."""

from __future__ import annotations

import base64
import io
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from medunet.errors import GeometryError
from medunet.metrics.arrays import bounding_box

Labels: TypeAlias = npt.NDArray[np.uint8]

MARGIN_MM = 25.0
"""Surroundings of the labels that are kept, so that one sees where in the body one is."""

MARGIN_SHARE = 0.25
"""The same as a part of the labels' box; the larger of the two counts."""

CROP_GAIN = 0.7
"""The image is cut only where that saves this part of its voxels or more; else the whole one is the better picture."""

MAX_VOXELS = 2_000_000
"""Voxels of an image after shrinking, which a phone still decodes in a moment."""

MAX_LABEL_VOXELS = 5_000_000
"""Voxels of each label map after shrinking; they take little of the page, but memory."""

QUALITIES = (90, 75, 60, 42)
"""Qualities of WebP from the best; `MIDDLE` is tried first, and a coarser grid where even the last takes too much."""

MIDDLE = 60

BYTES_PER_VOXEL = 0.12
"""What a voxel of an image takes at the middle quality, from which the first size is guessed."""

LABEL_SHARE = 0.3
"""Part of the room that the label maps may take, so that their contours are finer than the image where it is large."""

COARSER = 0.7
MAX_TRIES = 8
MAX_EDGE = 16_000
"""Pixels along an edge of the sprite; WebP ends at 16,383."""

WINDOW_PERCENTILES = (0.5, 99.5)
BASE64 = 4 / 3


@dataclass(frozen=True)
class Stack:
    """One case as the page's viewer reads it.

    Axes are those of a picture on a light box: slices from head to feet, rows from front to back, columns from the
    patient's right to left. An image in the plane is one slice.

    Args:
        shape: (slices, rows, columns) of the label maps.
        spacing_mm: distances along them.
        image: WebP of all slices, `across` in a row.
        image_shape: (slices, rows, columns) of the image, which covers the same box.
        across: slices in a row of the sprite.
        labels: zlib of uint8 maps one after the other: reference, then each prediction, in the numbers of
            :class:`medunet.reports.ClassCodes`.
        maps: how many there are.
        is_placed: whether the directions in the patient are known.
        is_cut: whether only the surroundings of the labels are kept.
        is_coarser: whether the grid is coarser than the image's.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    image: bytes
    image_shape: tuple[int, int, int]
    across: int
    labels: bytes
    maps: int
    is_placed: bool
    is_cut: bool
    is_coarser: bool

    @property
    def page_bytes(self) -> int:
        """Bytes that it takes in a page."""
        return math.ceil((len(self.image) + len(self.labels)) * BASE64)

    def document(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "shape": self.shape,
            "spacing": [float(f"{value:.5g}") for value in self.spacing_mm],
            "imageShape": self.image_shape,
            "image": base64.b64encode(self.image).decode("ascii"),
            "across": self.across,
            "labels": base64.b64encode(self.labels).decode("ascii"),
            "maps": self.maps,
            "placed": self.is_placed,
            "cut": self.is_cut,
            "coarser": self.is_coarser,
        }


def pack_case(
    image: npt.ArrayLike,
    maps: Sequence[Labels],
    *,
    affine: npt.ArrayLike | None = None,
    spacing_mm: Sequence[float] | None = None,
    max_bytes: int = 400_000,
) -> Stack:
    """Make a case small.

    Args:
        image: `(C, *spatial)`; the first channel is shown, of a picture with three all as colours.
        maps: reference, then predictions, `(*spatial)` in the numbers of :class:`medunet.reports.ClassCodes`.
        affine: 4x4 from voxels to RAS mm; None for pictures and stacks of pictures without a place in a patient.
        spacing_mm: along each axis, where there is no affine; 1 by default.
        max_bytes: in a page. A case that cannot be made as small is returned as small as it got.

    Raises:
        GeometryError: a map is not on the image's grid.
    """
    voxels = np.asarray(image, dtype=np.float32)
    for found in maps:
        if np.shape(found) != voxels.shape[1:]:
            raise GeometryError(
                "label map is not on the image's grid", received=np.shape(found), expected=voxels.shape[1:]
            )
    is_colour = affine is None and voxels.ndim == 3 and voxels.shape[0] == 3
    channels = voxels if is_colour else voxels[:1]
    turned, spacing = _as_seen([*channels, *maps], affine, spacing_mm)
    channels, places = np.stack(turned[: len(channels)]), turned[len(channels) :]
    box = _box(places, spacing)
    is_cut = box is not None
    if box is not None:
        within = (slice(None), *box)
        channels, places = channels[within], [found[box] for found in places]
    room = max_bytes / BASE64
    labels, label_shape = _packed_labels(places, spacing, room * LABEL_SHARE)
    content, shape, across = _packed_image(channels, spacing, room - len(labels))
    full = places[0].shape
    z, y, x = (distance * old / new for distance, old, new in zip(spacing, full, label_shape, strict=True))
    return Stack(
        shape=label_shape,
        spacing_mm=(z, y, x),
        image=content,
        image_shape=shape,
        across=across,
        labels=labels,
        maps=len(places),
        is_placed=affine is not None and voxels.ndim == 4,
        is_cut=is_cut,
        is_coarser=not full == shape == label_shape,
    )


def _as_seen(
    arrays: Sequence[npt.NDArray[Any]], affine: npt.ArrayLike | None, spacing_mm: Sequence[float] | None
) -> tuple[list[npt.NDArray[Any]], tuple[float, float, float]]:
    """Arrays `(slices, rows, columns)` as a radiologist looks at them; pictures stay as they are."""
    planar = arrays[0].ndim == 2
    if affine is None:
        given = tuple(spacing_mm or (1.0,) * arrays[0].ndim)
        shown = [array.T[None] if planar else array.T for array in arrays]
        column_mm, row_mm, depth_mm = (*given, 1.0) if planar else given
        return shown, (depth_mm, row_mm, column_mm)
    matrix = np.asarray(affine, dtype=float)
    if planar:
        arrays = [array[:, :, None] for array in arrays]
    turn = nib.orientations.io_orientation(matrix)
    sizes = nib.affines.voxel_sizes(matrix)
    if planar:  # the slice's own axis is the one that it is not in
        depth = int(turn[2, 0])
        order = [depth, *[axis for axis in (2, 1, 0) if axis != depth]]
    else:
        order = [2, 1, 0]
    by_axis = {int(turn[axis, 0]): float(sizes[axis]) for axis in range(3)}
    # RAS indices grow to the right, front and head; a picture begins at the patient's right, front and head
    seen = [nib.orientations.apply_orientation(array, turn).transpose(order)[::-1, ::-1, ::-1] for array in arrays]
    z, y, x = (by_axis[axis] for axis in order)
    return seen, (z, y, x)


def _box(places: Sequence[Labels], spacing: tuple[float, ...]) -> tuple[slice, ...] | None:
    """The surroundings of the labels; None where the whole image is hardly larger, or has no label."""
    whole = places[0].shape
    box = bounding_box(np.any([found != 0 for found in places], axis=0))
    if box is None or whole[0] == 1:
        return None
    wide = []
    for edge, size, distance in zip(box, whole, spacing, strict=True):
        margin = math.ceil(max(MARGIN_MM / distance, MARGIN_SHARE * (edge.stop - edge.start)))
        wide.append(slice(max(0, edge.start - margin), min(size, edge.stop + margin)))
    kept = math.prod(edge.stop - edge.start for edge in wide)
    return tuple(wide) if kept < CROP_GAIN * math.prod(whole) else None


def _packed_labels(
    places: Sequence[Labels], spacing: Sequence[float], room: float
) -> tuple[bytes, tuple[int, int, int]]:
    wanted = float(MAX_LABEL_VOXELS)
    for _ in range(MAX_TRIES):
        shape = _coarser_shape(places[0].shape, spacing, wanted)
        labels = zlib.compress(np.stack([_nearest(found, shape) for found in places]).tobytes(), 9)
        if len(labels) <= room:
            break
        wanted = COARSER * min(wanted, math.prod(shape))
    return labels, shape


def _packed_image(
    channels: npt.NDArray[np.float32], spacing: Sequence[float], room: float
) -> tuple[bytes, tuple[int, int, int], int]:
    """WebP, its grid, and how many slices lie side by side."""
    low, high = _window(channels)
    full = channels.shape[1:]
    wanted = min(MAX_VOXELS, room / BYTES_PER_VOXEL)
    for _ in range(MAX_TRIES):
        shape = _coarser_shape(full, spacing, wanted)
        channels = _average(channels, shape)
        scaled = (np.nan_to_num(channels, nan=low) - low) / (high - low) * 255
        sprite, across = _sprite(np.round(np.clip(scaled, 0, 255)).astype(np.uint8))
        content = _webp(sprite, MIDDLE)
        fits = len(content) <= room
        for quality in QUALITIES:
            if (quality > MIDDLE) == fits and quality != MIDDLE:
                other = _webp(sprite, quality)
                if len(other) <= room:
                    return other, shape, across
                content = content if fits else other
        if fits:
            break
        wanted = math.prod(shape) * max(0.3, 0.9 * room / len(content))
    return content, shape, across


def _window(channels: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Intensities that become black and white."""
    step = max(1, math.ceil((channels.size / 500_000) ** (1 / 3)))
    sample = channels[:, ::step, ::step, ::step] if channels.shape[1] > 1 else channels[:, :, ::2, ::2]
    sample = sample[np.isfinite(sample)]
    low, high = np.percentile(sample, WINDOW_PERCENTILES) if sample.size else (0.0, 1.0)
    if low == high and sample.size:
        low, high = float(sample.min()), float(sample.max())
    return float(low), float(high if high > low else low + 1)


def _coarser_shape(shape: Sequence[int], spacing: Sequence[float], voxels: float) -> tuple[int, int, int]:
    """The grid of at most this many voxels; the finest axes lose first, until all are alike."""
    if math.prod(shape) > voxels:
        lengths = [size * distance for size, distance in zip(shape, spacing, strict=True)]
        low, high = min(spacing), max(lengths)
        for _ in range(40):
            middle = math.sqrt(low * high)
            if math.prod(_sizes(shape, spacing, middle)) > voxels:
                low = middle
            else:
                high = middle
        shape = _sizes(shape, spacing, high)
    z, y, x = shape
    return z, y, x


def _sizes(shape: Sequence[int], spacing: Sequence[float], distance: float) -> tuple[int, ...]:
    return tuple(max(1, round(size * own / max(own, distance))) for size, own in zip(shape, spacing, strict=True))


def _nearest(found: Labels, shape: tuple[int, ...]) -> Labels:
    if found.shape == shape:
        return found
    index = [((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(found.shape, shape, strict=True)]
    return found[np.ix_(*index)]


def _average(channels: npt.NDArray[np.float32], shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    if channels.shape[1:] == shape:
        return channels
    return torch.nn.functional.adaptive_avg_pool3d(torch.from_numpy(np.ascontiguousarray(channels)), shape).numpy()


def _sprite(grey: npt.NDArray[np.uint8]) -> tuple[Image.Image, int]:
    """All slices on one sheet that is about square, and how many lie side by side."""
    count, slices, rows, columns = grey.shape
    across = max(1, min(slices, math.ceil(math.sqrt(slices * rows / columns)), MAX_EDGE // columns))
    down = math.ceil(slices / across)
    sheet = np.zeros((count, down * rows, across * columns), np.uint8)
    for place in range(slices):
        top, left = place // across * rows, place % across * columns
        sheet[:, top : top + rows, left : left + columns] = grey[:, place]
    return Image.fromarray(sheet[0] if count == 1 else np.moveaxis(sheet, 0, -1).copy()), across


def _webp(sheet: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    sheet.save(buffer, format="WEBP", quality=quality, method=4)
    return buffer.getvalue()
