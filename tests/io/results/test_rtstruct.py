import warnings

import numpy as np
import pydicom
import pytest
from pydicom.uid import RTStructureSetStorage
from scipy import ndimage

from medunet.errors import GeometryError
from medunet.geometry import Geometry
from medunet.io import is_structure_file, read_header, read_label, read_volume
from medunet.io.dicom.contours import fill_contours, trace_contours
from medunet.io.dicom.references import save_dataset
from medunet.metrics import dice

OBLIQUE = ((0.8, 0.6, 0.0), (-0.48, 0.64, -0.6))
LABELS = {"background": 0, "Leber": 1, "Knöchel": 5}


def test_rtstruct_refers_to_the_study_and_its_slices(tmp_path, make_series, labelled, written):
    folder = make_series(tmp_path / "ct")
    path = written(
        "rtstruct", folder, labelled(), tmp_path / "a.dcm", codes={"Leber": {"type": ["10200004", "SCT", "Liver"]}}
    )
    dataset = pydicom.dcmread(path)
    source = pydicom.dcmread(next(folder.iterdir()))
    assert dataset.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID == RTStructureSetStorage
    assert str(dataset.PatientName) == "Müller^Secret"
    for name in ("PatientID", "StudyInstanceUID", "StudyDate", "AccessionNumber"):
        assert dataset[name].value == source[name].value
    assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
    assert [roi.ROIName for roi in dataset.StructureSetROISequence] == ["Leber", "Knöchel"]
    [frame] = dataset.ReferencedFrameOfReferenceSequence
    [series] = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert frame.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    slices = {pydicom.dcmread(file).SOPInstanceUID for file in folder.iterdir()}
    assert {image.ReferencedSOPInstanceUID for image in series.ContourImageSequence} == slices
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        assert len(contour.ContourData) == 3 * contour.NumberOfContourPoints
    [code] = dataset.RTROIObservationsSequence[0].RTROIIdentificationCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning) == ("10200004", "SCT", "Liver")


def changed(path, change):
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)
    return path


def test_unusual_contours_are_recorded(tmp_path, make_series, labelled, written):
    def change(dataset):
        contours = dataset.ROIContourSequence[1].ContourSequence
        contours.append(contours[0])
        contours[-2].ContourGeometricType = "POINT"

    folder = make_series(tmp_path / "ct")
    path = changed(written("rtstruct", folder, labelled(), tmp_path / "a.dcm"), change)
    warnings = read_label(path, reference=folder, labels={"Knöchel": 5}).record.warnings
    assert "Knöchel: 1 points and open contours left out" in warnings
    assert "Knöchel: 1 duplicate contours counted once" in warnings
    assert "structures without a label left out: Leber" in warnings


def shift_heights(mm: float):
    def change(dataset: pydicom.Dataset) -> None:
        for region in dataset.ROIContourSequence:
            for contour in region.ContourSequence:
                points = np.array(contour.ContourData, dtype=float)
                points[2::3] += mm
                contour.ContourData = points.round(5).tolist()

    return change


def test_contours_between_slices_are_recorded_and_beyond_or_across_them_rejected(
    tmp_path, make_series, labelled, written
):
    folder = make_series(tmp_path / "ct")
    path = written("rtstruct", folder, labelled(), tmp_path / "a.dcm")
    changed(path, shift_heights(0.7))  # 0.28 of 2.5 mm
    volume = read_label(path, reference=folder, labels=LABELS)
    assert np.array_equal(volume.image[0].numpy(), labelled())
    assert any("between two slices" in text for text in volume.record.warnings)
    changed(path, shift_heights(2.5))
    with pytest.raises(GeometryError, match=r"a contour is outside the image, which has no slice 6"):
        read_label(path, reference=folder, labels=LABELS)
    with pytest.raises(GeometryError, match="crosses the image's slices"):
        read_label(path, reference=make_series(tmp_path / "oblique", cosines=OBLIQUE))


def test_reference_may_be_mirrored_or_have_swapped_axes(tmp_path, make_series, labelled, written):
    folder = make_series(tmp_path / "ct")
    path = written("rtstruct", folder, labelled(), tmp_path / "a.dcm")
    affine = read_header(folder).geometry.affine
    flip = np.array([[0, 0, 1, 0], [0, -1, 0, 18], [1, 0, 0, 0], [0, 0, 0, 1.0]])  # (z, rows - 1 - y, x)
    volume = read_label(path, reference=Geometry(affine @ flip, (6, 19, 23)), labels=LABELS)
    assert np.array_equal(volume.image[0].numpy(), labelled().transpose(2, 1, 0)[:, ::-1])


def test_image_series_is_not_a_structure_file(tmp_path, make_series, labelled, written):
    folder = make_series(tmp_path / "ct")
    assert not is_structure_file(folder)
    assert is_structure_file(written("rtstruct", folder, labelled(), folder / "label.dcm"))
    assert is_structure_file(folder)


@pytest.mark.parametrize("implicit", [True, False])
def test_contour_of_more_than_64_kilobytes_round_trips(tmp_path, make_series, written, implicit):
    folder = make_series(tmp_path / "ct", columns=151, rows=149, slices=2)
    voxels = np.zeros((151, 149, 2), np.uint8)
    voxels[::2, :, 0] = voxels[:, 0, 0] = 1  # a comb
    dataset = pydicom.dcmread(written("rtstruct", folder, voxels, tmp_path / "comb.dcm"))
    [contour] = dataset.ROIContourSequence[0].ContourSequence
    contour.ContourData = np.repeat(np.reshape(contour.ContourData, (-1, 3)), 20, axis=0).ravel().tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydicom's, where types are written
        save_dataset(dataset, tmp_path / "a.dcm", implicit=implicit)
    assert np.array_equal(read_label(tmp_path / "a.dcm", reference=folder).image[0].numpy(), voxels)


@pytest.mark.data
@pytest.mark.parametrize(("modality", "volume_ml"), [("CT", 53.3), ("PET", 54.3), ("MR_T1", 53.3)])
def test_real_contours_are_read_without_a_warning_and_come_back(test_data, tmp_path, written, modality, volume_ml):
    folder = test_data / "dicom" / "rtstruct_STS_002" / modality / "dicom"
    volume = read_label(folder / "mask", reference=folder / "image")
    assert volume.record.warnings == ()
    assert list(volume.image.meta["labels"]) == ["background", f"GTV_Mass_{modality}"]
    voxel_ml = np.prod(volume.record.geometry.spacing_mm) / 1000
    assert float(volume.image.sum()) * voxel_ml == pytest.approx(volume_ml, abs=0.1)
    label = volume.image[0].numpy().astype(np.uint8)
    path = written("rtstruct", folder / "image", label, tmp_path / "a.dcm")
    assert np.array_equal(read_label(path, reference=folder / "image", labels=LABELS).image[0].numpy(), label)


@pytest.mark.data
def test_real_contours_agree_with_the_masks_of_ibsi(test_data):
    mask = read_volume(test_data / "STS_GTV_CT" / "labelsTr" / "STS_002.nii.gz")
    contours = test_data / "dicom" / "rtstruct_STS_002" / "CT" / "dicom" / "mask" / "RS.dcm"
    assert dice(read_label(contours, reference=mask.record.geometry).image, mask.image) >= 0.97


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 1), (9, 11), (13, 13)])
@pytest.mark.parametrize("noise", [0, -1e-4, 1e-4], ids=["exact", "less", "more"])
def test_any_mask_is_restored_from_its_rounded_contours(shape, noise):
    generator = np.random.default_rng(0)
    for density in (0, 0.2, 0.5, 0.8, 1):
        for mask in generator.random((10, *shape)) < density:
            moved = [polygon + noise for polygon in trace_contours(mask)]
            assert np.array_equal(fill_contours(moved, shape), mask)


def test_each_part_is_one_polygon_whatever_its_holes():
    mask = np.zeros((20, 30), bool)
    mask[1:12, 1:14] = True
    mask[3:5, 3:5] = mask[6:10, 8:12] = False  # two holes
    mask[7, 9] = True  # an island within a hole
    mask[14:18, 20:29] = True
    assert len(list(trace_contours(mask))) == ndimage.label(mask)[1] == 3


def test_keyhole_leaves_and_returns_by_the_same_corners():
    mask = np.ones((7, 7), bool)
    mask[3, 3] = False
    [polygon] = trace_contours(mask)
    corners, counts = np.unique(polygon, axis=0, return_counts=True)
    assert sorted(counts)[-3:] == [1, 2, 2]  # one corner on the rim and one on the hole repeat
    assert len(polygon) == len(corners) + 2
    [rectangle] = trace_contours(np.ones((5, 9), bool))
    assert len(rectangle) == 8  # its corners are cut, and its straight sides have no vertices between


def test_polygon_within_a_polygon_is_a_hole_and_parts_outside_are_cut_off():
    square = np.array([[-5.0, -5], [-5, 5.5], [5.5, 5.5], [5.5, -5]])
    inner = np.array([[1.5, 1.5], [1.5, 3.5], [3.5, 3.5], [3.5, 1.5]])
    mask = fill_contours([square, inner], (8, 9))
    expected = np.zeros((8, 9), bool)
    expected[:6, :6] = True
    expected[2:4, 2:4] = False
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_neighbours_with_a_common_side_share_no_voxel_and_omit_none(axis):
    first = np.array([[0.0, 0.0], [0, 6], [3, 6], [3, 0]])  # some centres are exactly on the common side
    squares = [square[:, ::-1] if axis else square for square in (first, first + np.array([3, 0]))]
    one, two = (fill_contours([square], (10, 10)) for square in squares)
    assert not (one & two).any()
    assert (one | two).sum() == 36
    assert one.sum() == 18
