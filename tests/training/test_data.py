"""Sampling and loading of patches: reproducible with any number of workers, and with typed errors."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, Dataset
from monai.transforms import MapTransform, RandGaussianNoised, RandomizableTrait

from medunet.datasets import StoreDataset
from medunet.errors import DataError
from medunet.training import DataHandler, DataLoader, Draw, HistoryHandler, RepeatSampler, Trainer, loader_workers
from medunet.transforms import RandDeformd

# from Python 3.12 on, and where there are fewer cores than workers
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork: the transforms live in this file")


class Fail(MapTransform):
    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        raise DataError("voxels are missing", file="case_7.nii.gz", remedy="copy it again")


class Die(MapTransform):
    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return data


class Wait(MapTransform, RandomizableTrait):
    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.1)  # much longer than a step, also on a busy machine
        return data


def items(count: int = 5) -> list[dict[str, Any]]:
    images = torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    return [{"image": image, "label": (image > 0).long()} for image in images]


def patches(folder: Path, workers: int, epochs: int = 3, first: int = 1) -> list[torch.Tensor]:
    deform = RandDeformd(["image", "label"], spatial_size=(6, 6), rotate_range=1.0, foreground_key="label")
    steps = [deform, RandGaussianNoised("image", prob=0.5)]
    dataset = StoreDataset(items(), steps, store_dir=folder)
    sampler = RepeatSampler(5, num_samples=8, seed=4)
    loader = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=workers)
    images = []
    for epoch in range(first, epochs + 1):
        sampler.set_epoch(epoch)
        images += [batch["image"] for batch in loader]
    return images


@needs_fork
def test_patches_do_not_depend_on_the_number_of_workers_or_on_earlier_epochs(tmp_path: Path) -> None:
    alone, through, resumed = patches(tmp_path, 0), patches(tmp_path, 2), patches(tmp_path, 2, first=3)
    assert all(torch.equal(one, other) for one, other in zip(alone, through, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(through[8:], resumed, strict=True))
    assert not torch.equal(through[0], through[8])


def test_processes_split_the_samples_of_a_single_process() -> None:
    one = list(RepeatSampler(5, num_samples=8, seed=1))
    parts = [list(RepeatSampler(5, num_samples=4, seed=1, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [(d, d.seed) for d in one[0::2]] == [(d, d.seed) for d in parts[0]]
    assert [(d, d.seed) for d in one[1::2]] == [(d, d.seed) for d in parts[1]]


def test_a_draw_works_as_an_index_of_any_data_set() -> None:
    data = [{"image": torch.full((1, 2, 2), float(n))} for n in range(3)]
    assert Dataset(data)[Draw(2, 5)]["image"].max() == 2
    assert CacheDataset(data, [], progress=False)[Draw(1, 5)]["image"].max() == 1


def test_the_data_loader_does_not_change_the_global_random_state() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(DataLoader(Dataset(items()), batch_size=2))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


@needs_fork
def test_a_worker_error_keeps_its_type_and_traceback() -> None:
    loader = DataLoader(Dataset(items(), [Fail("image")]), num_workers=1)
    with pytest.raises(DataError) as info:
        next(iter(loader))
    assert str(info.value) == "case_7.nii.gz: voxels are missing; remedy: copy it again"
    assert "test_data.py" in str(info.value.__cause__)


@needs_fork
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_worker_is_a_typed_error() -> None:
    loader = DataLoader(Dataset(items(), [Die("image")]), num_workers=1)
    with pytest.raises(DataError, match="has died.*num_workers"):  # noqa: RUF043
        next(iter(loader))


class Prepared(Dataset):
    prepared = 0

    def prepare(self) -> None:
        self.prepared += 1


def test_data_sets_are_prepared_once_and_the_data_wait_is_in_the_history(
    tmp_path: Path, make_trainer: Callable[..., Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    dataset = Prepared(items(), [Wait("image")])
    trainer = make_trainer(tmp_path, dataset=dataset)
    DataHandler([dataset, items()]).attach(trainer)
    HistoryHandler(str(tmp_path), optimizer=trainer.optimizer).attach(trainer)
    trainer.run()
    assert dataset.prepared == 1
    shares = [entry["data_wait"] for entry in trainer.state.history]
    assert len(shares) == 2
    assert all(0.3 < share <= 1 for share in shares)
    assert "raise num_workers" in caplog.text


@needs_fork
def test_weights_do_not_depend_on_the_number_of_workers(tmp_path: Path, make_trainer: Callable[..., Trainer]) -> None:
    alone, shared = (make_trainer(tmp_path / str(n), dataset=Dataset(items()), workers=n, dropout=0.5) for n in (0, 2))
    for trainer in (alone, shared):
        trainer.run()
    for one, other in zip(alone.network.parameters(), shared.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_cases_without_any_class_are_rejected(tmp_path: Path) -> None:
    cases = [{"image": np.ones((1, 4, 4), np.float32), "label": np.zeros((1, 4, 4)), "name": "a"}] * 2
    with pytest.raises(DataError, match="2 cases, all of them background"):
        DataHandler([StoreDataset(cases, [], store_dir=tmp_path)]).start(None)


def test_a_gpu_has_all_cores_but_two_for_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.Process.cpu_affinity", lambda _: [*range(16)])
    assert loader_workers(torch.device("cpu")) == 0
    assert loader_workers(torch.device("cuda")) == 14
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert loader_workers(torch.device("cuda")) == 1
