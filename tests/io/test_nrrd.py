import numpy as np
import pytest
import SimpleITK as sitk

from medunet.errors import ConfigError, DataError, GeometryError
from medunet.geometry import Geometry
from medunet.io import label_names, read_label, read_volume, write_volume
from medunet.io.segments import PALETTE, as_segments

AFFINE = np.array([[-0.8, 0, 0, 10], [0, -0.9, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1]])
LABELS = {"background": 0, "liver": 2, "grüne Niere": 300}
GRID = Geometry(AFFINE, (7, 9, 5))


def labelled() -> np.ndarray:
    voxels = np.zeros((7, 9, 5), np.int16)
    voxels[1:4, 2:6, 1:3] = 2
    voxels[5, 7, 4] = 300
    return voxels


def fields(path) -> dict[str, str]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}


@pytest.fixture
def path(tmp_path):
    return write_volume(labelled(), tmp_path / "a.seg.nrrd", affine=AFFINE, labels=LABELS)


def test_the_header_has_what_slicer_reads(path):
    header = fields(path)
    assert header["NRRD_space"] == "left-posterior-superior"
    values = {"ID": "Segment_2", "Name": "liver", "LabelValue": "2", "Layer": "0", "Extent": "1 3 2 5 1 2"}
    assert {key: header[f"Segment0_{key}"] for key in values} == values
    assert header["Segment1_LabelValue"] == "300"
    assert "SCT^85756007^Tissue~SCT^85756007^Tissue" in header["Segment0_Tags"]
    assert "Segment2_ID" not in header


def test_colours_are_fractions_and_codes_become_terminology(tmp_path):
    codes = {"liver": {"category": ["91723000", "SCT", "Anatomical Structure"], "type": ["10200004", "SCT", "Liver"]}}
    segments = as_segments(LABELS, colors={"liver": [255, 0, 51]}, codes=codes)
    header = fields(write_volume(labelled(), tmp_path / "a.seg.nrrd", affine=AFFINE, labels=segments))
    assert header["Segment0_Color"] == "1 0 0.2"
    assert "~SCT^91723000^Anatomical Structure~SCT^10200004^Liver~" in header["Segment0_Tags"]


def test_medunet_and_itk_read_back_voxels_affine_and_names(path):
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T, labelled())
    volume = read_volume(path)
    assert np.array_equal(volume.image[0].numpy(), labelled())
    assert np.allclose(volume.record.geometry.affine, AFFINE)
    assert label_names(path) == {"background": 0, "liver": 1, "grüne Niere": 2}
    volume = read_label(path, reference=GRID, labels={"x": 0, "LIVER ": 5, "grüne Niere": 9})
    assert np.array_equal(volume.image[0].numpy(), np.select([labelled() == 2, labelled() == 300], [5, 9], 0))
    assert volume.record.format == "seg.nrrd"


def test_an_empty_segment_has_an_empty_extent_and_a_value_without_a_name_gets_one(tmp_path):
    path = write_volume(np.zeros((3, 4, 5), np.uint8), tmp_path / "a.seg.nrrd", labels={"liver": 1})
    assert fields(path)["Segment0_Extent"] == "0 -1 0 -1 0 -1"
    assert not read_label(path, reference=Geometry(np.eye(4), (3, 4, 5))).image.any()
    path = write_volume(labelled(), tmp_path / "a.seg.nrrd", labels={"liver": 2})
    assert label_names(path) == {"background": 0, "liver": 1, "label_300": 2}


def slicer_file(folder, voxels: np.ndarray, header: str):
    """As Slicer writes it: cropped to the segments, and a list of layers where segments overlap."""
    path = folder / "slicer.seg.nrrd"
    head = f"NRRD0004\ntype: unsigned char\nencoding: raw\nspace: left-posterior-superior\n{header}\n"
    path.write_bytes(head.encode() + voxels.tobytes(order="F"))
    return path


def test_cropped_file_of_slicer_is_placed_where_it_was_drawn(tmp_path):
    voxels = np.ones((2, 3, 1), np.uint8)
    path = slicer_file(
        tmp_path,
        voxels,
        "dimension: 3\nsizes: 2 3 1\nspace directions: (0.8,0,0) (0,0.9,0) (0,0,2.5)\nkinds: domain domain domain\n"
        "space origin: (-9.2,-18.2,-25)\nSegment0_ID:=S\nSegment0_Name:=liver\nSegment0_LabelValue:=1\n"
        "Segment0_Layer:=0\n",
    )
    image = read_label(path, reference=GRID).image[0].numpy()
    expected = np.zeros((7, 9, 5))
    expected[1:3, 2:5, 2] = 1
    assert np.array_equal(image, expected)
    with pytest.raises(GeometryError, match="reaches outside the image"):
        read_label(path, reference=Geometry(AFFINE, (7, 4, 5)))
    with pytest.raises(GeometryError, match="does not lie on the image's grid"):
        read_label(path, reference=Geometry(AFFINE * [2, 2, 1, 1], (7, 9, 5)))


def test_the_later_of_overlapping_slicer_layers_wins_with_a_warning(tmp_path):
    voxels = np.zeros((2, 4, 4, 2), np.uint8)
    voxels[0, :3, :3], voxels[1, 2:, 2:] = 1, 1
    path = slicer_file(
        tmp_path,
        voxels,
        "dimension: 4\nsizes: 2 4 4 2\nspace directions: none (1,0,0) (0,1,0) (0,0,1)\n"
        "kinds: list domain domain domain\nspace origin: (0,0,0)\n"
        "Segment0_ID:=A\nSegment0_Name:=a\nSegment0_LabelValue:=1\nSegment0_Layer:=0\n"
        "Segment1_ID:=B\nSegment1_Name:=b\nSegment1_LabelValue:=1\nSegment1_Layer:=1\n",
    )
    volume = read_label(path, reference=Geometry(np.diag([-1.0, -1, 1, 1]), (4, 4, 2)))
    expected = np.zeros((4, 4, 2))
    expected[:3, :3], expected[2:, 2:] = 1, 2
    assert np.array_equal(volume.image[0].numpy(), expected)
    assert volume.record.warnings == ("b: 2 voxels belong to another structure too; the later one is kept",)


def test_a_damaged_file_and_one_without_any_of_the_labels_are_rejected(path):
    with pytest.raises(DataError, match=r"none of the labels .*'liver'.*spleen"):
        read_label(path, reference=GRID, labels={"background": 0, "spleen": 1})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="compressed data are truncated"):
        read_label(path, reference=GRID)


def test_segments_are_ordered_by_value_without_the_background_and_their_colours_repeat():
    segments = as_segments({f"s{value}": value for value in range(20, 0, -1)} | {"nothing": 0, "Background": 21})
    assert [s.value for s in segments] == list(range(1, 21))
    assert segments[0].color == segments[len(PALETTE)].color != segments[1].color


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"colors": {"spleen": [1, 2, 3]}}, "label_colors of unknown labels .*spleen"),
        ({"codes": {"spleen": {}}}, "label_codes of unknown labels .*spleen"),
        ({"colors": {"liver": [1, 2]}}, "invalid colour for 'liver'"),
        ({"colors": {"liver": [1, 2, 256]}}, "invalid colour for 'liver'"),
        ({"codes": {"liver": {"type": [10200004, "SCT", "Liver"]}}}, "invalid code for 'liver'"),
    ],
)
def test_impossible_options_are_rejected(options, cause):
    with pytest.raises(ConfigError, match=cause):
        as_segments({"liver": 1}, **options)
