"""Tables and outlines of objects, read back by the programs that they are for."""

import io
import itertools
import json
import zipfile

import numpy as np
import pytest
from scipy import ndimage

from medunet.errors import ConfigError
from medunet.io.object_table import object_file, object_table, trace_objects

NOISE = np.random.default_rng(4).integers(0, 4, (40, 37))  # parts that touch at corners, with holes, at the border


def covered(polygons: dict, shape: tuple[int, int]) -> np.ndarray:
    """Return the map of the outlines: pixels whose centre is inside an odd number of rings."""
    labels = np.zeros(shape, int)
    for number, parts in polygons.items():
        crossings = np.zeros(shape, int)
        for ring in (ring for part in parts for ring in part):
            for (x, y), (to_x, to_y) in itertools.pairwise(ring.tolist()):
                assert (x == to_x) != (y == to_y)  # along the edges of pixels
                if x == to_x:
                    crossings[x:, min(y, to_y) : max(y, to_y)] += 1
        labels[crossings % 2 == 1] = number
    return labels


def test_outlines_cover_exactly_the_pixels_of_their_object():
    outlines = trace_objects(7 * NOISE)
    assert np.array_equal(covered(outlines, NOISE.shape), 7 * NOISE)
    rings = [ring for parts in outlines.values() for part in parts for ring in part]
    assert all(len(np.unique(ring, axis=0)) == len(ring) - 1 for ring in rings)  # no corner twice
    assert all(np.array_equal(ring[0], ring[-1]) for ring in rings)
    assert len(outlines[7]) == ndimage.label(NOISE == 1)[1]


def test_geojson_has_valid_polygons_of_the_objects_area():
    shapely = pytest.importorskip("shapely", reason="shapely is not installed")
    table = object_table(NOISE, classes={1: "a", 2: "b", 3: "c"})
    content = json.loads(object_file("geojson", NOISE, table))
    assert content["type"] == "FeatureCollection"
    shapes = [shapely.from_geojson(json.dumps(feature["geometry"])) for feature in content["features"]]
    assert all(shapely.is_valid(shape) for shape in shapes)
    assert [shape.area for shape in shapes] == table["area_px"].tolist()
    assert content["features"][1]["properties"]["classification"] == {"name": "b"}


def test_imagej_reads_the_rois():
    roifile = pytest.importorskip("roifile", reason="roifile is not installed")
    labels = np.zeros((20, 30), int)
    labels[2:5, 10:17], labels[8:10, 3:5], labels[11:13, 3:5] = 12, 13, 13
    with zipfile.ZipFile(io.BytesIO(object_file("imagej", labels, object_table(labels)))) as archive:
        read = {name: roifile.ImagejRoi.frombytes(archive.read(name)) for name in archive.namelist()}
    assert list(read) == ["12.roi", "13-1.roi", "13-2.roi"]
    roi = read["12.roi"]
    assert (roi.left, roi.top) == (2, 10)  # x along the width
    assert {tuple(point) for point in roi.coordinates().astype(int)} == {(2, 10), (5, 10), (5, 17), (2, 17)}


def test_a_table_has_physical_sizes_centroids_boxes_intensities_and_confidence():
    labels = np.zeros((4, 5, 6), int)
    labels[1:3, 1:4, 2:4], labels[0, 0, 0] = 300, 2
    image = np.stack([np.arange(120).reshape(labels.shape), np.ones(labels.shape)])
    foreground = np.where(labels == 300, 0.75, 0.5)
    table = object_table(
        labels, image=image, foreground=foreground, spacing_mm=(0.5, 0.5, 2), classes={2: "small", 300: "large"}
    )
    last = {name: column.tolist()[1] for name, column in table.items()}
    assert last == {
        "id": 300, "class": "large", "volume_mm3": 6.0, "x": 1.5, "y": 2.0, "z": 2.5,
        "x_min": 1, "x_max": 2, "y_min": 1, "y_max": 3, "z_min": 2, "z_max": 3,
        "mean_intensity_1": image[0][labels == 300].mean(), "mean_intensity_2": 1.0, "confidence": 0.75,
    }  # fmt: skip
    rows = object_file("csv", labels, table).decode().splitlines()
    assert rows[0].startswith("id,class,volume_mm3,x,y,z,x_min")
    assert rows[1].startswith("2,small,0.5,0,0,0,0,0")


def test_an_image_without_objects_has_an_empty_table():
    empty = np.zeros((4, 5), int)
    table = object_table(empty, image=empty[None], foreground=empty)
    assert object_file("csv", empty, table).decode().count("\n") == 1
    assert json.loads(object_file("geojson", empty, table))["features"] == []


@pytest.mark.parametrize(("kind", "shape", "cause"), [("csb", (3, 3), "unknown"), ("geojson", (3, 3, 3), "2D objects")])
def test_other_formats_and_outlines_of_volumes_are_rejected(kind, shape, cause):
    labels = np.ones(shape, int)
    with pytest.raises(ConfigError, match=cause):
        object_file(kind, labels, object_table(labels))
