"""Contours of a prediction and its reference over the image, as a PNG."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from medunet.errors import ConfigError, GeometryError
from medunet.files import write_atomically
from medunet.metrics.arrays import Array, ArrayOrTensor, as_array, checked_spacing
from medunet.metrics.evaluation import BACKGROUND

from .colours import class_colours

WINDOW_PERCENTILES = (0.5, 99.5)
"""Intensities shown as black and white: a metal clip or a padding value must not take the contrast."""

WINDOW_SAMPLES = 500_000
"""Voxels that the percentiles are taken from; more do not move them visibly."""

PANEL_HEIGHT_INCHES = {2: 6.6, 3: 4.0}
"""Height of a panel by spatial axes: one panel in 2D, three side by side in 3D."""

LEGEND_HEIGHT_INCHES = 0.34
GAP_INCHES = 0.06
TITLE_INSET_INCHES = 0.08
DOTS_PER_INCH = 110
MAX_ASPECT = 3.0
"""Panels are not drawn wider or narrower than this ratio (a stack of two slices would be a line)."""

PAPER, INK, REFERENCE = "#101214", "#c9ccd1", "#ffffff"
"""Dark ground in light and dark pages alike: greys are judged against black, as on a reading station."""


OUTLINE = withStroke(linewidth=2.5, foreground=PAPER)
"""Keeps text readable on bright tissue."""


class Plane(NamedTuple):
    """One slice as it is drawn: rows first, row 0 on top."""

    image: Array
    pred: Array
    ref: Array | None
    row_mm: float
    column_mm: float
    title: str
    left: str
    top: str

    @property
    def aspect(self) -> float:
        """Width over height in millimetres."""
        rows, columns = self.image.shape
        return columns * self.column_mm / (rows * self.row_mm)


def overlay_png(
    image: ArrayOrTensor,
    pred: ArrayOrTensor,
    ref: ArrayOrTensor | None = None,
    *,
    path: str | os.PathLike[str],
    labels: Mapping[str, int | Sequence[int]],
    spacing_mm: Sequence[float] | None = None,
    affine: ArrayOrTensor | None = None,
    title: str = "",
    channel: int = 0,
) -> Path:
    """Draw a case into a PNG file and return its path; arguments as of `render_overlay`."""
    content = render_overlay(
        image, pred, ref, labels=labels, spacing_mm=spacing_mm, affine=affine, title=title, channel=channel
    )
    return write_atomically(path, content)


def render_overlay(
    image: ArrayOrTensor,
    pred: ArrayOrTensor,
    ref: ArrayOrTensor | None = None,
    *,
    labels: Mapping[str, int | Sequence[int]],
    spacing_mm: Sequence[float] | None = None,
    affine: ArrayOrTensor | None = None,
    title: str = "",
    channel: int = 0,
) -> bytes:
    """Draw a case as PNG: one panel in 2D; in 3D three planes, each where it shows most foreground.

    With an affine, 3D planes are turned as radiologists look at them: anterior or superior on top, the patient's right
    on the left, and the letters say so. Without one, nothing is known and nothing is claimed: axes are only numbered.

    Args:
        image: `(C, *spatial)` or `(*spatial)`.
        pred: label map `(1, *spatial)` or `(*spatial)`.
        ref: reference label map, if there is one.
        labels: name -> value, background first; a region has several values, and regions may have values in common.
        spacing_mm: distance of neighbouring voxels along each axis; from the affine, or 1 mm, where it is not given.
        affine: `(4, 4)` from voxels to RAS millimetres; None takes the image's own (`MetaTensor.affine`), if any.
        title: text in the upper left corner.
        channel: channel of the image that is shown.

    Raises:
        GeometryError: shapes do not fit.
        ConfigError: the image has no such channel.
    """
    if affine is None:
        affine = getattr(image, "affine", None)
    image_array, pred_array = as_array(image), as_array(pred)
    spatial_dims = len(spacing_mm) if spacing_mm is not None else _spatial_dims(pred_array)
    pred_array = as_array(pred, spatial_dims=spatial_dims)
    ref_array = None if ref is None else as_array(ref, spatial_dims=spatial_dims)
    if image_array.ndim == spatial_dims + 1:
        if not 0 <= channel < image_array.shape[0]:
            raise ConfigError(
                "image has no such channel", received=channel, expected=f"0 to {image_array.shape[0] - 1}"
            )
        image_array = image_array[channel]
    for other in (pred_array, ref_array):
        if other is not None and other.shape != image_array.shape:
            raise GeometryError(
                "label map is not on the image's grid", received=other.shape, expected=image_array.shape
            )

    matrix = None if affine is None or spatial_dims != 3 else as_array(affine).astype(float)
    if spacing_mm is not None:
        spacing = checked_spacing(spacing_mm, spatial_dims=spatial_dims)
    elif matrix is not None:
        spacing = checked_spacing(nib.affines.voxel_sizes(matrix), spatial_dims=spatial_dims)
    else:
        spacing = (1.0,) * spatial_dims

    members = {name: tuple(np.atleast_1d(value).tolist()) for name, value in labels.items()}
    (background,) = members.get(BACKGROUND, (0,))
    values = {name: found for name, found in members.items() if found != (background,)}
    if spatial_dims == 2:
        drawn_ref = None if ref_array is None else ref_array.T
        planes = [Plane(image_array.T, pred_array.T, drawn_ref, spacing[1], spacing[0], "", "", "")]
    else:
        planes = _three_planes(image_array, pred_array, ref_array, spacing, matrix, background=background)
    return _draw(planes, window=_window(image_array), values=values, title=title, with_reference=ref is not None)


def _spatial_dims(pred: Array) -> int:
    """Return the number of spatial axes: `(1, x, y)` is a slice with a channel axis, not a volume of one row."""
    has_channel = pred.ndim == 4 or (pred.ndim == 3 and pred.shape[0] == 1)
    spatial_dims = pred.ndim - has_channel
    if spatial_dims not in (2, 3):
        raise GeometryError("label map cannot be drawn", received=pred.shape, expected="2 or 3 spatial axes")
    return spatial_dims


def _three_planes(
    image: Array,
    pred: Array,
    ref: Array | None,
    spacing: tuple[float, ...],
    affine: Array | None,
    *,
    background: int,
) -> list[Plane]:
    """Cut three planes at right angles, turned to the usual view if the orientation is known."""
    if affine is not None:
        turn = nib.orientations.io_orientation(affine)
        image, pred = (nib.orientations.apply_orientation(array, turn) for array in (image, pred))
        ref = None if ref is None else nib.orientations.apply_orientation(ref, turn)
        # Axis n of the array becomes axis turn[n, 0] of RAS.
        spacing = tuple(spacing[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in range(3))
    foreground = pred != background if ref is None else (pred != background) | (ref != background)
    planes = []
    # Axes of RAS point to the patient's right, front and head; a picture's columns point to the patient's left or back
    # and its rows downwards, so all of them are reversed. Pictures without placement stay as they are.
    step = 1 if affine is None else -1
    for axis, name, left, top in ((2, "axial", "R", "A"), (1, "coronal", "R", "S"), (0, "sagittal", "A", "S")):
        areas = foreground.sum(axis=tuple(other for other in range(3) if other != axis))
        index = int(np.argmax(areas)) if areas.any() else image.shape[axis] // 2
        column_axis, row_axis = (other for other in range(3) if other != axis)
        # A basic index is a view; np.take would first copy a volume that is not in C order.
        cut = (*(slice(None),) * axis, index)
        shown = [None if array is None else array[cut].T[::step, ::step] for array in (image, pred, ref)]
        planes.append(
            Plane(
                image=np.asarray(shown[0]),
                pred=np.asarray(shown[1]),
                ref=shown[2],
                row_mm=spacing[row_axis],
                column_mm=spacing[column_axis],
                title=f"{name} {index}" if affine is not None else f"axis {axis}, slice {index}",
                left=left if affine is not None else "",
                top=top if affine is not None else "",
            )
        )
    return planes


def _window(image: Array) -> tuple[float, float]:
    """Return the intensities of black and white."""
    # Every n-th voxel along each axis is a view; a flat index would copy a volume that is not in C order.
    step = max(1, math.ceil((image.size / WINDOW_SAMPLES) ** (1 / image.ndim)))
    sample = image[(slice(None, None, step),) * image.ndim].astype(np.float64).ravel()
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(sample, WINDOW_PERCENTILES)
    if low == high:
        low, high = sample.min(), sample.max()
    return float(low), float(high if high > low else low + 1)


def _draw(
    planes: Sequence[Plane],
    *,
    window: tuple[float, float],
    values: Mapping[str, tuple[int, ...]],
    title: str,
    with_reference: bool,
) -> bytes:
    """Return the planes side by side, of one height, over one legend."""
    panel_height = PANEL_HEIGHT_INCHES[2 if len(planes) == 1 else 3]
    widths = [panel_height * float(np.clip(plane.aspect, 1 / MAX_ASPECT, MAX_ASPECT)) for plane in planes]
    width = sum(widths) + GAP_INCHES * (len(planes) - 1)
    height = panel_height + LEGEND_HEIGHT_INCHES
    # Figure without pyplot: no window system is asked for and nothing stays in a global list of figures.
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor=PAPER)
    start = 0.0
    for plane, panel in zip(planes, widths, strict=True):
        bottom = LEGEND_HEIGHT_INCHES / height
        axes = figure.add_axes((start / width, bottom, panel / width, 1 - bottom))
        _draw_plane(axes, plane, window=window, values=values)
        start += panel + GAP_INCHES
    if title:
        left, top = TITLE_INSET_INCHES / width, 1 - TITLE_INSET_INCHES / height
        figure.text(left, top, title, color=INK, fontsize=9, va="top", path_effects=[OUTLINE])
    handles = [Line2D([], [], color=colour, linewidth=2, label=name) for name, colour in class_colours(values).items()]
    if with_reference:
        handles.append(Line2D([], [], color=REFERENCE, linewidth=1, linestyle=(0, (3, 1.5)), label="reference"))
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.0, 0.0),
        ncols=max(1, min(len(handles), int(width / 1.1))),
        frameon=False,
        labelcolor=INK,
        fontsize=8,
        borderaxespad=0.4,
        handlelength=1.8,
        columnspacing=1.4,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=PAPER)
    return buffer.getvalue()


def _draw_plane(
    axes: Axes, plane: Plane, *, window: tuple[float, float], values: Mapping[str, tuple[int, ...]]
) -> None:
    axes.set_axis_off()
    axes.set_facecolor(PAPER)
    rows, columns = plane.image.shape
    low, high = window
    aspect = plane.row_mm / plane.column_mm
    axes.imshow(plane.image, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="auto")
    for name, colour in class_colours(values).items():
        _contour(axes, np.isin(plane.pred, values[name]), colour=colour, linewidth=1.5, linestyle="solid")
    if plane.ref is not None:
        for members in values.values():
            _contour(axes, np.isin(plane.ref, members), colour=REFERENCE, linewidth=0.8, linestyle=(0, (3, 1.5)))
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    small: dict[str, Any] = {"color": INK, "fontsize": 7.5, "transform": axes.transAxes, "path_effects": [OUTLINE]}
    axes.text(0.985, 0.015, plane.title, ha="right", va="bottom", **small)
    axes.text(0.012, 0.5, plane.left, ha="left", va="center", **small)
    axes.text(0.5, 0.988, plane.top, ha="center", va="top", **small)


def _contour(axes: Axes, mask: Array, *, colour: str, linewidth: float, linestyle: object) -> None:
    if not mask.any():
        return
    # A border of outside closes the contour where the object leaves the image.
    padded = np.pad(mask.astype(np.float32), 1)
    rows, columns = mask.shape
    axes.contour(
        np.arange(-1, columns + 1),
        np.arange(-1, rows + 1),
        padded,
        levels=[0.5],
        colors=[colour],
        linewidths=[linewidth],
        linestyles=[linestyle],
    )
