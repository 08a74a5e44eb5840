"""A case in a page: one sprite of grey slices, and its label maps, cropped and reduced to a number of bytes."""

import base64
import io
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from skimage.util import montage

from medunet.errors import GeometryError
from medunet.metrics.arrays import bounding_box

from .classes import Labels
from .view import Array, Spacing, as_bytes, as_seen, window

# surroundings of the labels that a case keeps: in millimetres, or as a part of the labels' box if that is more
MARGIN_MM, MARGIN_SHARE = 25.0, 0.25
CROP_GAIN = 0.7  # an image is cut only to less than this part of its voxels
MAX_VOXELS = 2_000_000  # of an image after shrinking, which a phone still decodes in a moment
MAX_LABEL_VOXELS = 5_000_000  # of each label map after shrinking; they take memory rather than bytes of the page
QUALITIES = (90, 75, 60, 42)  # of WebP, from the best; the grid becomes coarser if none fits
BYTES_PER_VOXEL = 0.12  # of an image at a medium quality, from which the first size is guessed
LABEL_SHARE = 0.3  # of the bytes of a case that the label maps may take
COARSER = 0.7
MAX_TRIES = 8
MAX_EDGE = 16_000  # pixels along an edge of the sprite; WebP ends at 16,383
BASE64 = 4 / 3


@dataclass(frozen=True)
class Stack:
    """One case as the page's viewer reads it, with the axes of :func:`medunet.reports.view.as_seen`."""

    shape: tuple[int, int, int]  # of the label maps: slices, rows, columns
    spacing_mm: Spacing
    image: bytes  # WebP of all slices, `across` in a row
    image_shape: tuple[int, int, int]  # of the image, which covers the same box
    across: int
    labels: bytes  # zlib of uint8 maps one after the other: reference, then each prediction, as of ClassCodes
    maps: int
    is_placed: bool  # whether the directions in the patient are known
    is_cut: bool  # whether only the surroundings of the labels are kept
    is_coarser: bool  # whether the grid is coarser than the image's

    def document(self) -> dict[str, Any]:
        """Return the case as JSON for the viewer."""
        spacing = [float(f"{value:.5g}") for value in self.spacing_mm]
        image, labels = (base64.b64encode(content).decode("ascii") for content in (self.image, self.labels))
        return {**asdict(self), "spacing_mm": spacing, "image": image, "labels": labels}


def pack_case(
    image: npt.ArrayLike, maps: Sequence[Labels], *, affine: npt.ArrayLike | None = None, max_bytes: int = 400_000
) -> Stack:
    """Reduce a case to a size in a page.

    Args:
        image: `(C, *spatial)`; the first channel is shown; a picture with three channels is shown in colour.
        maps: reference, then predictions, `(*spatial)` in the numbers of :class:`medunet.reports.ClassCodes`.
        affine: 4x4 from voxels to RAS mm; None for pictures and stacks of pictures without a place in a patient.
        max_bytes: bytes in a page; a case that cannot be this small is made as small as possible.

    Raises:
        GeometryError: a map is not on the image's grid.
    """
    voxels = np.asarray(image, dtype=np.float32)
    for one in maps:
        if np.shape(one) != voxels.shape[1:]:
            rule = "label map is not on the image's grid"
            raise GeometryError(rule, received=np.shape(one), expected=voxels.shape[1:])
    is_colour = affine is None and voxels.ndim == 3 and len(voxels) == 3
    channels = [*voxels] if is_colour else [voxels[0]]
    seen, spacing = as_seen([*channels, *maps], affine)
    box = _box(seen[len(channels) :], spacing)
    shown = [array[box] if box else array for array in seen]
    pictures, places = np.stack(shown[: len(channels)]), shown[len(channels) :]
    room = max_bytes / BASE64
    labels, label_shape = _packed_labels(places, spacing, room * LABEL_SHARE)
    content, shape, across = _packed_image(pictures, spacing, room - len(labels))
    full = places[0].shape
    z, y, x = (distance * old / new for distance, old, new in zip(spacing, full, label_shape, strict=True))
    is_placed, is_coarser = affine is not None and voxels.ndim == 4, not full == shape == label_shape
    flags = {"is_placed": is_placed, "is_cut": box is not None, "is_coarser": is_coarser}
    return Stack(label_shape, (z, y, x), content, shape, across, labels, len(places), **flags)


def _box(places: Sequence[Array], spacing: Spacing) -> tuple[slice, ...] | None:
    """Return the surroundings of the labels; None if the image is only slightly larger, or has no label."""
    whole = places[0].shape
    box = bounding_box(np.any([one != 0 for one in places], axis=0))
    if box is None or whole[0] == 1:
        return None
    wide = []
    for edge, size, distance in zip(box, whole, spacing, strict=True):
        margin = math.ceil(max(MARGIN_MM / distance, MARGIN_SHARE * (edge.stop - edge.start)))
        wide.append(slice(max(0, edge.start - margin), min(size, edge.stop + margin)))
    part = math.prod(edge.stop - edge.start for edge in wide) / math.prod(whole)
    return tuple(wide) if part < CROP_GAIN else None


def _packed_labels(places: Sequence[Array], spacing: Spacing, room: float) -> tuple[bytes, tuple[int, int, int]]:
    wanted = float(MAX_LABEL_VOXELS)
    for _ in range(MAX_TRIES):
        shape = _coarser_shape(places[0].shape, spacing, wanted)
        labels = zlib.compress(np.stack([_nearest(one, shape) for one in places]).tobytes(), 9)
        if len(labels) <= room:
            break
        wanted = COARSER * min(wanted, math.prod(shape))
    return labels, shape


def _packed_image(channels: Array, spacing: Spacing, room: float) -> tuple[bytes, tuple[int, int, int], int]:
    """Return WebP of the best quality that fits, its grid, and how many slices are side by side."""
    limits, full = window(*channels), channels.shape[1:]
    wanted = min(MAX_VOXELS, room / BYTES_PER_VOXEL)
    for _ in range(MAX_TRIES):
        shape = _coarser_shape(full, spacing, wanted)
        if channels.shape[1:] != shape:
            tensor = torch.from_numpy(np.ascontiguousarray(channels))
            channels = torch.nn.functional.adaptive_avg_pool3d(tensor, shape).numpy()
        sprite, across = _sprite(as_bytes(channels, limits))
        for quality in QUALITIES:
            buffer = io.BytesIO()
            sprite.save(buffer, format="WEBP", quality=quality, method=4)
            if (size := buffer.tell()) <= room:
                return buffer.getvalue(), shape, across
        wanted = math.prod(shape) * max(0.3, 0.75 * room / size)
    return buffer.getvalue(), shape, across


def _coarser_shape(shape: Sequence[int], spacing: Spacing, voxels: float) -> tuple[int, int, int]:
    """Return a grid of at most this many voxels; the finest axes are reduced first, until all are alike."""

    def sizes(distance: float) -> tuple[int, int, int]:
        z, y, x = (max(1, round(size * own / max(own, distance))) for size, own in zip(shape, spacing, strict=True))
        return z, y, x

    low, high = min(spacing), max(size * distance for size, distance in zip(shape, spacing, strict=True))
    if math.prod(shape) <= voxels:
        return sizes(low)
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if math.prod(sizes(middle)) > voxels else (low, middle)
    return sizes(high)


def _nearest(one: Array, shape: tuple[int, ...]) -> Array:
    index = [((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(one.shape, shape, strict=True)]
    return one if one.shape == shape else one[np.ix_(*index)]


def _sprite(grey: npt.NDArray[np.uint8]) -> tuple[Image.Image, int]:
    """Return all slices on one sheet that is about square, and how many are side by side."""
    count, slices, rows, columns = grey.shape
    across = max(1, min(slices, math.ceil(math.sqrt(slices * rows / columns)), MAX_EDGE // columns))
    grid = (math.ceil(slices / across), across)
    sheet = montage(np.moveaxis(grey, 0, -1), fill=[0] * count, grid_shape=grid, channel_axis=-1)
    return Image.fromarray(sheet[..., 0] if count == 1 else sheet), across
