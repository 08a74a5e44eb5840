"""An untrusted archive writes plain files into one new folder, or nothing."""

import gzip
import io
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from medunet.errors import DataError, SecurityError
from medunet.trust import unpack


def make_zip(path: Path, entries: dict[str, bytes], *, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, content)
    return path


def make_tar(path: Path, *members: tarfile.TarInfo, content: bytes = b"x") -> Path:
    with tarfile.open(path, "w:gz") as file:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            file.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "a/../../evil", "C:/evil", "a\\..\\..\\evil", "..", "a:stream"]
)
def test_paths_outside_the_folder_are_rejected(name: str, tmp_path: Path) -> None:
    zipped = make_zip(tmp_path / "a.zip", {name: b"x"})
    tarred = make_tar(tmp_path / "a.tgz", member(name))
    for archive in (zipped, tarred):
        with pytest.raises(SecurityError, match="leaves the folder"):
            unpack(archive, tmp_path / "out")
    assert names(tmp_path) == {"a.zip", "a.tgz"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_rejected(kind: bytes, tmp_path: Path) -> None:
    with pytest.raises(SecurityError, match="link or a device"):
        unpack(make_tar(tmp_path / "a.tgz", member("configs/x", kind, "/etc/passwd")), tmp_path / "out")
    with pytest.raises(SecurityError, match="link or a device"):
        unpack(make_zip(tmp_path / "a.zip", {"x": b"/etc"}, mode=stat.S_IFLNK | 0o777), tmp_path / "out")
    assert names(tmp_path) == {"a.zip", "a.tgz"}


def test_gigabytes_of_zeros_are_not_unpacked(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"configs/x.json": bytes(32 << 20)})
    with pytest.raises(SecurityError, match="archive is too big"):
        unpack(archive, tmp_path / "out", max_bytes=16 << 20)
    lying = bytearray(archive.read_bytes())  # the size in the directory is 1 byte
    place = lying.rindex(b"PK\x01\x02")
    lying[place + 24 : place + 28] = (1).to_bytes(4, "little")
    (tmp_path / "b.zip").write_bytes(lying)
    with pytest.raises((SecurityError, DataError)):
        unpack(tmp_path / "b.zip", tmp_path / "out", max_bytes=16 << 20)
    info = tarfile.TarInfo("././@PaxHeader")  # a header, which `tarfile` reads in one piece
    info.type, info.size = tarfile.XHDTYPE, 12 << 20
    with gzip.open(tmp_path / "c.tgz", "wb", compresslevel=1) as file:
        file.write(info.tobuf() + bytes(info.size))
    with pytest.raises(SecurityError, match="archive is too big"):
        unpack(tmp_path / "c.tgz", tmp_path / "out")
    assert names(tmp_path) == {"a.zip", "b.zip", "c.tgz"}


def test_too_many_files_and_duplicate_names_are_rejected(tmp_path: Path) -> None:
    many = make_zip(tmp_path / "a.zip", {f"x{index}": b"" for index in range(11)})
    with pytest.raises(SecurityError, match="too many files"):
        unpack(many, tmp_path / "out", max_files=10)
    twice = make_zip(tmp_path / "b.zip", {"configs/train.json": b"{}", "configs/Train.json": b"{}"})
    with pytest.raises(SecurityError, match="name twice"):
        unpack(twice, tmp_path / "out")


def test_a_file_that_is_not_an_archive_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no archive")
    for name in ("a.zip", "missing.tar"):
        with pytest.raises(DataError, match="cannot be unpacked"):
            unpack(tmp_path / name, tmp_path / "out")
    assert names(tmp_path) == {"a.zip"}


def test_a_plain_archive_becomes_a_folder(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"mine/configs/train.json": b"{}", "mine/models/model.pt": b"x"})
    assert (unpack(archive, tmp_path / "out") / "configs" / "train.json").read_bytes() == b"{}"
    flat = make_tar(tmp_path / "a.tgz", member("configs/train.json"))
    assert (unpack(flat, tmp_path / "flat") / "configs" / "train.json").is_file()
    with pytest.raises(DataError, match="exists already"):
        unpack(flat, tmp_path / "flat")


def test_damage_anywhere_raises_a_typed_error(tmp_path: Path) -> None:
    content = bytes(np.random.default_rng(1).integers(0, 9, 3000, dtype=np.uint8))
    wholes = {
        "a.zip": make_zip(tmp_path / "a.zip", {"configs/é.json": content, "x": content}).read_bytes(),
        "a.tgz": make_tar(tmp_path / "a.tgz", member("x"), content=content).read_bytes(),
    }
    for name, whole in wholes.items():
        for place in range(0, len(whole), 11):
            (tmp_path / name).write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
            try:
                shutil.rmtree(unpack(tmp_path / name, tmp_path / "out"))
            except (DataError, SecurityError):
                continue
    assert names(tmp_path) == {"a.zip", "a.tgz"}
