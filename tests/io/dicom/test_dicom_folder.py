"""Rules of folders and archives: series, localizers, junk, DICOMDIR; and single files."""

import errno
import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from monai.transforms import LoadImage
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import RTDoseStorage, SegmentationStorage

from medunet.errors import DataError, GeometryError, SecurityError
from medunet.geometry import Geometry
from medunet.io import MedunetReader, is_dicom_folder, read_header, read_label, read_volume
from medunet.io.dicom import zipped as module
from medunet.io.dicom.references import read_planes

GRID = Geometry(np.eye(4), (2, 2, 2))
DIRECTORY = "1.2.840.10008.1.3.10"


def test_two_series_are_listed_and_one_can_be_chosen(tmp_path, made):
    made.series(tmp_path / "ct", made.positions(4), series="1.2.3", prefix="a")
    folder = made.series(tmp_path / "ct", made.positions(3), series="1.2.4", prefix="b")
    with pytest.raises(DataError, match=r"several series .*1\.2\.3 \(CT, 4 images\), 1\.2\.4 \(CT, 3 images\)"):
        read_header(folder)
    assert read_volume(folder, series_uid="1.2.4").image.shape == (1, 7, 5, 3)
    assert read_header(folder, series_uid="1.2.3").geometry.shape == (7, 5, 4)
    with pytest.raises(DataError, match=r"does not contain this series \(received 1\.2\.5, expected 1\.2\.3"):
        read_volume(folder, series_uid="1.2.5")


def test_localizer_is_dropped_and_recorded(tmp_path, made):
    localizer = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    made.series(tmp_path / "ct", made.positions(1), series="1.2", prefix="a", ImageType=localizer)
    made.series(tmp_path / "ct", made.positions(2), prefix="c", ImageType=localizer)
    with pytest.raises(DataError, match="only localizers"):
        read_volume(tmp_path / "ct")
    folder = made.series(tmp_path / "ct", made.positions(4), series="1.2", prefix="b")
    assert read_volume(folder).record.warnings == ("3 localizers dropped",)


def test_junk_and_objects_without_an_image_are_ignored_and_counted(tmp_path, made):
    folder = made.series(tmp_path / "ct", made.positions())
    junk = {"notes.txt": b"junk", ".DS_Store": b"", "short": b"DICM", "._s01.dcm": b"\0\5\x16\7" + bytes(4096)}
    for name, content in junk.items():
        (folder / name).write_bytes(content)
    (folder / "sub").mkdir()
    for name, kind in (("seg.dcm", SegmentationStorage), ("dose.dcm", RTDoseStorage)):
        other = made.empty_file(folder / name, kind)
        other.Rows, other.Columns = 5, 7
        made.save(other)
    volume = read_volume(folder)
    assert volume.image.shape == (1, 7, 5, 4)
    assert volume.record.warnings == ("6 files without an image ignored",)
    assert is_dicom_folder(folder)
    with pytest.raises(DataError, match=r"seg\.dcm: file has no DICOM image but Segmentation; .*read_label"):
        read_volume(folder / "seg.dcm")
    with pytest.raises(DataError, match=r"dose\.dcm: file has no DICOM image but RT Dose"):
        read_volume(folder / "dose.dcm")
    for file in folder.glob("s0*"):
        file.unlink()
    with pytest.raises(DataError, match=r"folder has no DICOM image but RT Dose, Segmentation"):
        read_volume(folder)


DAMAGES = {
    "zeroed": (lambda content: bytes(len(content)), "zeros in place of a DICOM header"),
    "empty": (lambda content: b"", "zero bytes"),
    "cut in the preamble": (lambda content: content[:100], "zeros in place of a DICOM header"),
    "cut in the pixels": (lambda content: content[:-9], "truncated pixel data"),
    "link to nothing": (None, "does not exist"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_last_slice_is_rejected_and_named_or_skipped_on_request(tmp_path, made, kind):
    folder = made.series(tmp_path / "ct", made.positions(5))
    damage, cause = DAMAGES[kind]
    last = folder / "s01"
    content = last.read_bytes()
    last.unlink()
    if damage is None:
        last.symlink_to(folder / "annex" / "object")
    else:
        last.write_bytes(damage(content))
    for read in (read_volume, read_header):
        with pytest.raises(DataError, match=rf"ct/s01: .*{cause}.*--skip-unreadable"):
            read(folder)
    volume = read_volume(folder, skip_unreadable=True)
    assert volume.image.shape == (1, 7, 5, 4)
    assert [text[:27] for text in volume.record.warnings] == ["1 unreadable files skipped:"]
    (folder / "s03").write_bytes(b"")
    with pytest.raises(GeometryError, match="a slice is missing"):  # between others a slice is missing even if skipped
        read_volume(folder, skip_unreadable=True)
    if kind == "cut in the pixels":  # a single file is never skipped
        with pytest.raises(DataError, match=cause):
            read_volume(last, skip_unreadable=True)


MIXED = {
    "patients": {"PatientID": lambda n: f"SECRET-{n // 2}", "SeriesInstanceUID": "del"},
    "studies": {"StudyInstanceUID": lambda n: f"1.2.{n // 2}"},
    "frames of reference": {"FrameOfReferenceUID": lambda n: f"1.2.{n // 2}"},
}


@pytest.mark.parametrize("what", MIXED)
def test_mixed_identities_in_one_series_are_rejected_without_their_values(tmp_path, made, what):
    folder = made.series(tmp_path / "ct", made.positions(), **MIXED[what])
    with pytest.raises(DataError, match=rf"ct/s0\d: slices of several {what} in one series") as caught:
        read_header(folder)
    assert "SECRET" not in str(caught.value)


def test_dicom_file_with_another_formats_ending_is_named_as_such(tmp_path, made):
    file = (made.series(tmp_path / "ct", made.positions(1)) / "s01").rename(tmp_path / "ct.nii.gz")
    with pytest.raises(DataError, match=r"ct\.nii\.gz: is a DICOM file .*rename it to \.dcm"):
        read_header(file)


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + ".nii.gz", "nul\0.dcm"])
def test_impossible_name_is_a_typed_error(tmp_path, name):
    for read in (read_volume, read_header, lambda path: read_label(path, reference=GRID)):
        with pytest.raises(DataError, match=r"cannot be opened: File name too long|does not exist|null byte"):
            read(tmp_path / name)


def test_locked_folder_is_a_typed_error(tmp_path, made, monkeypatch):
    folder = made.series(tmp_path / "ct", made.positions())

    def locked(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "iterdir", locked)
    for read in (read_volume, read_header, lambda path: read_label(path, reference=GRID), is_dicom_folder):
        with pytest.raises(DataError, match="ct: cannot be opened: Permission denied"):
            read(folder)


def test_folders_without_images_and_missing_paths_are_rejected(tmp_path):
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        with pytest.raises(DataError, match="empty: folder has no DICOM image"):
            read_volume(tmp_path / "empty")
        (tmp_path / "empty" / "notes.txt").write_text("junk")
    assert not is_dicom_folder(tmp_path / "empty")
    with pytest.raises(DataError, match=r"none\.dcm: does not exist"):
        read_volume(tmp_path / "none.dcm")


def write_directory(made, folder, *names):
    """Write a DICOMDIR that names files, each by its parts."""
    directory = made.empty_file(folder / "DICOMDIR", DIRECTORY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom on names that the standard does not allow
        records = [Dataset() for _ in names]
        for record, name in zip(records, names, strict=True):
            record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", name
        directory.DirectoryRecordSequence = Sequence(records)
        return made.save(directory)


def test_dicomdir_in_a_folder_is_ignored_and_recorded_even_if_damaged(tmp_path, made):
    folder = made.series(tmp_path / "ct", made.positions())
    path = write_directory(made, folder, ["NONE", "S1"])  # these files are not read
    for _ in range(2):
        assert read_volume(folder).record.warnings == ("1 DICOMDIR ignored",)
        path.write_bytes(path.read_bytes()[:-7])


def test_dicomdir_as_the_path_is_followed(tmp_path, made):
    made.series(tmp_path / "IMAGES", made.positions())
    path = write_directory(made, tmp_path, *(["IMAGES", f"s0{k}"] for k in (1, 2, 3, 4)))
    assert read_volume(path).image.shape == (1, 7, 5, 4)
    assert read_volume(path).record.files == 4
    write_directory(made, tmp_path, ["IMAGES", "s09"])
    with pytest.raises(DataError, match=r"DICOMDIR names a missing file \(received s09\)"):
        read_volume(path)


@pytest.mark.parametrize("name", [["..", "secret"], ["a", "..", "..", "secret"], ["/etc/passwd"], ["a/../../secret"]])
def test_references_out_of_the_folder_are_rejected(tmp_path, made, name):
    folder = made.series(tmp_path / "ct", made.positions())
    dicomdir = write_directory(made, folder, ["s01"], name)
    for path in (folder, dicomdir):
        with pytest.raises(SecurityError, match="points outside its folder"):
            read_volume(path)
    (folder / "LINK").symlink_to(made.series(tmp_path / "outside", made.positions()))
    with pytest.raises(SecurityError, match="points outside its folder"):
        read_volume(write_directory(made, folder, ["LINK", "s01"]))


def test_loadimage_reads_a_series_and_its_errors_pass(tmp_path, made):
    folder = made.series(tmp_path / "ct", made.positions())
    image = LoadImage(reader=MedunetReader, ensure_channel_first=True, image_only=True)(folder)
    assert image.shape == (1, 7, 5, 4)
    assert image.meta["name"] == "ct"
    assert not any("Secret" in str(value) or "SECRET" in str(value) for value in image.meta.values())
    with pytest.raises(GeometryError, match="single slice"):
        LoadImage(reader=MedunetReader(spatial_dims=3), image_only=True)(folder / "s01")


def test_enhanced_multi_frame_file_is_a_volume(tmp_path, made):
    path = made.multiframe(tmp_path / "mf.dcm", made.positions()[[2, 0, 3, 1]])
    volume = read_volume(path)
    assert volume.image.shape == (1, 7, 5, 4)
    assert volume.record.geometry.spacing_mm == (0.7, 0.5, 2.5)
    for place, frame in enumerate([1, 3, 0, 2]):  # each with its own slope
        expected = made.pixels(frame).T.astype(np.float32) * (frame + 1) - 1000
        assert np.array_equal(volume.image[0, ..., place].numpy(), expected)
    assert (volume.record.files, volume.record.warnings) == (1, ())
    assert read_volume(tmp_path).record.geometry.is_close(volume.record.geometry)  # in a folder too


def test_multi_frame_rules_are_those_of_series(tmp_path, made):
    with pytest.raises(GeometryError, match="a slice is missing"):
        read_volume(made.multiframe(tmp_path / "gap.dcm", np.delete(made.positions(6), 2, axis=0)))
    tilted = made.positions()
    tilted[:, 1] += 0.5 * np.arange(4)
    assert read_volume(made.multiframe(tmp_path / "tilt.dcm", tilted)).record.geometry.is_sheared
    cut = made.multiframe(tmp_path / "cut.dcm", made.positions())
    cut.write_bytes(cut.read_bytes()[:-71])
    with pytest.raises(DataError, match="truncated pixel data"):
        read_header(cut)
    bare = made.multiframe(tmp_path / "bare.dcm", made.positions(), PerFrameFunctionalGroupsSequence=Sequence([]))
    with pytest.raises(DataError, match="does not give the positions of its frames"):
        read_header(bare)
    path = made.multiframe(tmp_path / "time.dcm", np.repeat(made.positions(3), 2, axis=0), moments=[1, 2] * 3)
    with pytest.raises(DataError, match=r"2 phases .*TemporalPositionIndex 1, 2"):
        read_volume(path)
    assert read_volume(path, phase=1).image.shape == (1, 7, 5, 3)


@pytest.mark.parametrize("frames", [0, 3_000_000_000])
def test_impossible_numbers_of_frames_are_rejected(tmp_path, made, frames):
    path = made.multiframe(tmp_path / "mf.dcm", made.positions(), NumberOfFrames=frames)
    with pytest.raises(DataError, match=r"impossible pixel format|truncated pixel data|positions of its frames"):
        read_volume(path)


def zipped(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"PATIENT/STUDY/{file.name}")
    return path


@pytest.fixture
def folder(tmp_path, made) -> Path:
    return made.series(tmp_path / "ct", made.positions(), StudyInstanceUID="1.2.4", FrameOfReferenceUID="1.2.5")


def test_series_in_an_archive_equals_the_series_in_a_folder(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = zipped(tmp_path / "ct.zip", folder)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/._s01", b"junk")
    volume, expected = read_volume(path), read_volume(folder)
    assert np.array_equal(volume.image.numpy(), expected.image.numpy())
    assert volume.record.geometry.is_close(expected.record.geometry)
    assert read_header(path).geometry.is_close(expected.record.geometry)
    assert volume.record.path == path
    assert volume.record.warnings == ()
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("isolated", [False, True])
def test_slices_are_cited_by_their_place_in_the_archive(tmp_path, folder, isolated):
    path = zipped(tmp_path / "ct.zip", folder)
    record = read_volume(path, isolated=isolated).record
    assert {frame.file.parent for frame in record.frames} == {path}
    planes = read_planes(record.frames, record.geometry)
    positions = [plane.header.ImagePositionPatient[2] for plane in planes]
    assert positions == [30, 32.5, 35, 37.5]
    _, meta = MedunetReader().get_data((path,))
    assert meta["filename_or_obj"] == str(path)
    assert meta["name"] == "ct"


def test_a_single_image_in_an_archive_is_an_image_in_the_plane(tmp_path, made):
    (tmp_path / "x").mkdir()
    made.picture(tmp_path / "x" / "a.dcm")
    assert read_volume(zipped(tmp_path / "x.zip", tmp_path / "x")).image.shape == (1, 7, 5)


def test_an_error_names_the_file_in_the_archive(tmp_path, folder):
    file = sorted(folder.iterdir())[2]
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"ct\.zip/\d+_{file.name}: truncated pixel data"):
        read_volume(zipped(tmp_path / "ct.zip", folder))
    file.unlink()
    with pytest.raises(GeometryError, match=r"ct\.zip: slice distances are uneven"):
        read_volume(zipped(tmp_path / "ct.zip", folder))


def test_archives_that_leave_their_folder_or_unpack_to_too_much_are_rejected(tmp_path, folder, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../outside", b"x")
    with pytest.raises(SecurityError, match="a path that leaves the folder"):
        read_volume(tmp_path / "bad.zip")
    assert not (tmp_path / "outside").exists()
    path = zipped(tmp_path / "ct.zip", folder)
    for limit, value, cause in (("MAX_FILES", 3, "too many files"), ("MAX_BYTES", 1000, "archive is too big")):
        monkeypatch.setattr(module, limit, value)
        with pytest.raises(SecurityError, match=cause):
            read_volume(path)


def test_damaged_archives_and_those_without_dicom_are_rejected(tmp_path):
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DataError):
        read_volume(tmp_path / "bad.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("a.txt", "b.txt"):
            archive.writestr(name, b"x")
    with pytest.raises(DataError, match="has no DICOM image"):
        read_volume(tmp_path / "a.zip")
