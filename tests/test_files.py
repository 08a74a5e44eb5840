"""Atomic writes, locks and checks of output folders; tests/test_crash_safety.py has disks that fail."""

import threading
import time
from pathlib import Path

import pytest

from medunet.errors import DataError
from medunet.files import CAN_LOCK, atomic_path, cache_folder, lock, reject_other_files, write_atomically


def test_an_error_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")  # writers choose the format by it
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    path = write_atomically(tmp_path / "new" / "a", "whole")  # the folder is created, and permissions are ordinary
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_that_cannot_be_read_is_not_reported_as_one_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="source"), atomic_path(tmp_path / "copy"):
        (tmp_path / "source").read_bytes()
    with pytest.raises(DataError, match="copy: cannot be written"), atomic_path(tmp_path / "copy") as temporary:
        temporary.open("rb")


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


@pytest.mark.skipif(not CAN_LOCK, reason="the system knows no such locks")
def test_only_one_thread_holds_a_lock(tmp_path: Path) -> None:
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
    assert not path.exists()
    with lock(path) as held, lock(path, wait=False) as second:
        assert held
        assert not second


def test_the_cache_folder_follows_the_argument_then_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDUNET_CACHE_DIR", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder(tmp_path / "c") == tmp_path / "c"
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("MEDUNET_CACHE_DIR")
    assert cache_folder() == tmp_path / "b" / "medunet"
