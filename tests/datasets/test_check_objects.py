"""The rules of `medunet check --instances`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medunet.datasets import Finding, check_pair, examine, open_dataset
from medunet.datasets.check.objects import compare_objects, measure_objects
from medunet.errors import DataError
from medunet.io import write_volume
from medunet.reports import ContactSheet


def grid(count: int = 12, *, size: int = 3, gap: int = 2) -> np.ndarray:
    """Rows of six squares in a margin, numbered from 1."""
    label = np.zeros((40, 45), np.uint16)
    for place in range(count):
        row, column = divmod(place, 6)
        x, y = 3 + row * (size + gap), 3 + column * (size + gap)
        label[x : x + size, y : y + size] = place + 1
    return label


def dataset(root: Path, *labels: np.ndarray, suffix: str = ".png") -> Path:
    for index, label in enumerate(labels):
        image = np.random.default_rng(index).integers(0, 255, label.shape).astype(np.uint8)
        write_volume(image, root / f"images/{index}.png")
        write_volume(label, root / f"labels/{index}{suffix}")
    return root


def findings(root: Path) -> list[Finding]:
    return examine(root, instances=True).findings


def test_sizes_contacts_and_borders_are_counted():
    label = np.zeros((12, 20), np.int32)
    label[0:2, 0:4], label[2:4, 0:3], label[6:9, 10:12], label[5, 18] = 7, 9, 200_000, 3  # 7 and 9 touch
    figures = measure_objects(label)
    assert sorted(figures.sizes) == [1, 6, 6, 8]
    assert (figures.touching, figures.at_border, figures.near_border) == (2, 2, 2)
    assert figures.in_pieces == ()
    assert measure_objects(np.zeros((4, 5), np.int32)).sizes == ()
    assert sorted(measure_objects(np.repeat(label[..., None], 2, axis=2)).sizes) == [2, 12, 12, 16]


def test_figures_of_all_objects_are_reported(tmp_path):
    result = examine(dataset(tmp_path, grid(12), grid(6), 0 * grid(1)), instances=True)
    assert [finding.cause for finding in result.findings] == []  # an image without objects is valid
    objects = result.summary()["objects"]
    assert (objects["count"], objects["fewest_per_image"], objects["most_per_image"]) == (18, 0, 12)
    assert (objects["images_without"], objects["median_voxels"], objects["touching_fraction"]) == (1, 9, 0)
    assert result.summary()["classes"]["object"]["cases"] == 2


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda label: label.__setitem__((30, 30), 4), "1 of 12 objects are in several pieces: 4"),
        (lambda label: label.__setitem__((30, 30), 99), "1 of 13 objects have one voxel only"),
        (
            lambda label: label.__setitem__(label == 0, 500),
            "object 500 fills more than half of the image and reaches all of its sides",
        ),
    ],
)
def test_suspicious_objects_are_warnings(tmp_path, change, cause):
    label = grid()
    change(label)
    finding, *others = findings(dataset(tmp_path, label, grid()))
    assert [other.cause for other in others if "class 'background'" not in other.cause] == []
    assert (finding.severity, finding.cause) == ("warning", cause)
    assert finding.file.endswith("labels/0.png")


def test_numbers_that_wrapped_at_8_bits_are_explained(tmp_path):
    label = np.zeros((80, 90), np.int64)
    label[2:74:3, 2:86:6] = np.arange(1, 337).reshape(24, 14)  # 336 objects of one voxel
    (pieces, *_) = findings(dataset(tmp_path, np.where(label > 255, label - 255, label).astype(np.uint8), grid()))
    assert "16-bit labels" in pieces.remedy


def test_float_labels_are_a_warning_and_fractions_an_error(tmp_path):
    image = np.zeros((40, 45), np.uint8)
    image[0, 0] = 9
    write_volume(image, tmp_path / "images/0.png")
    (tmp_path / "labels").mkdir()
    path = tmp_path / "labels/0.tif"
    write_volume(grid().astype(np.float32), path)
    (finding,) = findings(tmp_path)
    assert (finding.severity, finding.remedy) == ("warning", "save it as uint16 or int32")
    write_volume(grid() + np.float32(0.5), path)
    (finding,) = findings(tmp_path)
    assert finding.cause == "object numbers must be whole (received 0.5)"


def test_a_label_of_another_size_is_an_error(tmp_path):
    root = dataset(tmp_path, grid(), grid())
    write_volume(grid()[:30], root / "labels/1.png")
    (finding, *_) = findings(root)
    assert finding.severity == "error"
    assert finding.cause.startswith("label and image have different shapes")


def test_grey_and_colour_pictures_may_be_in_one_data_set(tmp_path):
    rng, labels = np.random.default_rng(0), [grid(9 + k) for k in range(4)]
    root = dataset(tmp_path, *labels)

    def colour(index: int) -> None:
        Image.fromarray(rng.integers(0, 255, (45, 40, 3)).astype(np.uint8)).save(root / f"images/{index}.png")

    colour(3)  # one of four
    (error,) = (finding for finding in findings(root) if finding.severity == "error")
    assert (Path(error.file).name, error.cause) == ("3.png", "number of channels is 3, not 1 as in most cases")
    assert '"channel_names" with three entries' in error.remedy
    (root / "dataset.json").write_text('{"channel_names": {"0": "red", "1": "green", "2": "blue"}}')
    assert [finding.cause for finding in findings(root)] == ["grey picture is read as colour"] * 3
    (root / "dataset.json").unlink()
    colour(1)
    colour(2)  # most of them; the first one is grey
    assert len(open_dataset(root, instances=True).channels) == 3
    (warning,) = findings(root)
    assert (warning.severity, warning.cause) == ("warning", "grey picture is read as colour")


def test_missing_objects_at_the_border_are_noticed_over_the_whole_data_set():
    few = measure_objects(np.pad(grid(6)[3:6, 3:32], 2))  # 6 objects near a border, none at it
    assert few.near_border == 6
    assert compare_objects([few] * 8) == []
    (finding,) = compare_objects([few] * 9)
    assert "no object touches the border of an image, though 54 are near it" in finding.cause
    assert compare_objects([few] * 9 + [measure_objects(grid(6)[3:6, 3:32])]) == []


def test_class_labels_are_not_taken_for_instances(tmp_path):
    masks = [(grid(9 + k) > 0).astype(np.uint8) * 255 for k in range(3)]
    with pytest.raises(DataError, match=r"look like class labels.*1 value; 3 of 3 in several pieces.*omit --instances"):
        open_dataset(dataset(tmp_path / "masks", *masks), instances=True)
    classes = [np.where(mask > 0, 1 + grid(9 + k) % 2, 0).astype(np.uint8) for k, mask in enumerate(masks)]
    with pytest.raises(DataError, match="2 values; 6 of 6 in several pieces"):
        open_dataset(dataset(tmp_path / "classes", *classes), instances=True)
    open_dataset(dataset(tmp_path / "one", *[(grid(1) > 0).astype(np.uint8)] * 3), instances=True)  # a cell per image


def test_instances_against_declared_classes_suggest_the_option(tmp_path):
    root = dataset(tmp_path, grid(), grid(7))
    (root / "dataset.json").write_text('{"labels": {"background": 0, "nucleus": 1}}')
    assert {"--instances" in finding.remedy for finding in examine(root).findings} == {True}
    assert not examine(root, instances=True).fails
    with pytest.raises(DataError, match="pass --instances"):
        (root / "dataset.json").unlink()
        open_dataset(root)


def test_views_have_classes_and_numbers(tmp_path):
    views = []
    case = open_dataset(dataset(tmp_path, grid(), grid()), instances=True).cases[0]
    assert check_pair(case, {"background": 0, "cell": 3}, level="voxels", instances=True, visit=views.append) == []
    assert np.array_equal(views[0].objects[0], grid())
    assert np.array_equal(views[0].label[0], 3 * (grid() > 0))


def test_the_sheet_outlines_touching_objects_in_different_colours(tmp_path):
    label = np.zeros((1, 144, 144), np.int32)
    label[0, 20:60, 20:60], label[0, 60:100, 20:60] = 65_537, 65_538
    sheet = ContactSheet()
    sheet.add("a", np.zeros((1, 144, 144), np.float32), label, instances=True)
    drawn = np.asarray(Image.open(sheet.write(tmp_path / "sheet.png", {"background": 0, "object": 1})))
    coloured = drawn[np.ptp(drawn.astype(int), axis=-1) > 60]
    assert len(np.unique(coloured, axis=0)) == 2
    assert len(coloured) < 400  # outlines, not areas
