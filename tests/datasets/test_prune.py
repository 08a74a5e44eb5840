"""Preprocessed cases that nobody needs are removed, and none that anybody uses."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.transforms import Compose, LoadImaged

from medunet.datasets import StoreDataset, list_store, prune_store
from medunet.datasets.cache import prune
from medunet.errors import ConfigError
from medunet.files import CAN_LOCK, Hold, knows_locks, lock
from medunet.io import MedunetReader, write_volume

pytestmark = pytest.mark.skipif(not CAN_LOCK, reason="the system knows no such locks")


def items(folder: Path, count: int = 3) -> list[dict[str, Any]]:
    paths = [folder / f"case_{index}.nii.gz" for index in range(count)]
    for path in paths:
        write_volume(np.random.default_rng(0).random((8, 9, 10), np.float32), path, affine=np.eye(4))
    return [{"image": str(path), "name": path.name} for path in paths]


def filled(data: list[dict[str, Any]], folder: Path, channels: int = 1) -> StoreDataset:
    transform = Compose([LoadImaged("image", reader=MedunetReader(channels=channels), ensure_channel_first=True)])
    dataset = StoreDataset(data, transform, store_dir=folder)
    dataset.prepare()
    return dataset


def make_old(folder: Path, days: float) -> None:
    for manifest in folder.glob("*/entry.json"):
        then = time.time() - days * 86_400
        os.utime(manifest, (then, then))


def names(cases: Any) -> set[str]:
    return {Path(case.source).name for case in cases}


def test_what_was_not_used_for_long_goes_and_is_made_anew_when_wanted(tmp_path: Path) -> None:
    data, store = items(tmp_path), tmp_path / "store"
    folder = filled(data, store).folder
    assert names(list_store(store)) == {"case_0.nii.gz", "case_1.nii.gz", "case_2.nii.gz"}
    assert prune_store(store).removed == ()
    make_old(folder, days=31)
    size = sum(case.nbytes for case in list_store(store))
    done = prune_store(store)
    assert {reason for _, reason in done.removed} == {"not used for 30 days"}
    assert done.freed == size > 3 * 8 * 9 * 10 * 4
    assert list(store.iterdir()) == []
    assert filled(data, store)[0]["image"].shape == (1, 8, 9, 10)


def test_what_a_data_set_opens_counts_as_used(tmp_path: Path) -> None:
    data, store = items(tmp_path), tmp_path / "store"
    folder = filled(data, store).folder
    make_old(folder, days=31)
    filled(data[:1], store)
    assert names(case for case, _ in prune_store(store).removed) == {"case_1.nii.gz", "case_2.nii.gz"}


def test_cases_whose_files_have_changed_or_are_gone_are_stale(tmp_path: Path) -> None:
    data, store = items(tmp_path), tmp_path / "store"
    filled(data, store)
    write_volume(np.ones((8, 9, 10), np.float32), Path(data[0]["image"]), affine=np.eye(4))
    Path(data[1]["image"]).unlink()
    done = prune_store(store, unused_days=None)
    assert sorted(reason for _, reason in done.removed) == ["image or label has changed", "image or label is missing"]
    assert names(done.kept) == {"case_2.nii.gz"}


def test_a_drive_that_is_not_there_makes_nothing_stale(tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    drive.mkdir()
    filled(items(drive), tmp_path / "store")
    drive.rename(tmp_path / "unplugged")
    assert prune_store(tmp_path / "store", unused_days=None).removed == ()


def test_the_longest_unused_go_until_the_store_has_its_size(tmp_path: Path) -> None:
    data, store = items(tmp_path), tmp_path / "store"
    for channels in (1, 2):
        make_old(filled(data, store, channels=channels).folder, days=3 - channels)
    cases = list_store(store)
    total = sum(case.nbytes for case in cases)
    done = prune_store(store, max_bytes=total - 1)
    assert [case.folder for case, _ in done.removed] == [cases[0].folder]
    done = prune_store(store, max_bytes=total // 2)
    assert {case.folder.parent for case in done.kept} == {cases[-1].folder.parent}
    assert prune_store(store, max_bytes=0).kept == ()


def test_nothing_is_removed_while_a_data_set_lives(tmp_path: Path) -> None:
    data, store = items(tmp_path), tmp_path / "store"
    dataset = filled(data, store)
    make_old(dataset.folder, days=99)
    assert all(case.in_use for case in list_store(store))
    done = prune_store(store, max_bytes=0)
    assert (done.removed, len(done.kept)) == ((), 3)
    del dataset
    assert len(prune_store(store, max_bytes=0).removed) == 3


def test_nothing_is_removed_that_another_process_uses(tmp_path: Path) -> None:
    data, store = items(tmp_path), tmp_path / "store"
    folder = filled(data, store).folder
    code = (
        "import sys; from medunet.files import Hold; held = Hold(sys.argv[1]); print(1, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(prune.hold_path(folder))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    other.stdout.readline()
    assert prune_store(store, max_bytes=0).removed == ()
    other.kill()  # the system frees the lock of a process however it ends
    other.communicate()
    assert len(prune_store(store, max_bytes=0).removed) == 3


def test_an_entry_that_is_being_written_stays(tmp_path: Path) -> None:
    data, store = items(tmp_path), tmp_path / "store"
    folder = filled(data, store).folder
    (entry, *_) = sorted(path for path in folder.iterdir() if path.is_dir())
    with lock(entry.with_suffix(".lock")):
        assert len(prune_store(store, max_bytes=0).kept) == 1
    assert entry.is_dir()


def test_remains_of_killed_writers_go(tmp_path: Path) -> None:
    folder = filled(items(tmp_path), tmp_path / "store").folder
    (folder / ".abc.12345678").mkdir()
    (folder / "abc.lock").touch()
    assert prune_store(tmp_path / "store").removed == ()
    assert not (folder / ".abc.12345678").exists()
    assert not (folder / "abc.lock").exists()
    assert len(list_store(tmp_path / "store")) == 3


def test_damaged_entries_and_those_of_earlier_versions(tmp_path: Path) -> None:
    folder = filled(items(tmp_path), tmp_path / "store").folder
    first, second, _ = sorted(path / "entry.json" for path in folder.iterdir() if path.is_dir())
    first.write_text("{")
    second.write_text(second.read_text().replace('"source"', '"unknown"'))
    done = prune_store(tmp_path / "store")
    assert [reason for _, reason in done.removed] == ["damaged"]
    assert [case.source for case in done.kept].count(None) == 1


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(items(tmp_path), tmp_path / "store")
    monkeypatch.setattr(prune, "knows_locks", lambda _: False)
    with pytest.raises(ConfigError, match="knows no locks"):
        prune_store(tmp_path / "store")
    assert prune_store(tmp_path / "nothing").removed == ()


def test_many_may_hold_a_file_and_the_last_one_frees_it(tmp_path: Path) -> None:
    assert knows_locks(tmp_path)
    first, second = Hold(tmp_path / "a.use"), Hold(tmp_path / "a.use")
    for hold in (first, second):
        with lock(tmp_path / "a.use", wait=False) as free:
            assert not free
        hold.release()
    with lock(tmp_path / "a.use", wait=False) as free:
        assert free
