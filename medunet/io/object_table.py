"""Objects as tables and outlines: CSV, GeoJSON for QuPath, and ROIs for ImageJ."""

import csv
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.measure import label as number_parts

from medunet.errors import ConfigError

from .dicom.contours import straightened, trace_rings
from .extras import import_extra

Ring = npt.NDArray[np.int64]  # corners (N, 2) in pixels, from the corner of the image; the last repeats the first

OBJECT_FILES = {"csv": "_objects.csv", "geojson": "_objects.geojson", "imagej": "_objects.zip"}  # endings by format


def object_table(
    labels: npt.NDArray[Any],
    *,
    image: npt.ArrayLike | None = None,
    foreground: npt.ArrayLike | None = None,
    spacing_mm: Sequence[float] | None = None,
    classes: Mapping[int, str] | str = "object",
) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of a table with one row per object.

    Args:
        labels: object numbers `(*spatial)`, 2D or 3D; 0 is the background.
        image: intensities `(C, *spatial)`; adds `mean_intensity`, or `mean_intensity_1` ... for several channels.
        foreground: probability of the foreground `(*spatial)`; adds `confidence`, its mean in the object.
        spacing_mm: distance between voxels along each axis; None for pictures, whose areas are in pixels.
        classes: name of the class by object number, or of all objects.

    Returns:
        `id`, `class`, `area_px`, `area_mm2` or `volume_mm3`, centroid `x`, `y`, `z` and bounding box `x_min`, `x_max`
        ... (first and last voxel) in voxel indices, then what the arguments add.

    Examples:
        >>> table = object_table(np.array([[0, 7, 7], [0, 7, 7]]), foreground=np.full((2, 3), 0.75))
        >>> {name: column.tolist()[0] for name, column in table.items() if name not in ("x_min", "y_min")}
        {'id': 7, 'class': 'object', 'area_px': 4, 'x': 0.5, 'y': 1.5, 'x_max': 1, 'y_max': 2, 'confidence': 0.75}
    """
    inside = np.nonzero(labels)
    numbers = labels[inside].astype(np.int64)
    counts = np.bincount(numbers)
    ids = np.flatnonzero(counts)

    def means(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return np.bincount(numbers, weights=values)[ids] / counts[ids]

    voxel = 1 if spacing_mm is None else float(np.prod(spacing_mm))
    unit = "area_px" if spacing_mm is None else "area_mm2" if labels.ndim == 2 else "volume_mm3"
    named = [classes if isinstance(classes, str) else classes.get(number, "") for number in ids.tolist()]
    table = {"id": ids, "class": np.array(named, dtype=object), unit: counts[ids] * voxel}
    axes = "xyz"[: labels.ndim]
    table |= {axis: means(indices) for axis, indices in zip(axes, inside, strict=True)}
    boxes = [box for box in ndimage.find_objects(labels.astype(np.int32)) if box is not None]
    for place, axis in enumerate(axes):
        table[f"{axis}_min"] = np.array([box[place].start for box in boxes], dtype=np.int64)
        table[f"{axis}_max"] = np.array([box[place].stop - 1 for box in boxes], dtype=np.int64)
    channels = [] if image is None else list(np.asarray(image))
    for number, channel in enumerate(channels, start=1):
        table["mean_intensity" if len(channels) == 1 else f"mean_intensity_{number}"] = means(channel[inside])
    if foreground is not None:
        table["confidence"] = means(np.asarray(foreground)[inside])
    return table


def object_file(kind: str, labels: npt.NDArray[Any], table: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return the content of a file of objects.

    Args:
        kind: a key of `OBJECT_FILES`: `csv`, `geojson` (polygons along the edges of pixels, for QuPath), or `imagej` (a
            ZIP file of ROIs, one per connected part, without holes).
        labels: object numbers; for outlines `(x, y)`.
        table: columns of `object_table`.

    Raises:
        ConfigError: outlines of a volume, or roifile is not installed.
    """
    rows = [
        dict(zip(table, row, strict=True)) for row in zip(*(column.tolist() for column in table.values()), strict=True)
    ]
    if kind == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(table)
        writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row.values()] for row in rows)
        return text.getvalue().encode()
    check_object_format(kind, labels.ndim)
    outlines = trace_objects(labels)
    if kind == "geojson":
        return json.dumps({"type": "FeatureCollection", "features": [_feature(row, outlines) for row in rows]}).encode()
    roifile = import_extra("roifile", extra="imagej", purpose="ROIs of ImageJ")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for row in rows:
            for part, (outer, *_) in enumerate(outlines[row["id"]], start=1):
                name = f"{row['id']}" if len(outlines[row["id"]]) == 1 else f"{row['id']}-{part}"
                roi = roifile.ImagejRoi.frompoints(outer[:-1], name=name)
                archive.writestr(f"{name}.roi", roi.tobytes())
    return buffer.getvalue()


def check_object_format(kind: str, spatial_dims: int) -> None:
    """Raise a ConfigError if a file of this format cannot be written for objects of 2 or 3 dimensions."""
    if kind not in OBJECT_FILES:
        raise ConfigError("unknown format of objects", received=kind, expected=", ".join(OBJECT_FILES))
    if kind != "csv" and spatial_dims != 2:
        raise ConfigError(f"{kind} has outlines of 2D objects only", received=f"{spatial_dims}D images")
    if kind == "imagej":
        import_extra("roifile", extra="imagej", purpose="ROIs of ImageJ")


def trace_objects(labels: npt.NDArray[Any]) -> dict[int, list[list[Ring]]]:
    """Return the outlines of each object of a map `(x, y)` by its number: parts of an outer ring and its holes.

    Rings run along the edges of pixels, so a polygon's area is its number of pixels. Pixels that only touch at a corner
    are in different parts. No ring visits a corner twice, so every polygon is valid.
    """
    parts = number_parts(labels.astype(np.int32), background=0, connectivity=1)
    outlines: dict[int, list[list[Ring]]] = {}
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        part = parts[box] == number
        start = [side.start for side in box]
        rings = [_along_pixels(ring) + start for ring in trace_rings(part, connected="high")]
        outlines.setdefault(int(labels[box][part][0]), []).append(rings)
    return outlines


def _along_pixels(ring: npt.NDArray[np.float64]) -> Ring:
    """Return a ring along the edges of pixels; the given one joins the middles of these edges."""
    corners = straightened(np.floor((ring[:-1] + ring[1:]) / 2) + 1).astype(np.int64)
    return np.concatenate([corners, corners[:1]])


def _feature(row: Mapping[str, Any], outlines: Mapping[int, list[list[Ring]]]) -> dict[str, Any]:
    """Return an object as QuPath reads it."""
    parts = [[ring.tolist() for ring in part] for part in outlines[row["id"]]]
    kind, coordinates = ("MultiPolygon", parts) if len(parts) > 1 else ("Polygon", parts[0])
    measurements = {name: value for name, value in row.items() if name not in ("id", "class")}
    properties = {"objectType": "detection", "name": str(row["id"]), "classification": {"name": row["class"]}}
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": {**properties, "measurements": measurements}}
