"""One picture of a whole data set: a thumbnail of each case with its label, so that the odd one meets the eye."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from medunet.errors import DataError
from medunet.files import write_atomically

from .colours import class_colours

TILE = 144
"""Edge of a thumbnail in pixels."""

CAPTION = 16
"""Height of the line with the name below it."""

GAP = 6

MAX_CASES = 400
"""More thumbnails than these make a picture that nobody looks through; the sheet then says how many it leaves out."""

LABEL_OPACITY = 0.45
WINDOW_PERCENTILES = (0.5, 99.5)
"""Intensities of the slice that are black and white."""

_PAPER, _INK = (16, 18, 20), (201, 204, 209)
_FRAMES = {"error": (217, 80, 46), "warning": (199, 163, 10)}


@dataclass(frozen=True)
class _Thumbnail:
    grey: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint16] | None
    right_is_left: bool


@dataclass
class ContactSheet:
    """Collects thumbnails as cases are read, and draws them when all are there.

    Volumes show the axial slice with most foreground as radiologists look at it: anterior on top, the patient's right
    on the left (marked R). Images in the plane are shown as they are.
    """

    thumbnails: dict[str, _Thumbnail] = field(default_factory=dict)

    def add(
        self,
        name: str,
        image: npt.NDArray[np.float32],
        label: npt.NDArray[np.float32] | None = None,
        *,
        affine: npt.ArrayLike | None = None,
    ) -> None:
        """Take in one case; only its thumbnail is kept.

        Args:
            name: caption; a second case of this name replaces the first.
            image: ``(C, *spatial)``, of which the first channel is shown.
            label: ``(1, *spatial)`` of whole numbers.
            affine: 4x4, RAS; None for images without placement.
        """
        planes = [image[0]] if label is None else [image[0], label[0]]
        spacing = (1.0, 1.0)
        placed = planes[0].ndim == 3 and affine is not None
        if placed:
            matrix = np.asarray(affine, dtype=np.float64)
            turn = nib.orientations.io_orientation(matrix)
            planes = [nib.orientations.apply_orientation(plane, turn) for plane in planes]
            sizes = nib.affines.voxel_sizes(matrix)
            by_patient_axis = [float(sizes[int(np.flatnonzero(turn[:, 0] == axis)[0])]) for axis in range(3)]
            spacing = (by_patient_axis[1], by_patient_axis[0])
        if planes[0].ndim == 3:
            index = planes[0].shape[2] // 2
            if label is not None and (areas := (planes[1] != 0).sum(axis=(0, 1))).any():
                index = int(areas.argmax())
            planes = [plane[:, :, index] for plane in planes]
        # Of a volume, columns then run to the patient's left and rows to the back; pictures stay as they are.
        step = -1 if placed else 1
        planes = [plane.T[::step, ::step] for plane in planes]
        size = _fit(planes[0].shape, spacing)
        grey = Image.fromarray(_window(planes[0])).resize(size, _filter(planes[0], size))
        shown = None
        if label is not None:
            nearest = Image.fromarray(planes[1].astype(np.float32)).resize(size, Image.Resampling.NEAREST)
            shown = np.asarray(nearest).astype(np.uint16)
        self.thumbnails[name] = _Thumbnail(np.asarray(grey), shown, placed)

    def render(self, labels: Mapping[str, int], *, severities: Mapping[str, str] | None = None) -> bytes:
        """Draw the sheet as PNG.

        Args:
            labels: name to value, background first.
            severities: name of a case to 'error' or 'warning', which is the colour of its frame.

        Raises:
            DataError: there is no case to show.
        """
        names = sorted(self.thumbnails)[:MAX_CASES]
        if not names:
            raise DataError("no case can be shown", remedy="see the errors")
        columns = max(1, math.ceil(math.sqrt(len(names) * 1.5)))
        rows = math.ceil(len(names) / columns)
        font = ImageFont.load_default()
        foreground = {name: value for name, value in labels.items() if value != min(labels.values())}
        colours = class_colours(foreground)
        by_value = {foreground[name]: _rgb(colour) for name, colour in colours.items()}
        legend = CAPTION + GAP
        width = GAP + columns * (TILE + GAP)
        sheet = Image.new("RGB", (width, legend + GAP + rows * (TILE + CAPTION + GAP)), _PAPER)
        draw = ImageDraw.Draw(sheet)
        for place, name in enumerate(names):
            left = GAP + place % columns * (TILE + GAP)
            top = legend + place // columns * (TILE + CAPTION + GAP)
            picture = _coloured(self.thumbnails[name], by_value)
            sheet.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))
            frame = _FRAMES.get((severities or {}).get(name, ""))
            if frame is not None:
                draw.rectangle((left - 2, top - 2, left + TILE + 1, top + TILE + 1), outline=frame, width=2)
            if self.thumbnails[name].right_is_left:
                place_of_r = (left + 3, top + TILE // 2 - 6)
                draw.text(place_of_r, "R", fill=_INK, font=font, stroke_width=1, stroke_fill=_PAPER)
            draw.text((left, top + TILE + 2), _shortened(name, draw, font), fill=_INK, font=font)
        x = float(GAP)
        for name, colour in colours.items():
            draw.rectangle((x, GAP, x + 9, GAP + 9), fill=_rgb(colour))
            draw.text((x + 13, GAP - 1), name, fill=_INK, font=font)
            x += 13 + draw.textlength(name, font=font) + 2 * GAP
        if len(self.thumbnails) > len(names):
            draw.text((x, GAP - 1), f"first {len(names)} of {len(self.thumbnails)} cases", fill=_INK, font=font)
        buffer = io.BytesIO()
        sheet.save(buffer, format="PNG")
        return buffer.getvalue()

    def write(
        self,
        path: str | os.PathLike[str],
        labels: Mapping[str, int],
        *,
        severities: Mapping[str, str] | None = None,
    ) -> Path:
        """Draw into a PNG file and return its path; arguments as of `render`."""
        return write_atomically(path, self.render(labels, severities=severities))


def _window(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    low, high = np.percentile(plane, WINDOW_PERCENTILES)
    if low == high:
        low, high = float(plane.min()), float(plane.max())
    scaled = (plane.astype(np.float64) - low) / (high - low if high > low else 1.0)
    return np.round(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def _fit(shape: tuple[int, ...], spacing: tuple[float, float]) -> tuple[int, int]:
    """Width and height in pixels of a plane ``(rows, columns)`` with its true proportions."""
    height, width = shape[0] * spacing[0], shape[1] * spacing[1]
    scale = TILE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _filter(plane: npt.NDArray[np.float32], size: tuple[int, int]) -> Image.Resampling:
    shrinks = plane.shape[1] >= size[0] and plane.shape[0] >= size[1]
    return Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR


def _coloured(thumbnail: _Thumbnail, colours: Mapping[int, tuple[int, int, int]]) -> Image.Image:
    rgb = np.repeat(thumbnail.grey[..., None], 3, axis=2).astype(np.float64)
    if thumbnail.label is not None:
        for value, colour in colours.items():
            inside = thumbnail.label == value
            rgb[inside] = (1 - LABEL_OPACITY) * rgb[inside] + LABEL_OPACITY * np.array(colour)
    return Image.fromarray(np.round(rgb).astype(np.uint8))


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue


def _shortened(name: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The name, or its end, where cases of one data set differ."""
    text = name
    while len(text) > 1 and draw.textlength(text, font=font) > TILE:
        text = "~" + text.removeprefix("~")[1:]
    return text
