import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from medunet.errors import ConfigError, DataError, GeometryError
from medunet.io import SavePredictiond, extras, label_names, read_header, read_label, read_volume

LABELS = {"background": 0, "Leber": 1, "Knöchel": 5}


def nrrd(path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T


@pytest.mark.data
@pytest.mark.parametrize("size", ["24x38x3", "23x38x3"])  # 23 columns: frames do not end on whole bytes
def test_real_segmentation_equals_dcmqis_nrrd(test_data, size):
    folder = test_data / "dicom" / "seg_ct_3slice" / size
    volume = read_label(folder / "seg", reference=folder / "image")
    assert volume.image.meta["labels"] == {"background": 0, "Liver": 1}
    assert np.array_equal(volume.image[0].numpy() > 0, nrrd(folder / "nrrd" / "label.nrrd") > 0)
    assert volume.record.format == "dicom-seg"


@pytest.mark.data
def test_real_label_map_segmentation_of_some_slices_equals_dcmqis_nrrd(test_data):
    folder = test_data / "dicom" / "seg_ct_3slice"
    reference = folder / "24x38x3" / "image"
    volume = read_label(folder / "sparse-labelmap-noppv.dcm", reference=reference, labels={"liver": 1})
    expected = nrrd(folder / "sparse_labelmap_noppv_seg.nrrd")
    assert volume.image.any()
    assert np.array_equal(volume.image[0].numpy(), expected == 1)  # the NRRD pads absent slices


@pytest.mark.data
def test_real_overlaps_are_recorded_and_each_structure_is_complete_alone(test_data):
    folder = test_data / "dicom" / "seg_ct_3slice"
    path, reference = folder / "partial_overlaps.dcm", read_header(folder / "ct-3slice").geometry
    names = list(label_names(path))
    assert names == ["background", "GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE"]
    warnings = read_label(path, reference=reference).record.warnings
    assert any("belong to another structure too" in text for text in warnings)
    layers = [nrrd(path) for path in sorted(folder.glob("partial_overlaps-*.nrrd"))]
    for value, name in enumerate(names[1:], start=1):
        mask = read_label(path, reference=reference, labels={name: 1}).image[0].numpy() > 0
        assert np.array_equal(mask, np.any([layer == value for layer in layers], axis=0)), name


@pytest.mark.data
def test_segmentations_of_another_image_and_damaged_ones_are_rejected(test_data, tmp_path):
    folder = test_data / "dicom" / "seg_ct_3slice" / "24x38x3"
    with pytest.raises(GeometryError, match=r"label.seg: segmentation .* on the image's grid"):
        read_label(folder / "seg" / "label.seg", reference=test_data / "dicom" / "seg_ct_3slice" / "ct-3slice")
    path = tmp_path / "label.dcm"
    path.write_bytes((folder / "seg" / "label.seg").read_bytes()[:-100])
    with pytest.raises(DataError, match=r"label.dcm: (pixel data cannot be decoded|cannot be read as DICOM)"):
        read_label(path, reference=folder / "image")


def test_missing_highdicom_names_the_extra(tmp_path, make_series, labelled, monkeypatch):
    monkeypatch.setattr(extras.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError("No module")))
    image = read_volume(make_series(tmp_path / "ct")).image
    with pytest.raises(ConfigError, match=r"highdicom is needed for writing DICOM SEG .*medunet\[dicom\]"):
        SavePredictiond(output_dir=tmp_path, format="dicom-seg").check({"image": image})


def test_segments_have_names_codes_colours_and_the_algorithm(tmp_path, make_series, labelled, written):
    codes = {"Leber": {"category": ["91723000", "SCT", "Anatomical Structure"], "type": ["10200004", "SCT", "Liver"]}}
    folder = make_series(tmp_path / "ct")
    dataset = pydicom.dcmread(written("seg", folder, labelled(), tmp_path / "a.dcm", codes=codes))
    assert dataset.SegmentationType == "BINARY"
    assert int(dataset.NumberOfFrames) == 5 + 5  # slices with a voxel of each segment; empty frames are left out
    liver, other = dataset.SegmentSequence
    assert (liver.SegmentLabel, other.SegmentLabel) == ("Leber", "Knöchel")
    assert liver.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "91723000"
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    assert other.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert liver.SegmentAlgorithmType == "AUTOMATIC"
    assert liver.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "medunet"
    assert len(liver.RecommendedDisplayCIELabValue) == 3
    source = pydicom.dcmread(next(folder.iterdir()))
    assert str(dataset.PatientName) == "Müller^Secret"
    for name in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert dataset[name].value == source[name].value
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID


def test_series_becomes_a_dicom_seg_by_default(tmp_path, make_series, labelled, written):
    pytest.importorskip("highdicom")
    image = read_volume(folder := make_series(tmp_path / "ct")).image
    item = {"image": image, "pred": image * 0 + 5 * (image > 2)}
    save = SavePredictiond(output_dir=tmp_path / "out", labels=LABELS)
    save.check(item)
    path = save(item)["pred_path"]
    assert path == str(tmp_path / "out" / "ct.dcm")
    label = read_label(path, reference=folder, labels=LABELS).image
    assert np.array_equal(label.numpy(), 5 * (image.numpy() > 2))
    assert pydicom.dcmread(path).SOPClassUID.name == "Segmentation Storage"


# Parts of dciodvfy's lines that concern what is copied from the source.
KNOWN_COMPLAINTS = ("needed to build DICOMDIR", "Retired Person Name form")


def run(name: str, package: str, *arguments: object) -> str:
    """Run a program, or skip the test if it is not installed; return what it prints."""
    path = shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent)
    if path is None:
        pytest.skip(f"{name} is not installed: {package}")
    command = [path, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return result.stdout + result.stderr


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_dciodvfy_accepts_dicom_results(tmp_path, make_series, labelled, written, kind):
    codes = {"Leber": {"type": ["10200004", "SCT", "Liver"]}}
    path = written(kind, make_series(tmp_path / "ct"), labelled(), tmp_path / "a.dcm", codes=codes)
    lines = run("dciodvfy", "apt-get install dicom3tools", "-new", path).splitlines()
    assert lines, "dciodvfy names the kind of object"
    complaints = [line for line in lines if line.startswith(("Error", "Warning"))]
    assert [line for line in complaints if not any(known in line for known in KNOWN_COMPLAINTS)] == []


def test_dcmqi_reads_the_same_voxels_at_the_same_position(tmp_path, make_series, labelled, written):
    folder = make_series(tmp_path / "ct")
    path = written("seg", folder, labelled(), tmp_path / "a.dcm")
    options = ["--outputDirectory", tmp_path, "--outputType", "nrrd", "--mergeSegments"]
    run("segimage2itkimage", "pip install dcmqi", "--inputDICOM", path, *options)
    image = sitk.ReadImage(str(tmp_path / "1.nrrd"))
    expected = np.select([labelled() == 1, labelled() == 5], [1, 2], 0)
    assert np.array_equal(sitk.GetArrayFromImage(image).T, expected)
    origin, spacing, direction = read_header(folder).geometry.to_lps()
    assert np.allclose(image.GetOrigin(), origin, atol=1e-3)
    assert np.allclose(image.GetSpacing(), spacing, atol=1e-4)
    assert np.allclose(image.GetDirection(), direction, atol=1e-4)
