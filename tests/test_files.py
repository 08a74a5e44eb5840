"""Atomic writing: a reader finds the old file or the new one, never a part."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from medunet.errors import DataError
from medunet.files import (
    CAN_LOCK,
    atomic_path,
    cache_folder,
    lock,
    reject_other_files,
    write_atomically,
)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomically(tmp_path / "metrics.json", "old")

    def fail(self: Path, target: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(DataError, match="no space"):
        write_atomically(path, "new")
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]
    assert path.read_text() == "old"


def test_an_error_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.nii.gz") as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_is_not_reported_as_one_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="source"), atomic_path(tmp_path / "copy"):
        (tmp_path / "source").read_bytes()
    with pytest.raises(DataError, match="copy: cannot be written"), atomic_path(tmp_path / "copy") as temporary:
        temporary.with_name(temporary.name).open("rb")


def test_an_output_folder_is_empty_or_of_the_same_command(tmp_path: Path) -> None:
    reject_other_files(tmp_path / "new", own="configs")
    (tmp_path / ".hidden").touch()
    reject_other_files(tmp_path, own="configs")
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(DataError, match=r"contains other files \(received thesis\.doc"):
        reject_other_files(tmp_path, own="configs")
    with pytest.raises(DataError, match="must be a folder"):
        reject_other_files(tmp_path / "thesis.doc", own="configs")
    (tmp_path / "configs").mkdir()
    reject_other_files(tmp_path, own="configs")


def test_the_temporary_name_keeps_the_ending(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"whole")
    assert (tmp_path / "a.nii.gz").read_bytes() == b"whole"


def test_an_existing_file_can_be_protected(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "first")
    with pytest.raises(DataError, match="exists already"):
        write_atomically(tmp_path / "a", "second", overwrite=False)
    assert (tmp_path / "a").read_text() == "first"


@pytest.mark.skipif(not CAN_LOCK, reason="the system knows no such locks")
def test_a_lock_has_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with lock(path) as held, lock(path, wait=False) as second:
        assert held
        assert not second
    assert not path.exists()
    with lock(path, wait=False) as free:
        assert free


@pytest.mark.skipif(not CAN_LOCK, reason="the system knows no such locks")
def test_those_who_wait_for_a_lock_take_turns(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "a.lock", [], []

    def hold(number: int) -> None:
        for _ in range(20):
            with lock(path):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.remove(number)

    threads = [threading.Thread(target=hold, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80
    assert max(most) == 1


def test_the_cache_is_where_the_user_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDUNET_CACHE_DIR", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder(tmp_path / "c") == tmp_path / "c"
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("MEDUNET_CACHE_DIR")
    assert cache_folder() == tmp_path / "b" / "medunet"
