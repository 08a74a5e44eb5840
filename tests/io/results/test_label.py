import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.transforms import Compose, LoadImaged

from medunet.errors import DataError, GeometryError, find_cause
from medunet.geometry import Geometry
from medunet.io import LoadLabeld, label_names, read_header, read_label, read_volume, write_volume
from medunet.io.structures import Painting, Structure, paint_structures

AFFINE = np.diag([0.8, 0.9, 2.5, 1.0])
LABELS = {"background": 0, "liver": 1, "kidney": 5}
OBLIQUE = ((0.8, 0.6, 0.0), (-0.48, 0.64, -0.6))


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
@pytest.mark.parametrize("cosines", [((1.0, 0, 0), (0, 1.0, 0)), ((0, 1.0, 0), (0, 0, -1.0)), OBLIQUE])
def test_dicom_results_round_trip_exactly(tmp_path, make_series, *, labelled, written, kind, cosines):
    folder = make_series(tmp_path / "ct", cosines=cosines)
    path = written(kind, folder, labelled(), tmp_path / "a.dcm")
    volume = read_label(path, reference=folder, labels={"Leber": 1, "Knöchel": 5})
    assert np.array_equal(volume.image[0].numpy(), labelled())
    gaps = ("Leber: 1 slices without contour between slices with one",)
    assert volume.record.warnings == (gaps if kind == "rtstruct" else ())
    assert volume.record.geometry.is_close(read_header(folder).geometry)
    assert label_names(path) == {"background": 0, "Leber": 1, "Knöchel": 2}


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_empty_label_maps_are_dicom_results_without_a_voxel(tmp_path, make_series, written, kind):
    folder = make_series(tmp_path / "ct")
    path = written(kind, folder, np.zeros((23, 19, 6), np.uint8), tmp_path / "a.dcm")
    assert label_names(path) == {"background": 0, "Leber": 1, "Knöchel": 2}
    assert not read_label(path, reference=folder).image.any()


def test_label_map_on_another_grid_is_rejected_and_pictures_share_their_shape_only(tmp_path, labelled):
    label = write_volume(labelled(), tmp_path / "a.nii.gz", affine=AFFINE)
    image = write_volume(labelled(), tmp_path / "b.nii.gz", affine=AFFINE * [1, 1, 1.1, 1])
    with pytest.raises(GeometryError, match=r"a.nii.gz: label does not lie on the image's grid"):
        read_label(label, reference=image)
    picture = write_volume(np.eye(5, 6, dtype=np.uint8), tmp_path / "a.png")
    placed = write_volume(np.eye(5, 6, dtype=np.uint8), tmp_path / "plane.nii.gz", affine=np.diag([2.0, 2, 1, 1]))
    for label, image in ((picture, placed), (placed, picture)):
        item = LoadLabeld()({"image": read_volume(image).image, "label": str(label)})
        assert item["label"].shape == (1, 5, 6)
        assert item["label"].sum() == 5
    wrong = write_volume(np.eye(6, 5, dtype=np.uint8), tmp_path / "c.png")
    with pytest.raises(GeometryError, match="does not lie on the image's grid"):
        read_label(wrong, reference=picture)


def test_structures_load_with_the_image_of_a_dicom_series(tmp_path, make_series, labelled, written, caplog):
    folder = make_series(tmp_path / "ct")
    path = written("rtstruct", folder, labelled(), tmp_path / "label.dcm")
    image = LoadImaged("image", reader="medunet.io.MedunetReader", ensure_channel_first=True)
    load = Compose([image, LoadLabeld("label", labels={"background": 0, "Knöchel": 7})])
    with caplog.at_level(logging.WARNING):
        item = load({"image": str(folder), "label": str(path)})
    assert item["label"].shape == item["image"].shape == (1, 23, 19, 6)
    assert item["label"].dtype == torch.float32
    assert torch.equal(item["label"].affine, item["image"].affine)
    assert np.array_equal(item["label"][0].numpy(), 7 * (labelled() == 5))
    assert "structures without a label left out: Leber" in caplog.text


def test_label_without_an_image_is_rejected(tmp_path, labelled):
    with pytest.raises(DataError, match="has no grid"):
        LoadLabeld()({"image": torch.zeros(1, 3, 3, 3), "label": "a.dcm"})
    image = read_volume(write_volume(labelled(), tmp_path / "image.nii.gz", affine=AFFINE)).image
    with pytest.raises(RuntimeError) as info:
        Compose([LoadLabeld()])({"image": image, "label": str(tmp_path / "none.dcm")})
    assert "does not exist" in str(find_cause(info.value))


def test_folder_with_several_segmentations_is_rejected(tmp_path, make_series, labelled, written):
    folder = make_series(tmp_path / "ct")
    (tmp_path / "labels").mkdir()
    for name in ("a.dcm", "b.dcm"):
        written("rtstruct", folder, labelled(), tmp_path / "labels" / name)
    with pytest.raises(DataError, match=r"several segmentations \(received a.dcm, b.dcm\)"):
        read_label(tmp_path / "labels", reference=folder)


def box(*sides: slice) -> Callable[[Geometry], Painting]:
    def paint(reference: Geometry) -> Painting:
        mask = np.zeros(reference.shape, bool)
        mask[sides] = True
        return Painting(mask, ("unusual",))

    return paint


GRID = Geometry(np.eye(4), (4, 4, 4))


def test_the_later_of_overlapping_structures_wins_and_this_is_recorded():
    structures = [Structure("a", 1, box(slice(0, 3))), Structure("b", 2, box(slice(2, 4)))]
    voxels, _, warnings = paint_structures(structures, GRID, labels=None, file="x")
    assert voxels[:, 0, 0].tolist() == [1, 1, 2, 2]
    assert warnings[-1] == "b: 16 voxels belong to another structure too; the later one is kept"
    voxels, names, warnings = paint_structures(structures, GRID, labels={"b": 1, "a": 2}, file="x")
    assert voxels[:, 0, 0].tolist() == [2, 2, 2, 1]
    assert names == {"background": 0, "b": 1, "a": 2}
    assert "a: unusual" in warnings


def test_absent_structures_are_recorded_and_two_of_one_name_are_rejected():
    structures = [Structure("a", 1, box(slice(0, 1))), Structure("A ", 2, box(slice(1, 2)))]
    assert paint_structures(structures, GRID, labels=None, file="x")[1] == {"background": 0, "a_1": 1, "A_2": 2}
    with pytest.raises(DataError, match="x: two structures have the same name"):
        paint_structures(structures, GRID, labels={"a": 1}, file="x")
    painted = paint_structures(structures[:1], GRID, labels={"a": 1, "spleen": 2}, file="x")
    assert "no structure of the name spleen" in painted[2]
