"""Unused preprocessed cases are removed; those that a process uses stay."""

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
from medunet.files import CAN_LOCK
from medunet.io import MedunetReader, write_volume

pytestmark = pytest.mark.skipif(not CAN_LOCK, reason="the system knows no such locks")


@pytest.fixture
def data(tmp_path: Path) -> list[dict[str, str]]:
    """Three cases on a separate drive."""
    paths = [tmp_path / "drive" / f"case_{index}.nii.gz" for index in range(3)]
    for path in paths:
        write_volume(np.random.default_rng(0).random((8, 9, 10), np.float32), path, affine=np.eye(4))
    return [{"image": str(path), "name": path.name} for path in paths]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def filled(data: list[dict[str, str]], folder: Path, channels: int = 1) -> StoreDataset:
    transform = Compose([LoadImaged("image", reader=MedunetReader(channels=channels), ensure_channel_first=True)])
    dataset = StoreDataset(data, transform, store_dir=folder)
    dataset.prepare()
    return dataset


def make_old(folder: Path, days: float) -> None:
    for entry in folder.iterdir():
        then = time.time() - days * 86_400
        os.utime(entry, (then, then))


def names(cases: Any) -> set[str]:
    return {Path(case.source).name for case in cases}


def test_unused_cases_are_removed_and_prepared_again_when_wanted(data: Any, store: Path) -> None:
    folder = filled(data, store).folder
    assert names(list_store(store)) == {"case_0.nii.gz", "case_1.nii.gz", "case_2.nii.gz"}
    assert prune_store(store) == []
    make_old(folder, days=31)
    size = sum(case.nbytes for case in list_store(store))
    removed = prune_store(store)
    assert {reason for _, reason in removed} == {"not used for 30 days"}
    assert sum(case.nbytes for case, _ in removed) == size > 3 * 8 * 9 * 10 * 4
    assert list(store.iterdir()) == []
    assert filled(data, store)[0]["image"].shape == (1, 8, 9, 10)


def test_cases_that_a_data_set_opens_count_as_used(data: Any, store: Path) -> None:
    make_old(filled(data, store).folder, days=31)
    filled(data[:1], store)
    assert names(case for case, _ in prune_store(store)) == {"case_1.nii.gz", "case_2.nii.gz"}


def test_cases_whose_files_have_changed_or_are_missing_are_stale(data: Any, store: Path) -> None:
    filled(data, store)
    write_volume(np.ones((8, 9, 10), np.float32), Path(data[0]["image"]), affine=np.eye(4))
    Path(data[1]["image"]).unlink()
    removed = prune_store(store, unused_days=None)
    assert sorted(reason for _, reason in removed) == ["image or label has changed", "image or label is missing"]
    assert names(list_store(store)) == {"case_2.nii.gz"}


def test_cases_on_an_unmounted_drive_are_not_stale(data: Any, store: Path, tmp_path: Path) -> None:
    filled(data, store)
    (tmp_path / "drive").rename(tmp_path / "unplugged")
    assert prune_store(store, unused_days=None) == []


def test_the_least_recently_used_cases_are_removed_until_the_store_fits_its_limit(data: Any, store: Path) -> None:
    for channels in (1, 2):
        make_old(filled(data, store, channels=channels).folder, days=3 - channels)
    cases = list_store(store)
    total = sum(case.nbytes for case in cases)
    assert [case.path for case, _ in prune_store(store, max_bytes=total - 1)] == [cases[0].path]
    prune_store(store, max_bytes=total // 2)
    assert {case.path.parent for case in list_store(store)} == {cases[-1].path.parent}
    prune_store(store, max_bytes=0)
    assert list_store(store) == []


def test_nothing_is_removed_while_a_data_set_exists(data: Any, store: Path) -> None:
    datasets = [filled(data, store), filled(data, store)]
    make_old(datasets[0].folder, days=99)
    while datasets:
        assert all(case.in_use for case in list_store(store))
        assert prune_store(store, max_bytes=0) == []
        datasets.pop()
    assert len(prune_store(store, max_bytes=0)) == 3


def test_cases_in_use_by_another_process_are_not_removed(data: Any, store: Path) -> None:
    folder = filled(data, store).folder
    code = "import sys; from medunet.files import Hold; h = Hold(sys.argv[1]); print(1, flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", code, str(prune.hold_path(folder))]
    other = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    assert prune_store(store, max_bytes=0) == []
    other.kill()  # the system frees the lock of a process however it ends
    other.communicate()
    assert len(prune_store(store, max_bytes=0)) == 3


def test_damaged_entries_and_temporary_files_of_killed_writers_are_removed(data: Any, store: Path) -> None:
    folder = filled(data, store).folder
    min(folder.iterdir()).write_text("{")
    (folder / ".12345678.abc.safetensors").touch()
    (folder / "abc.lock").touch()
    assert [reason for _, reason in prune_store(store)] == ["damaged"]
    assert len(list_store(store)) == len(list(folder.iterdir())) == 2


def test_without_locks_nothing_is_removed(data: Any, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(data, store)
    monkeypatch.setattr(prune, "knows_locks", lambda _: False)
    with pytest.raises(ConfigError, match="needs a file system with locks"):
        prune_store(store)
    assert prune_store(store / "nothing") == []
