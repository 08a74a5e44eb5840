"""Contours of a prediction and its reference over the image, as a PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from medunet.errors import GeometryError
from medunet.metrics.arrays import Array, ArrayOrTensor, as_array, checked_spacing
from medunet.metrics.evaluation import BACKGROUND

from .classes import class_colours
from .objects import ERRORS, OBJECT_COLOURS, TONE_NAMES, object_maps, tones
from .view import as_seen, window

PANEL_INCHES = {1: 6.6, 3: 4.0}  # height of a panel by their number: one picture, or three planes side by side
LEGEND_INCHES, GAP_INCHES, TITLE_INCHES = 0.34, 0.06, 0.08
DOTS_PER_INCH = 110
MAX_ASPECT = 3.0  # of a panel: a stack of two slices would be a line

# dark ground in light and dark pages alike: greys are judged against black, as on a reading station
PAPER, INK, REFERENCE = "#101214", "#c9ccd1", "#ffffff"
DASHES = (0, (3, 1.5))
OUTLINE = withStroke(linewidth=2.5, foreground=PAPER)  # keeps text readable on bright tissue


class Plane(NamedTuple):
    """One slice as it is drawn: rows first, row 0 on top."""

    image: Array
    pred: Array
    ref: Array | None
    row_mm: float
    column_mm: float
    title: str = ""
    left: str = ""
    top: str = ""

    @property
    def aspect(self) -> float:
        """Width over height in millimetres."""
        rows, columns = self.image.shape
        return columns * self.column_mm / (rows * self.row_mm)


def render_overlay(
    image: ArrayOrTensor,
    pred: ArrayOrTensor,
    ref: ArrayOrTensor | None = None,
    *,
    labels: Mapping[str, int | Sequence[int]],
    colours: Mapping[str, str] | None = None,
    spacing_mm: Sequence[float] | None = None,
    affine: ArrayOrTensor | None = None,
    title: str = "",
) -> bytes:
    """Draw a case as PNG: one panel in 2D; in 3D three planes, each in the slice with most foreground.

    With an affine, 3D planes are turned as radiologists look at them, with letters for right, anterior and superior.
    Without one, axes are only numbered.

    Args:
        image: `(C, *spatial)`, of which the first channel is shown, or `(*spatial)`.
        pred: label map `(*spatial)`.
        ref: reference label map, if there is one.
        labels: value by name, background first; a region has several values, and regions may share values.
        colours: colour by name; the reference has them, too, for the names in `ERRORS`. Default: one per class.
        spacing_mm: distance between voxels along each axis. Default: the affine's, else 1 mm.
        affine: `(4, 4)` from voxels to RAS millimetres. Default: the image's own (`MetaTensor.affine`), if any.
        title: text in the upper left corner.

    Raises:
        GeometryError: the shapes differ.
    """
    affine = getattr(image, "affine", None) if affine is None else affine
    voxels, maps = as_array(image), [as_array(one) for one in (pred, ref) if one is not None]
    spatial_dims = maps[0].ndim
    if spatial_dims not in (2, 3):
        raise GeometryError("a label map must have 2 or 3 spatial axes", received=maps[0].shape)
    voxels = voxels[0] if voxels.ndim == spatial_dims + 1 else voxels
    for one in maps:
        if one.shape != voxels.shape:
            raise GeometryError("label map is not on the image's grid", received=one.shape, expected=voxels.shape)
    spacing = None if spacing_mm is None else checked_spacing(spacing_mm, spatial_dims=spatial_dims)
    members = {name: tuple(np.atleast_1d(value).tolist()) for name, value in labels.items()}
    (background,) = members.get(BACKGROUND, (0,))
    members = {name: values for name, values in members.items() if values != (background,)}
    matrix = None if affine is None or spatial_dims != 3 else as_array(affine).astype(float)
    planes = cut_planes([voxels, *maps], matrix, spacing, background)
    return _draw(planes, window(voxels), members, colours or class_colours(members), title)


def render_objects(image: ArrayOrTensor, pred: Array, ref: Array | None = None, **options: Any) -> bytes:
    """Draw object numbers `(*spatial)` as `render_overlay` draws classes, with its options.

    Neighbours have different colours; with a reference, errors have colours of their own.
    """
    maps = [tones(pred)[pred]] if ref is None else object_maps(pred, ref)
    names = TONE_NAMES if ref is None else tuple(OBJECT_COLOURS)
    labels = {BACKGROUND: 0, **{name: value for value, name in enumerate(names, start=1)}}
    return render_overlay(
        image, *maps, labels=labels, colours={name: OBJECT_COLOURS[name] for name in names}, **options
    )


def cut_planes(
    arrays: Sequence[Array], affine: Array | None, spacing_mm: Sequence[float] | None, background: int
) -> list[Plane]:
    """Return the planes of image, prediction and, if there is one, reference that are drawn."""
    (image, *maps), spacing = as_seen(arrays, affine, spacing_mm)
    pred, ref = maps[0], maps[1] if len(maps) > 1 else None
    if arrays[0].ndim == 2:
        return [Plane(image[0], pred[0], None if ref is None else ref[0], spacing[1], spacing[2])]
    foreground = np.any([one != background for one in maps], axis=0)
    planes = []
    for axis, (name, left, top) in enumerate((("axial", "R", "A"), ("coronal", "R", "S"), ("sagittal", "A", "S"))):
        rows, columns = (other for other in range(3) if other != axis)
        areas = foreground.sum(axis=(rows, columns))
        if affine is not None:
            areas = areas[::-1]  # slices are counted from the feet, from the back and from the patient's left
        number = int(np.argmax(areas)) if areas.any() else len(areas) // 2
        index = number if affine is None else len(areas) - 1 - number
        slices = [None if one is None else one[(slice(None),) * axis + (index,)] for one in (image, pred, ref)]
        words = (f"axis {2 - axis}, slice {number}", "", "") if affine is None else (f"{name} {number}", left, top)
        planes.append(Plane(*slices, spacing[rows], spacing[columns], *words))  # type: ignore[arg-type,call-arg] # only ref may be None
    return planes


def _draw(
    planes: Sequence[Plane],
    limits: tuple[float, float],
    members: Mapping[str, tuple[int, ...]],
    colours: Mapping[str, str],
    title: str,
) -> bytes:
    """Draw planes side by side, of one height, over one legend."""
    panel_height = PANEL_INCHES[len(planes)]
    widths = [panel_height * float(np.clip(plane.aspect, 1 / MAX_ASPECT, MAX_ASPECT)) for plane in planes]
    width, height = sum(widths) + GAP_INCHES * (len(planes) - 1), panel_height + LEGEND_INCHES
    # Figure without pyplot needs no window system and stays in no global list of figures
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor=PAPER)
    start, bottom = 0.0, LEGEND_INCHES / height
    for plane, panel in zip(planes, widths, strict=True):
        axes = figure.add_axes((start / width, bottom, panel / width, 1 - bottom))
        _draw_plane(axes, plane, limits, members, colours)
        start += panel + GAP_INCHES
    if title:
        left, top = TITLE_INCHES / width, 1 - TITLE_INCHES / height
        figure.text(left, top, title, color=INK, fontsize=9, va="top", path_effects=[OUTLINE])
    named = {name: colour for name, colour in colours.items() if name not in TONE_NAMES[1:]}
    handles = [Line2D([], [], color=colour, linewidth=2, label=name) for name, colour in named.items()]
    if planes[0].ref is not None:
        handles.append(Line2D([], [], color=REFERENCE, linewidth=1, linestyle=DASHES, label="reference"))
    options: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, 0.0), "borderaxespad": 0.4}
    options |= {"frameon": False, "labelcolor": INK, "fontsize": 8, "handlelength": 1.8, "columnspacing": 1.4}
    figure.legend(handles=handles, ncols=max(1, min(len(handles), int(width / 1.1))), **options)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=PAPER)
    return buffer.getvalue()


def _draw_plane(
    axes: Axes,
    plane: Plane,
    limits: tuple[float, float],
    members: Mapping[str, tuple[int, ...]],
    colours: Mapping[str, str],
) -> None:
    axes.set_axis_off()
    rows, columns = plane.image.shape
    axes.imshow(plane.image, cmap="gray", vmin=limits[0], vmax=limits[1], aspect=plane.row_mm / plane.column_mm)
    for name, values in members.items():
        _contour(axes, np.isin(plane.pred, values), colors=colours[name], linewidths=1.5)
    for name, values in members.items():
        colour = ERRORS.get(name) if colours.get(name) == ERRORS.get(name) else None
        if plane.ref is not None:
            style: dict[str, Any] = {"linewidths": 1.2 if colour else 0.8, "linestyles": [DASHES]}
            _contour(axes, np.isin(plane.ref, values), colors=colour or REFERENCE, **style)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    small: dict[str, Any] = {"color": INK, "fontsize": 7.5, "transform": axes.transAxes, "path_effects": [OUTLINE]}
    axes.text(0.985, 0.015, plane.title, ha="right", va="bottom", **small)
    axes.text(0.012, 0.5, plane.left, ha="left", va="center", **small)
    axes.text(0.5, 0.988, plane.top, ha="center", va="top", **small)


def _contour(axes: Axes, mask: Array, **style: Any) -> None:
    if mask.any():
        rows, columns = mask.shape
        # a border of zeros closes the contour at the edge of the image
        padded = np.pad(mask.astype(np.float32), 1)
        axes.contour(np.arange(-1, columns + 1), np.arange(-1, rows + 1), padded, levels=[0.5], **style)
