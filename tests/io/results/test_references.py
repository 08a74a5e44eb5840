"""DICOM results refer to the images that were read: each reference has the position and voxels of its slice."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import LoadImaged
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset as DicomDataset
from pydicom.tag import Tag
from pydicom.uid import EnhancedMRImageStorage, SegmentationStorage

from medunet.errors import DataError, MedunetError
from medunet.io import MedunetReader, SavePredictiond, label_names, read_header, read_label
from medunet.io.dicom import references

IDENTITY = {"StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4"}


Kind = tuple[Path, dict[str, Any]]
"""A path, and the options to read it with."""


def add(made: Any, folder: Path, positions: np.ndarray, first: int = 0, series: str = "1.2.5", **options: Any) -> Path:
    """Add slices to a folder; the first has the pixels of this number."""
    return made.series(folder, positions, series=series, pixels=lambda n: made.pixels(n + first), **IDENTITY, **options)


def two_phases(made: Any, folder: Path) -> Kind:
    for phase in (0, 1):
        add(made, folder, made.positions(), 10 * phase, prefix=f"p{phase}_", TemporalPositionIdentifier=phase + 1)
    return folder, {"phase": 1}


def two_kernels(made: Any, folder: Path) -> Kind:
    add(made, folder, made.positions(), prefix="a")
    return add(made, folder, made.positions(), 10, "1.2.6", prefix="b"), {"series_uid": "1.2.6"}


def with_localizer(made: Any, folder: Path) -> Kind:
    add(made, folder, made.positions(1), 20, prefix="a", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    return add(made, folder, made.positions(), prefix="z"), {}


def with_duplicates(made: Any, folder: Path) -> Kind:
    add(made, folder, made.positions()[1:3], 1, prefix="b")
    return add(made, folder, made.positions(), prefix="a"), {}


def gantry_tilt(made: Any, folder: Path) -> Kind:
    positions = made.positions()
    positions[:, 1] += 0.4 * np.arange(len(positions))
    return made.series(folder, positions, **IDENTITY), {}


def beside_a_segmentation(made: Any, folder: Path) -> Kind:
    made.series(folder, made.positions(), prefix="a", **IDENTITY)
    other = made.empty_file(folder / "segmentation.dcm", SegmentationStorage)
    other.Rows = other.Columns = 5
    made.save(other)
    return folder, {}


def orientations_that_differ_in_the_last_digits(made: Any, folder: Path) -> Kind:
    cosines = {"ImageOrientationPatient": lambda n: [1, 1e-6 * n, 0, -1e-6 * n, 1, 0]}
    return made.series(folder, made.positions(), **cosines, **IDENTITY), {}


def multi_frame(made: Any, folder: Path) -> Kind:
    positions = np.repeat(made.positions()[::-1], 2, axis=0)  # descending, two phases at each position
    folder.mkdir()
    return made.multiframe(folder / "all.dcm", positions, moments=[1, 2] * 4, **IDENTITY), {"phase": 1}


def enhanced_mr(made: Any, folder: Path) -> Kind:
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


KINDS = (two_phases, two_kernels, with_localizer, with_duplicates, gantry_tilt, beside_a_segmentation)
KINDS += (orientations_that_differ_in_the_last_digits, multi_frame, enhanced_mr)


def loaded(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Read an image as a bundle does, in a batch, and add a prediction with voxels in all slices but the last."""
    load = LoadImaged(["image"], reader=MedunetReader(**options), ensure_channel_first=True)
    [batch] = DataLoader(Dataset([{"image": str(path)}], load), batch_size=1)
    [item] = decollate_batch(batch)
    label = torch.zeros(item["image"].shape)
    label[0, 1:4, 2:4, :-1] = 1
    return {**item, "pred": MetaTensor(label, affine=item["image"].affine)}


def voxels_of(image: pydicom.Dataset, frame: int | None) -> np.ndarray:
    pixels = image.pixel_array if frame is None else image.pixel_array[frame - 1]
    slope = image.get("RescaleSlope", 1)
    if frame is not None:
        slope = image.PerFrameFunctionalGroupsSequence[frame - 1].PixelValueTransformationSequence[0].RescaleSlope
    return pixels.T * float(slope) - 1000


def position_of(image: pydicom.Dataset, frame: int | None) -> np.ndarray:
    if frame is not None:
        image = image.PerFrameFunctionalGroupsSequence[frame - 1].PlanePositionSequence[0]
    return np.array(image.ImagePositionPatient, dtype=float)


def cited(path: Path) -> list[tuple[np.ndarray, str, int | None]]:
    """Position, instance and frame number of each reference of a SEG's frames or an RTSTRUCT's contours."""
    result = pydicom.dcmread(path)
    if result.Modality == "SEG":
        groups = result.PerFrameFunctionalGroupsSequence
        sources = [group.DerivationImageSequence[0].SourceImageSequence for group in groups]
        places = [group.PlanePositionSequence[0].ImagePositionPatient for group in groups]
    else:
        contours = result.ROIContourSequence[0].ContourSequence
        sources = [contour.ContourImageSequence for contour in contours]
        places = [contour.ContourData[:3] for contour in contours]
    return [
        (np.array(place, dtype=float), one.ReferencedSOPInstanceUID, one.get("ReferencedFrameNumber"))
        for place, [one] in zip(places, sources, strict=True)
    ]


@pytest.mark.parametrize("format", ["dicom-seg", "rtstruct"])
@pytest.mark.parametrize("kind", KINDS)
def test_references_have_the_position_and_voxels_of_their_slices(
    tmp_path: Path, made: Any, kind: Callable[..., Kind], format: str
) -> None:
    if format == "dicom-seg":
        pytest.importorskip("highdicom")
    path, options = kind(made, tmp_path / "in")
    item = loaded(path, options)
    save = SavePredictiond(output_dir=tmp_path / "out", format=format, labels={"liver": 1})
    save.check(item)
    result = Path(save(item)["pred_path"])
    assert result.name == ("all.dcm" if path.is_file() else "in.dcm")
    references = cited(result)
    images = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, (tmp_path / "in").iterdir())}
    volume = item["image"][0].numpy()
    assert len(references) == volume.shape[2] - 1
    to_voxel = np.linalg.inv(read_header(path, **options).geometry.affine)
    for place, uid, frame in references:
        slice_number = round(float((to_voxel @ [-place[0], -place[1], place[2], 1])[2]))
        position = position_of(images[uid], frame)
        assert place[2] == pytest.approx(position[2], abs=1e-4)
        if format == "dicom-seg":
            assert np.allclose(place, position, atol=1e-4)
        assert np.array_equal(voxels_of(images[uid], frame), volume[..., slice_number])


@pytest.mark.parametrize("options", [{"uneven": "resample"}, {"tilt": "resample"}])
def test_resampled_series_are_not_referred_to(
    tmp_path: Path, made: Any, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    positions = made.positions()
    if "uneven" in options:
        positions[-1, 2] += 0.6
    else:
        positions[:, 1] += 0.4 * np.arange(len(positions))
    item = loaded(made.series(tmp_path / "ct", positions, **IDENTITY), options)
    with pytest.raises(DataError, match="ct: the series was resampled"):
        SavePredictiond(output_dir=tmp_path, format="rtstruct", labels={"liver": 1}).check(item)
    pytest.importorskip("highdicom")
    assert SavePredictiond(output_dir=tmp_path, labels={"liver": 1})(item)["pred_path"].endswith("ct.nii.gz")
    assert "the series was resampled" in caplog.text


UNUSUAL = {
    "no date of birth, sex or accession number": {},
    "invalid dates": {"StudyDate": "***", "PatientBirthDate": "***", "StudyTime": "noon"},
    "unknown sex": {"PatientSex": "X"},
    "no thickness": {"SliceThickness": ""},
}


@pytest.mark.parametrize("format", ["dicom-seg", "rtstruct"])
@pytest.mark.parametrize("unusual", UNUSUAL)
def test_unusual_headers_do_not_prevent_a_dicom_result(tmp_path: Path, made: Any, unusual: str, format: str) -> None:
    if format == "dicom-seg":
        pytest.importorskip("highdicom")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydicom's, of the invalid values
        folder = made.series(tmp_path / "ct", made.positions(), **IDENTITY, **UNUSUAL[unusual])
    item = loaded(folder, {})
    save = SavePredictiond(output_dir=tmp_path / "out", format=format, labels={"liver": 1})
    save.check(item)
    result = pydicom.dcmread(save(item)["pred_path"])
    assert result.StudyInstanceUID == IDENTITY["StudyInstanceUID"]
    assert "PatientBirthDate" in result
    assert "PatientSex" in result


def test_result_that_cannot_be_dicom_is_detected_before_the_network_runs(
    tmp_path: Path, made: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("highdicom")
    folder = made.series(tmp_path / "ct", made.positions(), StudyInstanceUID="1.2.3")
    item = loaded(folder, {})
    image = {"image": item["image"]}
    with pytest.raises(DataError, match="ct/s04: the header lacks FrameOfReferenceUID"):
        SavePredictiond(output_dir=tmp_path, format="dicom-seg", labels={"liver": 1}).check(image)
    save = SavePredictiond(output_dir=tmp_path, labels={"liver": 1})
    save.check(image)
    assert save(item)["pred_path"].endswith("ct.nii.gz")
    [line] = [line for line in caplog.messages if "not as DICOM SEG" in line]
    assert "ct/s04: the header lacks FrameOfReferenceUID" in line


def with_unknown_types(content: bytes) -> Iterator[bytes]:
    """Yield copies of a file, each with one value representation that does not exist."""
    for found in re.finditer(rb"(CS|DA|DS|IS|LO|PN|SH|TM|UI|US|SQ)", content[132:]):
        place = 132 + found.start()
        yield content[:place] + b"ZZ" + content[place + 2 :]


def test_unknown_value_representations_end_in_typed_errors(tmp_path: Path, made: Any) -> None:
    folder = made.series(tmp_path / "ct", made.positions(), SeriesNumber=3, PatientBirthDate="19500101", **IDENTITY)
    item = loaded(folder, {})
    grid = read_header(folder).geometry
    rejected = 0
    for format in ("dicom-seg", "rtstruct"):
        if format == "dicom-seg" and importlib.util.find_spec("highdicom") is None:
            continue
        save = SavePredictiond(output_dir=tmp_path / format, format=format, labels={"liver": 1})
        label, first = Path(save(item)["pred_path"]), folder / "s01"
        for content in with_unknown_types(label.read_bytes()):
            (tmp_path / "label.dcm").write_bytes(content)
            for read in (label_names, lambda path: read_label(path, reference=grid)):
                try:
                    read(tmp_path / "label.dcm")
                except MedunetError:
                    rejected += 1
        whole = first.read_bytes()
        for content in with_unknown_types(whole):
            first.write_bytes(content)
            try:
                SavePredictiond(output_dir=tmp_path / "none", format=format, labels={"liver": 1}).check(item)
            except MedunetError as error:
                assert "s01" in str(error)
                rejected += 1
        first.write_bytes(whole)
    assert rejected > 10


def test_an_empty_class_of_unknown_type_is_rejected(tmp_path: Path, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = made.series(tmp_path / "ct", made.positions(), **IDENTITY) / "s01"
    header, tag = DicomDataset(), Tag("SOPClassUID")
    header._dict[tag] = RawDataElement(tag, "U\0", 0, None, 0, False, True, True)  # as pydicom reads it
    monkeypatch.setattr(references, "read_dataset", lambda path, tags: header)
    with pytest.raises(DataError, match="s01"):
        references.storage_class(file)
