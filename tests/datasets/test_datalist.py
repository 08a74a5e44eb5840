"""Layouts of data sets, sections of one, and inputs of predictions."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medunet.datasets import Case, datalist, list_inputs, open_dataset
from medunet.errors import ConfigError, DataError, SecurityError
from medunet.io import output_name, write_volume

MSD_LABELS = {"0": "background", "1": "liver"}
NNUNET_LABELS = {"background": 0, "liver": 1}


def volume(path: Path, values: tuple[float, ...] = (0, 1)) -> Path:
    data = np.resize(np.asarray(values), (5, 6, 7))
    return write_volume(data.astype("float32" if data.dtype.kind == "f" else "int16"), path)


def picture(path: Path, values: tuple[int, ...] = (0, 255)) -> Path:
    return write_volume(np.resize(values, (5, 7)).astype(np.uint8), path)


def manifest(root: Path, **content) -> Path:
    root.mkdir(exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def pairs(root: Path, *names: str, images: str = "imagesTr", labels: str = "labelsTr") -> Path:
    for name in names:
        volume(root / images / f"{name}.nii.gz")
        volume(root / labels / f"{name}.nii.gz")
    return root


def entries(*names: str) -> list[dict[str, str]]:
    return [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]


def names(cases) -> list[str]:
    return [case.name for case in cases]


def nnunet(root: Path, *, channels: dict[str, str], labels: dict[str, object] = NNUNET_LABELS) -> Path:
    for case in ("case_1", "case_2"):
        for channel in range(len(channels)):
            volume(root / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
        volume(root / "labelsTr" / f"{case}.nii.gz")
    return manifest(root, channel_names=channels, labels=labels, numTraining=2, file_ending=".nii.gz")


def test_msd_folder_and_its_json_open_alike(tmp_path):
    root = pairs(tmp_path / "msd", "liver_2", "liver_10")
    test = volume(root / "imagesTs" / "liver_3.nii.gz")
    lists = {"training": entries("liver_2", "liver_10"), "test": ["./imagesTs/liver_3.nii.gz"]}
    manifest(root, name="Liver", modality={"0": "CT"}, labels=MSD_LABELS, **lists)
    dataset = open_dataset(root)
    assert dataset == open_dataset(root / "dataset.json")
    assert (dataset.name, dataset.spatial_dims, dataset.file_ending) == ("Liver", 3, ".nii.gz")
    assert (dataset.labels, dataset.channels) == (NNUNET_LABELS, ("CT",))
    assert names(dataset.cases) == ["liver_10", "liver_2"]
    image, label = (str(root / folder / "liver_10.nii.gz") for folder in ("imagesTr", "labelsTr"))
    assert dataset.cases[0].item() == {"image": image, "label": label, "name": "liver_10"}
    assert dataset.test == (Case("liver_3", (test,)),)
    assert "label" not in dataset.test[0].item()


def test_msd_volume_with_several_modalities_is_one_file(tmp_path):
    write_volume(np.zeros((5, 6, 7, 2), np.int16), tmp_path / "imagesTr" / "a.nii.gz")
    volume(tmp_path / "labelsTr" / "a.nii.gz")
    manifest(tmp_path, modality={"1": "T2", "0": "T1"}, labels=MSD_LABELS, training=entries("a"))
    dataset = open_dataset(tmp_path)
    assert (dataset.channels, len(dataset.cases[0].images)) == (("T1", "T2"), 1)


@pytest.mark.parametrize("declared", ["channels", "labels only", "nothing"])
def test_nnunet_channels_are_grouped_and_lose_their_number(tmp_path, declared):
    nnunet(tmp_path, channels={"0": "T1", "1": "T2"}, labels={**NNUNET_LABELS, "ignore": 2})
    if declared == "labels only":
        manifest(tmp_path, labels=NNUNET_LABELS)
    elif declared == "nothing":
        (tmp_path / "dataset.json").unlink()
    dataset = open_dataset(tmp_path)
    assert names(dataset.cases) == ["case_1", "case_2"]
    assert dataset.channels == (("T1", "T2") if declared == "channels" else ("channel_0", "channel_1"))
    assert [Path(p).name for p in dataset.cases[1].item()["image"]] == ["case_2_0000.nii.gz", "case_2_0001.nii.gz"]
    if declared == "channels":
        assert (dataset.labels, dataset.ignore) == (NNUNET_LABELS, 2)


def test_a_colour_picture_of_nnunet_has_all_its_channels_in_one_file(tmp_path):
    for case in ("road-1", "road-2"):
        colours = np.random.default_rng(0).integers(0, 255, (3, 5, 7)).astype(np.uint8)
        for folder in ("imagesTr", "imagesTs"):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(colours.transpose(2, 1, 0)).save(tmp_path / folder / f"{case}_0000.png")
        picture(tmp_path / "labelsTr" / f"{case}.png", (0, 1))
    manifest(tmp_path, channel_names={"0": "R", "1": "G", "2": "B"}, labels=NNUNET_LABELS, file_ending=".png")
    dataset = open_dataset(tmp_path)
    assert names(dataset.cases) == names(dataset.test) == ["road-1", "road-2"]
    assert (dataset.channels, dataset.spatial_dims) == (("R", "G", "B"), 2)
    assert [len(case.images) for case in dataset.cases] == [1, 1]


def test_files_are_paired_by_name_with_any_ending(tmp_path):
    for name in ("b", "a"):
        picture(tmp_path / "images" / f"{name}.tif", (1, 2, 3))
        picture(tmp_path / "labels" / f"{name}.png")
    (tmp_path / "images" / ".DS_Store").write_bytes(b"junk")
    (tmp_path / "images" / "notes.txt").write_text("junk")
    dataset = open_dataset(tmp_path)
    assert names(dataset.cases) == ["a", "b"]
    assert dataset.labels == {"background": 0, "label_255": 255}
    assert (dataset.spatial_dims, dataset.file_ending, dataset.channels) == (2, ".png", ("image",))


@pytest.mark.parametrize("cases", [["frame_0000", "frame_0001", "frame_0002"], ["scan_0000"]])
def test_numbers_in_label_names_are_part_of_the_case_name(tmp_path, cases):
    pairs(tmp_path, *cases)
    assert names(open_dataset(tmp_path).cases) == cases


def test_files_without_partner_are_named_and_counted(tmp_path):
    pairs(tmp_path, *(f"x{k}" for k in range(8)))
    for k in range(7):
        (tmp_path / "labelsTr" / f"x{k}.nii.gz").unlink()
    volume(tmp_path / "labelsTr" / "stray.nii.gz")
    first = r"7 images without label: x0.nii.gz, x1.nii.gz, x2.nii.gz, x3.nii.gz, x4.nii.gz and 2 more"
    with pytest.raises(DataError, match=f"{first}; 1 label without image: stray.nii.gz"):
        open_dataset(tmp_path)


def test_two_images_of_one_name_are_rejected(tmp_path):
    for path in ("images/a.png", "images/a.tif", "labels/a.png"):
        picture(tmp_path / path)
    with pytest.raises(DataError, match="two images have the same name"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("path", ["imagesTr/../../secret.nii.gz", "/etc/passwd"])
def test_path_that_leaves_the_data_set_is_rejected(tmp_path, path):
    root = manifest(tmp_path / "set", labels=MSD_LABELS, training=[{"image": path, "label": "./a.nii.gz"}])
    with pytest.raises(SecurityError, match="leaves the folder"):
        open_dataset(root)


def test_missing_files_of_the_list_are_named(tmp_path):
    root = manifest(pairs(tmp_path, "a"), labels=MSD_LABELS, training=entries("a", "b"))
    with pytest.raises(DataError, match=r"2 listed files are missing: b\.nii\.gz, b\.nii\.gz"):
        open_dataset(root)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("{", "invalid JSON"),
        ("[]", "must be a JSON object"),
        ('{"training": [{"image": "a.nii.gz"}]}', "image without label"),
        ('{"training": [], "labels": {"0": "background", "1": "x"}}', "imagesTr is missing"),
        ('{"channel_names": {"0": "CT"}, "labels": {"background": 0, "whole": [1, 2]}}', "regions"),
        ('{"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 0}}', "share a name or a value"),
        ('{"channel_names": {"0": "CT"}, "labels": {}}', "labels are missing"),
    ],
)
def test_unusable_json_is_rejected(tmp_path, content, cause):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=f"dataset.json: .*{cause}|{cause}"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        (tuple(range(33)), "too many values"),
        ((0, 0.5), r"fractional values \(received 0.5\)"),
        ((0, -1), "negative values"),
        ((0,), "more than one value"),
    ],
)
def test_labels_that_are_not_classes_are_rejected(tmp_path, values, cause):
    volume(tmp_path / "images" / "a.nii.gz", (0, 0.25))
    volume(tmp_path / "labels" / "a.nii.gz", values)
    with pytest.raises(DataError, match=cause):
        open_dataset(tmp_path)


def test_labels_are_scanned_in_all_files_and_again_after_a_change(tmp_path):
    pairs(tmp_path, "a", "b", images="images", labels="labels")
    volume(tmp_path / "labels" / "b.nii.gz", (0, 7))
    assert open_dataset(tmp_path).labels == {"background": 0, "label_1": 1, "label_7": 7}
    volume(tmp_path / "labels" / "b.nii.gz", (0, 3, 70))
    assert open_dataset(tmp_path).labels == {"background": 0, "label_1": 1, "label_3": 3, "label_70": 70}


def test_folder_without_a_known_layout_is_rejected(tmp_path):
    with pytest.raises(DataError, match="no data set found"):
        open_dataset(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="folder labels is missing"):
        open_dataset(tmp_path)


def test_datalist_returns_the_sections(tmp_path):
    root = pairs(tmp_path, *"abcde")

    def listed(section: str, **options) -> str:
        return "".join(item["name"] for item in datalist(root, section=section, fold=1, folds=2, **options))

    assert [listed(section) for section in ("training", "validation", "all", "test")] == ["ace", "bd", "abcde", ""]
    assert [listed(section, validation_cases=["c"]) for section in ("training", "validation")] == ["abde", "c"]
    assert listed("training", skip_cases=["b"]) == "ad"
    with pytest.raises(ConfigError, match=r"unknown validation cases \(received \['z'\]\)"):
        listed("training", validation_cases=["z"])
    with pytest.raises(ConfigError, match="none is left for training"):
        listed("training", validation_cases=[*"abcde"])
    with pytest.raises(ConfigError, match="unknown section"):
        listed("train")


def test_inputs_are_expanded_in_sorted_order(tmp_path):
    second, first = volume(tmp_path / "x" / "b.nii.gz"), picture(tmp_path / "x" / "a.png")
    (tmp_path / "x" / "readme.txt").write_text("junk")
    lone = volume(tmp_path / "lone.nii.gz")
    assert list_inputs([tmp_path / "x", lone, lone]) == [first, second, lone]


def test_input_channels_are_grouped_only_if_the_network_has_as_many(tmp_path):
    files = [volume(tmp_path / f"c_{case}_{channel:04d}.nii.gz") for case in (1, 2) for channel in (0, 1)]
    assert list_inputs(tmp_path, channels=2) == [tuple(files[:2]), tuple(files[2:])]
    assert list_inputs(files[:2], channels=2) == [tuple(files[:2])]
    for channels in (1, 3):
        with pytest.raises(DataError, match=r"case c_1 has 2 channels \(received c_1_0000.nii.gz, c_1_0001.nii.gz"):
            list_inputs(tmp_path, channels=channels)
    files[3].unlink()
    with pytest.raises(DataError, match=r"case c_2 has 1 channel \(.*, expected 2: c_2_0000, c_2_0001\)"):
        list_inputs(tmp_path, channels=2)


def test_the_only_number_0000_is_dropped_from_names(tmp_path):
    files = [volume(tmp_path / f"c{case}_0000.nii.gz") for case in (1, 2)]
    assert list_inputs(tmp_path) == files
    assert [output_name(path) for path in files] == ["c1", "c2"]


def test_numbered_cases_and_frames_stay_single_inputs(tmp_path):
    files = [volume(tmp_path / f"case_{k:04d}.nii.gz") for k in range(12)]
    assert list_inputs(files[:4]) == files[:4]
    others = [volume(tmp_path / f"other_{k:04d}.nii.gz") for k in range(12)]
    assert list_inputs(tmp_path) == [*files, *others]


@pytest.mark.parametrize("is_declared", [True, False])
def test_training_cases_with_another_number_of_channels_are_rejected(tmp_path, is_declared):
    root = nnunet(tmp_path, channels={"0": "T1", "1": "T2"})
    (root / "imagesTr" / "case_2_0001.nii.gz").unlink()
    if not is_declared:
        (root / "dataset.json").unlink()
    with pytest.raises(DataError, match="case case_2 has 1 channel "):
        open_dataset(root)


def test_unusable_inputs_are_rejected(tmp_path):
    with pytest.raises(DataError, match="folder has no image"):
        list_inputs(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        list_inputs(tmp_path / "none.nii.gz")
    with pytest.raises(DataError, match="no input is given"):
        list_inputs([])
    with pytest.raises(DataError, match="two inputs have the same name"):
        list_inputs([volume(tmp_path / folder / "a.nii.gz") for folder in ("x", "y")])
