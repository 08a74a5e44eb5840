"""A small search, and the ranges of its values."""

import json
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from medunet.bundle import find_bundle, verify_bundle
from medunet.datasets import write_phantom_dataset
from medunet.deploy.cluster import parse_ranges, tune_bundle
from medunet.deploy.cluster.tune import rungs
from medunet.errors import ConfigError, DataError

from .processes import history, run, started, wait_for, words
from .ray_cluster import needs_ray

pytestmark = pytest.mark.filterwarnings("ignore")


def test_ranges_are_parsed() -> None:
    texts = ["learning_rate=1e-4:1e-2:log", "batch_size=2:8:int", "network_def::norm=batch|null"]
    rate, size, norm = parse_ranges(texts)
    assert (rate.low, rate.high, rate.is_log) == (1e-4, 1e-2, True)
    assert size.is_whole and size.example == 2
    assert norm.choices == ("batch", None)


@pytest.mark.parametrize(
    "texts", [[], *([text] for text in ("rate", "a=1", "a=2:1", "a=0:1:log", "a=x:y", "a=1:2:odd"))]
)
def test_impossible_ranges_are_rejected(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="--set-range"):
        parse_ranges(texts)


@pytest.mark.parametrize(
    ("texts", "last", "first"),
    [
        (["epochs=10:60:int"], 60, 10),
        (["val_interval=1:20:int"], 100, 40),
        (["val_interval=20|1", "epochs=10|30"], 30, 30),
    ],
)
def test_no_trial_ends_in_its_last_epoch_or_after_one_validation(texts: list[str], last: int, first: int) -> None:
    limits = rungs({"epochs": 100, "val_interval": 5}, parse_ranges(texts))
    assert limits == {"max_t": last + 1, "grace_period": first}


def test_epochs_that_are_not_numbers_are_rejected() -> None:
    with pytest.raises(ConfigError, match="numbers"):
        rungs({"epochs": 100, "val_interval": 5}, parse_ranges(["epochs=10|null"]))


@pytest.fixture
def arguments(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Bundle, data and output of a search."""
    write_phantom_dataset(tmp_path / "data", kind="cells", cases=4, size=(48, 48))
    return find_bundle("unet_2d"), tmp_path / "data", tmp_path / "out"


def test_an_unknown_key_is_rejected_before_ray_starts(arguments: tuple[Path, Path, Path]) -> None:
    with pytest.raises(ConfigError, match="lerning_rate"):
        tune_bundle(*arguments, ranges=parse_ranges(["lerning_rate=1e-4:1e-2"]), trials=1)


def test_a_search_is_neither_mixed_with_another_nor_changed(arguments: tuple[Path, Path, Path]) -> None:
    output = arguments[2]
    output.mkdir()
    (output / "search.json").write_text(json.dumps({"key": "a", "asked": {"trials": 2, "seed": 0}}))
    ranges = parse_ranges(["learning_rate=1e-4:1e-2"])
    with pytest.raises(DataError, match="contains a search"):
        tune_bundle(*arguments, ranges=ranges, trials=1)
    with pytest.raises(ConfigError, match=r"other arguments.*ranges, trials"):
        tune_bundle(*arguments, ranges=ranges, trials=1, resume=True)


def kinds_in(store: Path) -> list[str]:
    """Kinds of the runs of MLflow."""
    with closing(sqlite3.connect(store)) as database:
        return sorted(row[0] for row in database.execute("select value from tags where key = 'medunet.kind'"))


def trials_of_ray() -> bool:
    """Return whether a process of a cluster is running."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            name = "".join(process.cmdline()[:1])
            if name.startswith("ray::") and not name.endswith(("IDLE", "Agent")):
                return True
    return False


@needs_ray
@pytest.mark.slow
def test_a_killed_search_continues(arguments: tuple[Path, Path, Path], tmp_path: Path, cluster: Any) -> None:
    pytest.importorskip("optuna", reason="optuna is absent: bash scripts/test_cluster.sh")
    (_, data, output), store = arguments, f"sqlite:///{tmp_path / 'mlruns.db'}"
    parts = ("tune", "unet_2d", "--data", data, "--output", output, "--trials", 3, "--epochs", 30, "--device", "cpu")
    command = words(*parts, "--set-range", "learning_rate=1e-4:1e-2:log", "--tracking-uri", store)

    def begun() -> dict[str, list[Any]]:
        """Return the histories of the trials that Ray has recorded and that are still running."""
        noted = "".join(path.read_text() for path in output.glob("ray/experiment_state*.json"))
        runs = [path.parents[1] for path in output.glob("trial_*/eval/history.json")]
        return {run.name: history(run) for run in runs if run.name.removeprefix("trial_") in noted}

    with started(command) as (driver,):
        wait_for(lambda: any(len(epochs) >= 3 for epochs in begun().values()), what="three epochs", process=driver)
        driver.kill()
        driver.wait()
    wait_for(lambda: not trials_of_ray(), what="the end of the trials")
    before = begun()
    run(command, expected=2)  # the folder contains a search
    run([*command, "--resume"])
    rows = json.loads((output / "tune.json").read_text())
    assert len(rows) == 3
    assert all(row["error"] is None and row["metric"] is not None for row in rows)
    best = max(rows, key=lambda row: row["metric"])
    assert best == rows[0]
    used = json.loads((output / best["run"] / "configs" / "train.json").read_text())
    assert used["learning_rate"] == best["values"]["learning_rate"]
    assert {name: fault for name, fault in verify_bundle(output / best["run"]).items() if fault} == {}
    for name, epochs in before.items():  # not trained a second time, except an epoch that was not yet saved
        later = history(output / name)[: len(epochs)]
        assert later[:-1] == epochs[:-1]
        assert later[-1]["loss"] == epochs[-1]["loss"]
        assert name in [row["run"] for row in rows]
    # another call has nothing to do, in MLflow either
    run([*command, "--resume"])
    assert json.loads((output / "tune.json").read_text()) == rows
    assert kinds_in(tmp_path / "mlruns.db") == ["search", *["trial"] * 3]
