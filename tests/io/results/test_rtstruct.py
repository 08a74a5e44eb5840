from __future__ import annotations

import warnings

import numpy as np
import pydicom
import pytest
from pydicom.uid import RTStructureSetStorage

from medunet.errors import GeometryError
from medunet.geometry import Geometry
from medunet.io import is_structure_file, read_header, read_label, read_volume
from medunet.io.dicom.references import save_dataset

OBLIQUE = ((0.8, 0.6, 0.0), (-0.48, 0.64, -0.6))
LABELS = {"background": 0, "Leber": 1, "Knöchel": 5}


def test_file_belongs_to_the_patients_study_and_its_slices(tmp_path, make_series, labelled, written):
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
    by_uid = {pydicom.dcmread(f).SOPInstanceUID: pydicom.dcmread(f) for f in folder.iterdir()}
    assert {item.ReferencedSOPInstanceUID for item in series.ContourImageSequence} == set(by_uid)
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        height = by_uid[contour.ContourImageSequence[0].ReferencedSOPInstanceUID].ImagePositionPatient[2]
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        assert len(contour.ContourData) == 3 * contour.NumberOfContourPoints
        assert {float(z) for z in contour.ContourData[2::3]} == {float(height)}
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


def test_contours_between_slices_are_recorded_and_beyond_them_rejected(tmp_path, make_series, labelled, written):
    folder = make_series(tmp_path / "ct")
    path = written("rtstruct", folder, labelled(), tmp_path / "a.dcm")
    changed(path, shift_heights(0.7))  # 0.28 of 2.5 mm
    volume = read_label(path, reference=folder, labels=LABELS)
    assert np.array_equal(volume.image[0].numpy(), labelled())
    assert any("between two slices" in text for text in volume.record.warnings)
    changed(path, shift_heights(2.5))
    with pytest.raises(GeometryError, match=r"a contour is outside the image, which has no slice 6"):
        read_label(path, reference=folder, labels=LABELS)


def test_contours_across_the_slices_are_rejected(tmp_path, make_series, labelled, written):
    path = written("rtstruct", make_series(tmp_path / "ct"), labelled(), tmp_path / "a.dcm")
    other = make_series(tmp_path / "oblique", cosines=OBLIQUE)
    with pytest.raises(GeometryError, match="crosses the image's slices"):
        read_label(path, reference=other)


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
def test_contour_of_more_than_64_kilobytes_comes_back(tmp_path, make_series, dataset_of, implicit):
    folder = make_series(tmp_path / "ct", columns=151, rows=149, slices=2)
    voxels = np.zeros((151, 149, 2), np.uint8)
    voxels[::2, :, 0] = voxels[:, 0, 0] = 1  # a comb
    dataset = dataset_of("rtstruct", folder, voxels)
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
    label = read_label(contours, reference=mask.record.geometry)
    both = np.count_nonzero((label.image * mask.image).numpy())
    dice = 2 * both / (np.count_nonzero(label.image.numpy()) + np.count_nonzero(mask.image.numpy()))
    assert dice >= 0.97
