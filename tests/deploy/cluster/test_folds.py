"""Folds on a Ray cluster have the results of folds that run one after the other."""

import json
import os
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small import SMALL_2D

from medunet.bundle import find_bundle
from medunet.datasets import write_phantom_dataset
from medunet.deploy.cluster import folds, folds_on_ray
from medunet.runs import CrossValidation, PreparedRun, train_folds

from .ray_cluster import needs_ray, when

pytestmark = [needs_ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SMALL: dict[str, Any] = {**SMALL_2D, "epochs": 12, "folds": 3, "autocast_dtype": "float32"}


def cross_validate(data: Path, output: Path, uri: str = "", **options: Any) -> CrossValidation:
    return train_folds(find_bundle("unet_2d"), data, output, changes=SMALL, device="cpu", tracking_uri=uri, **options)


def test_folds_on_two_machines_equal_folds_on_one_even_if_one_dies(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    write_phantom_dataset(data, kind="cells", cases=6, size=(48, 48))
    alone = cross_validate(data, tmp_path / "alone")
    output, store = tmp_path / "ray", f"sqlite:///{tmp_path / 'mlruns.db'}"
    victim = next(iter(cluster.worker_nodes))
    doomed, frozen, train = victim.node_id, tmp_path / "frozen", folds._train
    at_death: list[int] = []

    def train_and_freeze(fold: int, run: PreparedRun, *options: Any) -> Any:
        """On the machine that will die, the process stops after three epochs, until it is killed."""
        import ray

        def freeze() -> None:
            history = run.folder / "eval" / "history.json"
            while not history.is_file() or len(json.loads(history.read_text())) < 3:
                time.sleep(0.01)
            frozen.with_suffix(".new").write_text(f"{os.getpid()} {run.folder}")
            frozen.with_suffix(".new").rename(frozen)
            os.kill(os.getpid(), signal.SIGSTOP)

        if ray.get_runtime_context().get_node_id() == doomed:
            threading.Thread(target=freeze, daemon=True).start()
        return train(fold, run, *options)

    def kill() -> None:
        cluster.remove_node(victim, allow_graceful=False)
        process, _, run = frozen.read_text().partition(" ")
        os.kill(int(process), signal.SIGKILL)
        at_death.append(len(json.loads((Path(run) / "eval" / "history.json").read_text())))

    monkeypatch.setattr(folds, "_train", train_and_freeze)
    with when(frozen.exists, kill):
        result = cross_validate(data, output, store, trainer=folds_on_ray)
    assert [outcome.status for outcome in result.folds] == ["trained"] * 3
    assert at_death[0] < SMALL["epochs"]  # it was in mid-run
    assert result.is_whole
    assert {**result.summary, "folder": ""} == {**alone.summary, "folder": ""}
    for fold in range(3):
        one, other = (
            torch.load(folder / f"models/fold_{fold}.pt", weights_only=True)["model"]
            for folder in (output, alone.output)
        )
        assert all(torch.equal(one[key], other[key]) for key in other)
    with sqlite3.connect(tmp_path / "mlruns.db") as database:
        runs = database.execute("select count(*) from runs").fetchone()[0]
    database.close()
    assert runs == 4  # the training and its folds
    again = cross_validate(data, output, store, trainer=folds_on_ray)
    assert [outcome.status for outcome in again.folds] == ["there already"] * 3
