"""One picture of a whole data set: a thumbnail of each case with its label, so that an odd one stands out."""

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries

from medunet.errors import DataError
from medunet.files import write_atomically

from .classes import PALETTE, class_colours
from .view import as_bytes, as_seen, window

TILE, CAPTION, GAP = 144, 16, 6  # pixels: edge of a thumbnail, height of the line with the name below it, distance
MAX_CASES = 400  # nobody looks through more; the sheet then shows how many cases there are
LABEL_OPACITY = 0.45

PAPER, INK = (16, 18, 20), (201, 204, 209)
FRAMES = {"error": (217, 80, 46), "warning": (199, 163, 10)}


def outlined(picture: npt.NDArray[np.uint8], numbers: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
    """Return a picture `(rows, columns, 3)` with the inner outlines of objects, coloured by their numbers in turn."""
    colours = np.array([ImageColor.getrgb(colour) for colour in PALETTE], np.uint8)
    edges = find_boundaries(numbers, connectivity=numbers.ndim, mode="inner")
    return np.where(edges[..., None], colours[numbers % len(colours)], picture)


class Thumbnail(NamedTuple):
    """A slice of a case and of its label map."""

    grey: Image.Image
    label: npt.NDArray[np.int32] | None
    is_placed: bool
    instances: bool = False  # the label numbers objects


@dataclass
class ContactSheet:
    """Thumbnails of all cases of a data set.

    Volumes show the axial slice with most foreground as radiologists look at it: anterior on top, the patient's right
    on the left (marked R). 2D images are shown as they are.
    """

    thumbnails: dict[str, Thumbnail] = field(default_factory=dict)

    def add(
        self,
        name: str,
        image: npt.NDArray[np.float32],
        label: npt.NDArray[np.float32 | np.int32] | None = None,
        *,
        affine: npt.ArrayLike | None = None,
        instances: bool = False,
    ) -> None:
        """Add the thumbnail of a case.

        Args:
            name: caption; a second case of this name replaces the first.
            image: `(C, *spatial)`, of which the first channel is shown.
            label: `(1, *spatial)` of whole numbers.
            instances: whether the label numbers objects; their outlines are drawn in alternating colours.
            affine: 4x4, RAS; None for images without placement.
        """
        affine = affine if image.ndim == 4 else None
        spacing = None if affine is not None else (1.0,) * (image.ndim - 1)
        arrays = [image[0]] if label is None else [image[0], label[0]]
        (grey, *labels), (_, row_mm, column_mm) = as_seen(arrays, affine, spacing)
        index = len(grey) - 1 - len(grey) // 2 if affine is not None else len(grey) // 2
        if labels and (areas := (labels[0] != 0).sum(axis=(1, 2))).any():
            index = int(areas.argmax())
        _, rows, columns = grey.shape
        width, height = columns * column_mm, rows * row_mm
        scale = TILE / max(width, height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        shrinks = columns >= size[0] and rows >= size[1]
        method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
        picture = Image.fromarray(as_bytes(grey[index], window(grey[index]))).resize(size, method)
        values = None
        if labels:
            plane = Image.fromarray(labels[0][index].astype(np.float32)).resize(size, Image.Resampling.NEAREST)
            values = np.asarray(plane).astype(np.int32)
        self.thumbnails[name] = Thumbnail(picture, values, affine is not None, instances)

    def write(
        self,
        path: str | os.PathLike[str],
        labels: Mapping[str, int],
        *,
        severities: Mapping[str, str] | None = None,
        order: Sequence[str] = (),
    ) -> Path:
        """Draw the sheet into a PNG file and return its path.

        Args:
            path: the file.
            labels: value by name, background first.
            severities: 'error' or 'warning' by name of a case; it sets the colour of the frame.
            order: names of the first cases; the others follow by name.

        Raises:
            DataError: there is no case to show.
        """
        others = sorted(self.thumbnails.keys() - set(order))
        names = [name for name in dict.fromkeys((*order, *others)) if name in self.thumbnails][:MAX_CASES]
        if not names:
            raise DataError("no case can be shown")
        columns = math.ceil(math.sqrt(len(names) * 1.5))
        rows = math.ceil(len(names) / columns)
        font, legend = ImageFont.load_default(), CAPTION + GAP
        foreground = {name: value for name, value in labels.items() if value != min(labels.values())}
        colours = class_colours(foreground)
        size = (GAP + columns * (TILE + GAP), legend + GAP + rows * (TILE + CAPTION + GAP))
        sheet = Image.new("RGB", size, PAPER)
        draw = ImageDraw.Draw(sheet)
        for place, name in enumerate(names):
            left, top = GAP + place % columns * (TILE + GAP), legend + place // columns * (TILE + CAPTION + GAP)
            thumbnail = self.thumbnails[name]
            picture = thumbnail.grey.convert("RGB")
            if thumbnail.label is not None and thumbnail.instances:
                picture = Image.fromarray(outlined(np.asarray(picture), thumbnail.label))
            for label, colour in colours.items() if thumbnail.label is not None and not thumbnail.instances else ():
                inside = np.where(thumbnail.label == foreground[label], round(255 * LABEL_OPACITY), 0)
                picture.paste(colour, mask=Image.fromarray(inside.astype(np.uint8)))
            sheet.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))
            if (frame := FRAMES.get((severities or {}).get(name, ""))) is not None:
                draw.rectangle((left - 2, top - 2, left + TILE + 1, top + TILE + 1), outline=frame, width=2)
            if thumbnail.is_placed:
                beside = (left + 3, top + TILE // 2 - 6)
                draw.text(beside, "R", fill=INK, font=font, stroke_width=1, stroke_fill=PAPER)
            caption = name
            while len(caption) > 1 and draw.textlength(caption, font=font) > TILE:
                caption = "~" + caption.removeprefix("~")[1:]  # keep the end, in which cases of one data set differ
            draw.text((left, top + TILE + 2), caption, fill=INK, font=font)
        x = float(GAP)
        for name, colour in () if any(t.instances for t in self.thumbnails.values()) else colours.items():
            draw.rectangle((x, GAP, x + 9, GAP + 9), fill=colour)
            draw.text((x + 13, GAP - 1), name, fill=INK, font=font)
            x += 13 + draw.textlength(name, font=font) + 2 * GAP
        if len(self.thumbnails) > len(names):
            draw.text((x, GAP - 1), f"first {len(names)} of {len(self.thumbnails)} cases", fill=INK, font=font)
        buffer = io.BytesIO()
        sheet.save(buffer, format="PNG")
        return write_atomically(path, buffer.getvalue())
