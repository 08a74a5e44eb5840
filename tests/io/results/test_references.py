"""DICOM results refer to the images that were read: each reference has the position and voxels of its slice."""

import re
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import LoadImaged
from pydicom.uid import EnhancedMRImageStorage, SegmentationStorage

from medunet.errors import DataError, MedunetError
from medunet.io import MedunetReader, SavePredictiond, label_names, read_header, read_label

IDENTITY = {"StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4"}


def add(made, folder, positions, first=0, series="1.2.5", **options):
    """Add slices to a folder; the first has the pixels of this number."""
    return made.series(folder, positions, series=series, pixels=lambda n: made.pixels(n + first), **IDENTITY, **options)


def two_phases(made, folder):
    for phase in (0, 1):
        add(made, folder, made.positions(), 10 * phase, prefix=f"p{phase}_", TemporalPositionIdentifier=phase + 1)
    return folder, {"phase": 1}


def two_kernels(made, folder):
    add(made, folder, made.positions(), prefix="a")
    return add(made, folder, made.positions(), 10, "1.2.6", prefix="b"), {"series_uid": "1.2.6"}


def beside_others(made, folder):
    """Write a series with a localizer, duplicates and a segmentation."""
    add(made, folder, made.positions(1), 20, prefix="a", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    add(made, folder, made.positions()[1:3], 1, prefix="b")
    other = made.empty_file(folder / "segmentation.dcm", SegmentationStorage)
    other.Rows = other.Columns = 5
    made.save(other)
    return add(made, folder, made.positions(), prefix="z"), {}


def gantry_tilt(made, folder):
    return add(made, folder, made.positions() + np.outer(range(4), [0, 0.4, 0])), {}


def orientations_that_differ_in_the_last_digits(made, folder):
    cosines = {"ImageOrientationPatient": lambda n: [1, 1e-6 * n, 0, -1e-6 * n, 1, 0]}
    return add(made, folder, made.positions(), **cosines), {}


def multi_frame(made, folder):
    positions = np.repeat(made.positions()[::-1], 2, axis=0)  # descending, two phases at each position
    folder.mkdir()
    return made.multiframe(folder / "all.dcm", positions, moments=[1, 2] * 4, **IDENTITY), {"phase": 1}


def enhanced_mr(made, folder):
    """Write an enhanced MR as Philips does: each frame has its own orientation and pixel spacing."""
    folder.mkdir()
    path = made.multiframe(folder / "all.dcm", made.positions(), **IDENTITY)
    header = pydicom.dcmread(path)
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    [shared] = header.SharedFunctionalGroupsSequence
    for group in header.PerFrameFunctionalGroupsSequence:
        group.PixelMeasuresSequence = shared.PixelMeasuresSequence
        group.PlaneOrientationSequence = shared.PlaneOrientationSequence
    header.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
    made.save(header)
    return path, {}


KINDS = (two_phases, two_kernels, beside_others, gantry_tilt)
KINDS += (orientations_that_differ_in_the_last_digits, multi_frame, enhanced_mr)
FORMATS = pytest.mark.parametrize("format", ["dicom-seg", "rtstruct"])


def loaded(path, options):
    """Read an image as a bundle does, in a batch, and add a prediction with voxels in all slices but the last."""
    load = LoadImaged(["image"], reader=MedunetReader(**options), ensure_channel_first=True)
    [batch] = DataLoader(Dataset([{"image": str(path)}], load), batch_size=1)
    [item] = decollate_batch(batch)
    label = torch.zeros(item["image"].shape)
    label[0, 1:4, 2:4, :-1] = 1
    return {**item, "pred": MetaTensor(label, affine=item["image"].affine)}


def saver(folder, format="rtstruct"):
    if format == "dicom-seg":
        pytest.importorskip("highdicom")
    return SavePredictiond(output_dir=folder, format=format, labels={"liver": 1})


def slice_of(image, frame):
    """Return the position and the voxels of a file, or of one of its frames."""
    if frame is None:
        return np.array(image.ImagePositionPatient, dtype=float), image.pixel_array.T * 1.0 - 1000
    group = image.PerFrameFunctionalGroupsSequence[frame - 1]
    slope = float(group.PixelValueTransformationSequence[0].RescaleSlope)
    position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
    return position, image.pixel_array[frame - 1].T * slope - 1000


def references_of(path):
    """Return the position and the only referenced image of a SEG's frames or an RTSTRUCT's contours."""
    result = pydicom.dcmread(path)
    if result.Modality == "SEG":
        groups = result.PerFrameFunctionalGroupsSequence
        sources = [group.DerivationImageSequence[0].SourceImageSequence for group in groups]
        places = [group.PlanePositionSequence[0].ImagePositionPatient for group in groups]
    else:
        contours = result.ROIContourSequence[0].ContourSequence
        sources = [contour.ContourImageSequence for contour in contours]
        places = [contour.ContourData[:3] for contour in contours]
    return [(np.array(place, dtype=float), image) for place, [image] in zip(places, sources, strict=True)]


@FORMATS
@pytest.mark.parametrize("kind", KINDS)
def test_references_match_the_position_and_voxels_of_their_slices(tmp_path, made, kind, format):
    path, options = kind(made, tmp_path / "in")
    item, save = loaded(path, options), saver(tmp_path / "out", format)
    save.check(item)
    result = Path(save(item)["pred_path"])
    assert result.name == ("all.dcm" if path.is_file() else "in.dcm")
    images = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, (tmp_path / "in").iterdir())}
    volume = item["image"][0].numpy()
    cited = references_of(result)
    assert len(cited) == volume.shape[2] - 1
    to_voxel = np.linalg.inv(read_header(path, **options).geometry.affine)
    for place, image in cited:
        index = round(float((to_voxel @ [-place[0], -place[1], place[2], 1])[2]))
        position, voxels = slice_of(images[image.ReferencedSOPInstanceUID], image.get("ReferencedFrameNumber"))
        axes = slice(2 if format == "rtstruct" else 0, 3)  # a contour begins anywhere in its slice
        assert np.allclose(place[axes], position[axes], atol=1e-4)
        assert np.array_equal(voxels, volume[..., index])


@pytest.mark.parametrize("options", [{"uneven": "resample"}, {"tilt": "resample"}])
def test_resampled_series_are_not_referenced(tmp_path, made, options, caplog):
    positions = made.positions()
    positions[:, 2 if "uneven" in options else 1] += 0.4 * np.arange(4) ** (2 if "uneven" in options else 1)
    item = loaded(made.series(tmp_path / "ct", positions, **IDENTITY), options)
    with pytest.raises(DataError, match="ct: the series was resampled"):
        saver(tmp_path).check(item)
    pytest.importorskip("highdicom")
    assert saver(tmp_path, "auto")(item)["pred_path"].endswith("ct.nii.gz")
    assert "the series was resampled" in caplog.text


UNUSUAL = {
    "invalid dates": {"StudyDate": "***", "PatientBirthDate": "***", "StudyTime": "noon"},
    "unknown sex": {"PatientSex": "X"},
    "no thickness": {"SliceThickness": ""},
}


@FORMATS
@pytest.mark.parametrize("unusual", UNUSUAL)
def test_unusual_headers_do_not_prevent_a_dicom_result(tmp_path, made, unusual, format):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydicom's, of the invalid values
        folder = made.series(tmp_path / "ct", made.positions(), **IDENTITY, **UNUSUAL[unusual])
    item, save = loaded(folder, {}), saver(tmp_path / "out", format)
    save.check(item)
    result = pydicom.dcmread(save(item)["pred_path"])
    assert result.StudyInstanceUID == IDENTITY["StudyInstanceUID"]
    assert "PatientBirthDate" in result
    assert "PatientSex" in result


def test_result_that_cannot_be_dicom_is_detected_before_the_network_runs(tmp_path, made, caplog):
    item = loaded(made.series(tmp_path / "ct", made.positions(), StudyInstanceUID="1.2.3"), {})
    with pytest.raises(DataError, match="ct/s04: the header lacks FrameOfReferenceUID"):
        saver(tmp_path, "dicom-seg").check(item)
    assert saver(tmp_path, "auto")(item)["pred_path"].endswith("ct.nii.gz")
    [line] = [line for line in caplog.messages if "not as DICOM SEG" in line]
    assert "ct/s04: the header lacks FrameOfReferenceUID" in line


def test_unknown_value_representations_end_in_typed_errors(tmp_path, made):
    folder = made.series(tmp_path / "ct", made.positions(), SeriesNumber=3, PatientBirthDate="19500101", **IDENTITY)
    item, grid, rejected = loaded(folder, {}), read_header(folder).geometry, 0
    label, image = Path(saver(tmp_path / "out")(item)["pred_path"]), folder / "s01"
    checks = (label, label_names), (label, lambda path: read_label(path, reference=grid))
    for path, read in (*checks, (image, lambda path: saver(tmp_path / "none").check(item))):
        whole = path.read_bytes()
        for match in re.finditer(rb"(CS|DA|DS|IS|LO|PN|SH|TM|UI|US|SQ)", whole[132:]):
            place = 132 + match.start()
            path.write_bytes(whole[:place] + b"ZZ" + whole[place + 2 :])
            try:
                read(path)
            except MedunetError as error:
                assert path.stem in str(error)
                rejected += 1
        path.write_bytes(whole)
    assert rejected > 10
