"""ZIP archives of DICOM are read as the series in them; nothing leaves the temporary folder."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from medunet.errors import DataError, GeometryError, SecurityError
from medunet.io import MedunetReader, read_header, read_volume
from medunet.io.dicom import zipped as module
from medunet.io.dicom.references import read_planes

IDENTITY = {"StudyInstanceUID": "1.2.4", "FrameOfReferenceUID": "1.2.5"}


def zipped(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"PATIENT/STUDY/{file.name}")
    return path


@pytest.fixture
def folder(tmp_path, made) -> Path:
    return made.series(tmp_path / "ct", made.positions(), **IDENTITY)


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


def test_an_entry_that_leaves_the_folder_is_rejected(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../outside", b"x")
    with pytest.raises(SecurityError, match="a path that leaves the folder"):
        read_volume(tmp_path / "bad.zip")
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    ("limit", "cause"), [({"MAX_FILES": 3}, "too many files"), ({"MAX_BYTES": 1000}, "unpacks to too much")]
)
def test_sizes_are_limited(tmp_path, folder, monkeypatch, limit, cause):
    for name, value in limit.items():
        monkeypatch.setattr(module, name, value)
    with pytest.raises(SecurityError, match=cause):
        read_volume(zipped(tmp_path / "ct.zip", folder))


def test_damaged_archives_and_those_without_dicom_are_rejected(tmp_path):
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DataError):
        read_volume(tmp_path / "bad.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("a.txt", "b.txt"):
            archive.writestr(name, b"x")
    with pytest.raises(DataError, match="has no DICOM image"):
        read_volume(tmp_path / "a.zip")
