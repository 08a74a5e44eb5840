"""One picture of a whole data set: a thumbnail of each case with its label, so that an odd one stands out."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from medunet.errors import DataError
from medunet.files import write_atomically

from .classes import class_colours, rgb
from .view import Array, as_bytes, as_seen, window

TILE, CAPTION, GAP = 144, 16, 6  # pixels: edge of a thumbnail, height of the line with the name below it, distance
MAX_CASES = 400  # nobody looks through more; the sheet then names the number of cases that it leaves out
LABEL_OPACITY = 0.45

_PAPER, _INK = (16, 18, 20), (201, 204, 209)
_FRAMES = {"error": (217, 80, 46), "warning": (199, 163, 10)}


@dataclass(frozen=True)
class _Thumbnail:
    grey: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint16] | None
    is_placed: bool


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
        """Add one case; only its thumbnail is kept.

        Args:
            name: caption; a second case of this name replaces the first.
            image: ``(C, *spatial)``, of which the first channel is shown.
            label: ``(1, *spatial)`` of whole numbers.
            affine: 4x4, RAS; None for images without placement.
        """
        affine = affine if image.ndim == 4 else None
        spacing = None if affine is not None else (1.0,) * (image.ndim - 1)
        (grey, *labels), (_, row_mm, column_mm) = as_seen(
            [image[0]] if label is None else [image[0], label[0]], affine, spacing
        )
        index = len(grey) - 1 - len(grey) // 2 if affine is not None else len(grey) // 2
        if labels and (areas := (labels[0] != 0).sum(axis=(1, 2))).any():
            index = int(areas.argmax())
        size = _fit(grey[index], row_mm, column_mm)
        shrinks = grey.shape[2] >= size[0] and grey.shape[1] >= size[1]
        method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
        picture = Image.fromarray(as_bytes(grey[index], window(grey[index]))).resize(size, method)
        shown = [
            Image.fromarray(one[index].astype(np.float32)).resize(size, Image.Resampling.NEAREST) for one in labels
        ]
        values = np.asarray(shown[0]).astype(np.uint16) if shown else None
        self.thumbnails[name] = _Thumbnail(np.asarray(picture), values, affine is not None)

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
        font, legend = ImageFont.load_default(), CAPTION + GAP
        foreground = {name: value for name, value in labels.items() if value != min(labels.values())}
        colours = {name: rgb(colour) for name, colour in class_colours(foreground).items()}
        by_value = {foreground[name]: colour for name, colour in colours.items()}
        size = (GAP + columns * (TILE + GAP), legend + GAP + rows * (TILE + CAPTION + GAP))
        sheet = Image.new("RGB", size, _PAPER)
        draw = ImageDraw.Draw(sheet)
        for place, name in enumerate(names):
            left, top = GAP + place % columns * (TILE + GAP), legend + place // columns * (TILE + CAPTION + GAP)
            thumbnail = self.thumbnails[name]
            picture = _coloured(thumbnail, by_value)
            sheet.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))
            if (frame := _FRAMES.get((severities or {}).get(name, ""))) is not None:
                draw.rectangle((left - 2, top - 2, left + TILE + 1, top + TILE + 1), outline=frame, width=2)
            if thumbnail.is_placed:
                beside = (left + 3, top + TILE // 2 - 6)
                draw.text(beside, "R", fill=_INK, font=font, stroke_width=1, stroke_fill=_PAPER)
            draw.text((left, top + TILE + 2), _shortened(name, draw, font), fill=_INK, font=font)
        x = float(GAP)
        for name, colour in colours.items():
            draw.rectangle((x, GAP, x + 9, GAP + 9), fill=colour)
            draw.text((x + 13, GAP - 1), name, fill=_INK, font=font)
            x += 13 + draw.textlength(name, font=font) + 2 * GAP
        if len(self.thumbnails) > len(names):
            draw.text((x, GAP - 1), f"first {len(names)} of {len(self.thumbnails)} cases", fill=_INK, font=font)
        buffer = io.BytesIO()
        sheet.save(buffer, format="PNG")
        return buffer.getvalue()

    def write(
        self, path: str | os.PathLike[str], labels: Mapping[str, int], *, severities: Mapping[str, str] | None = None
    ) -> Path:
        """Draw into a PNG file and return its path; arguments as of `render`."""
        return write_atomically(path, self.render(labels, severities=severities))


def _fit(plane: Array, row_mm: float, column_mm: float) -> tuple[int, int]:
    """Width and height in pixels of a plane with its true proportions."""
    height, width = plane.shape[0] * row_mm, plane.shape[1] * column_mm
    scale = TILE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _coloured(thumbnail: _Thumbnail, colours: Mapping[int, tuple[int, int, int]]) -> Image.Image:
    pixels = np.repeat(thumbnail.grey[..., None], 3, axis=2).astype(np.float64)
    for value, colour in colours.items() if thumbnail.label is not None else ():
        inside = thumbnail.label == value
        pixels[inside] = (1 - LABEL_OPACITY) * pixels[inside] + LABEL_OPACITY * np.array(colour)
    return Image.fromarray(np.round(pixels).astype(np.uint8))


def _shortened(name: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The name, or its end, where cases of one data set differ."""
    text = name
    while len(text) > 1 and draw.textlength(text, font=font) > TILE:
        text = "~" + text.removeprefix("~")[1:]
    return text
