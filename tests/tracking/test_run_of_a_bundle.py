"""A training run in MLflow: its content, its model, and what is read back from it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import requests
import torch
import yaml
from commands import run_medunet
from small import SMALL_2D

from medunet.bundle import find_bundle
from medunet.datasets import open_dataset
from medunet.errors import SecurityError
from medunet.io import read_volume
from medunet.prediction import Predictor
from medunet.runs import train_bundle, train_folds
from medunet.runs.folds import resume_run
from medunet.tracking import TrackedRun, best_run, differing, find_run, folder_of, list_runs
from medunet.tracking.bundle_model import save_model
from medunet.trust import judge, unpack

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {**SMALL_2D, "epochs": 1, "folds": 2}


@pytest.fixture(scope="module")
def client(run_2d: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=store_of(run_2d))


@pytest.fixture(scope="module")
def fold(run_2d: Path, client: mlflow.MlflowClient) -> mlflow.entities.Run:
    [found] = [run for run in list_runs(store_of(run_2d), folds=True) if run.kind == "fold"]
    return client.get_run(found.run_id)


def store_of(run: Path) -> str:
    return f"sqlite:///{run.parent}/mlruns.db"


def test_a_tracked_run_and_its_packed_bundle_need_no_trust(run_2d: Path, tmp_path: Path) -> None:
    assert judge(run_2d).reason == "known"
    foreign = shutil.copytree(run_2d, tmp_path / "elsewhere")  # not trusted on this machine
    assert {finding.text for finding in judge(foreign).findings} == set()
    archives = (run_2d.parent / "mlruns").rglob("bundle.zip")
    archive = min(archives, key=lambda path: path.stat().st_mtime)  # other tests may track runs in the same store
    packed = unpack(archive, tmp_path / "packed")
    assert judge(packed).reason == "known"
    [weights] = (packed / "models").iterdir()
    assert set(torch.load(weights, weights_only=True)) == {"model"}  # and no path


def test_the_default_store_is_beside_the_run(
    cells: Path, tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    changes = {**SMALL, "tracking_pictures": False, "system_metrics": False}
    train_bundle(find_bundle("unet_2d"), cells, tmp_path / "run", changes=changes, device="cpu")
    assert [run.name for run in list_runs(uri)] == ["run"]
    assert judge(tmp_path / "run").reason == "known"  # an MLflow model contains code, which is not part of a bundle


def test_metrics_parameters_and_artifacts_are_complete(client: mlflow.MlflowClient, fold: mlflow.entities.Run) -> None:
    expected = {"loss", "loss/dice", "loss/cross_entropy", "lr", "steps_per_second", "data_wait", "epoch_seconds"}
    expected |= {"val_mean_dice", "val_dice_cell", "best_val_mean_dice", "system/cpu_utilization_percentage"}
    assert expected <= set(fold.data.metrics)
    assert fold.data.params["network_def::channels"] == "[4, 8]"
    assert fold.data.params["epochs"] == "2"
    assert "network_def::channels" in fold.data.tags["medunet.changed"].split(", ")
    assert "seed" not in fold.data.tags["medunet.changed"].split(", ")
    assert "| `epochs` | `50` | `2` |" in fold.data.tags["mlflow.note.content"]
    root = Path(client.download_artifacts(fold.info.run_id, ""))
    files = {path.relative_to(root).as_posix() for path in root.rglob("*")}
    assert {"config/train.json", "environment/environment.json", "environment/requirements.txt"} <= files
    assert {"plots/curves.png", "history.json", "validation/cases.csv", "bundle.zip"} <= files
    assert any(name.startswith("validation/epoch_0000") and name.endswith("worst.png") for name in files)


def test_a_run_is_ranked_by_the_metrics_of_its_kept_weights(
    run_2d: Path, client: mlflow.MlflowClient, fold: mlflow.entities.Run
) -> None:
    history = json.loads((run_2d / "eval" / "history.json").read_text())
    values = {entry["epoch"]: entry["val_metrics"]["val_mean_dice"] for entry in history}
    kept, found = history[-1]["kept_epoch"], fold.data.metrics
    assert (found["kept_epoch"], found["kept_val_mean_dice"]) == (kept, pytest.approx(values[kept]))
    assert found["best_val_mean_dice"] == pytest.approx(max(values.values()))
    [training] = list_runs(store_of(run_2d))
    assert best_run([training]).metrics["kept_val_mean_dice"] == pytest.approx(values[kept])
    [model] = client.search_logged_models([fold.info.experiment_id])
    assert model.params["network_def::channels"] == "[4, 8]"
    metrics = {metric.key: (metric.value, metric.step) for metric in model.metrics}
    assert metrics["val_mean_dice"] == (found["kept_val_mean_dice"], kept)


def test_the_data_set_is_logged_with_a_digest_of_its_content(
    client: mlflow.MlflowClient, fold: mlflow.entities.Run
) -> None:
    contexts = {one.tags[0].value: one.dataset for one in fold.inputs.dataset_inputs}
    assert set(contexts) == {"training", "validation"}
    assert contexts["training"].name == "cells"
    assert len({one.digest for one in contexts.values()}) == 2
    assert json.loads(contexts["training"].profile) == {"cases": 2}
    # the whole data set belongs to the parent, where lists of runs show it
    [whole] = client.get_run(fold.data.tags["mlflow.parentRunId"]).inputs.dataset_inputs
    assert json.loads(whole.dataset.profile) == {"cases": 4}


def test_no_name_of_a_case_and_no_path_is_logged(
    run_2d: Path, client: mlflow.MlflowClient, fold: mlflow.entities.Run, cells: Path
) -> None:
    runs = [fold, client.get_run(fold.data.tags["mlflow.parentRunId"])]
    logged = json.dumps([run.to_dictionary() for run in runs])
    for run in runs:  # MLflow chooses where a local store has its artifacts
        logged = logged.replace(run.info.artifact_uri, "")
    root = run_2d.parent / "mlruns"
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "MLmodel"]
    for content in (logged.encode(), *(path.read_bytes() for path in files)):
        assert b"cells_00" not in content
        assert str(cells.parent).encode() not in content
    description = yaml.safe_load(next(root.rglob("MLmodel")).read_text())
    assert "medunet/tracking" not in description["flavors"]["python_function"]["model_code_path"]
    # the list of names stays here
    assert "cells_000" in json.loads((run_2d / "eval" / "cases.json").read_text())


def test_the_model_predicts_what_the_command_predicts(
    run_2d: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = sorted((cells / "imagesTr").iterdir())[0]
    written = Predictor(run_2d, output_dir=tmp_path, device="cpu").predict_case(image)
    expected = np.asarray(read_volume(written).image.as_tensor())[0]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_of(run_2d))
    model = mlflow.pyfunc.load_model("models:/run/1")
    assert np.array_equal(model.predict(str(image)), expected)
    assert not list(Path(model._model_impl.context.artifacts["bundle"]).parents[1].rglob("*.pkl"))


def test_a_model_with_an_untrusted_expression_needs_an_approval_that_names_its_content(
    run_2d: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDUNET_CONFIG_DIR", str(tmp_path / "config"))  # of a machine that never saw the run
    marker = tmp_path / "executed"
    run = Path(shutil.copytree(run_2d, tmp_path / "run"))
    config = json.loads((run / "configs" / "inference.json").read_text())
    config["autocast_dtype"] = f"$(__import__('pathlib').Path({str(marker)!r}).touch(), 'float32')[1]"
    (run / "configs" / "inference.json").write_text(json.dumps(config))
    model = tmp_path / "model"
    save_model(run, model)
    assert not marker.exists()  # logging a model runs nothing of it
    with pytest.raises(SecurityError, match="executed") as info:
        mlflow.pyfunc.load_model(str(model))
    assert not marker.exists()
    word = re.search("MEDUNET_TRUST=([0-9a-f]{64})", str(info.value))
    assert word is not None
    monkeypatch.setenv("MEDUNET_TRUST", word[1])
    image = sorted((cells / "imagesTr").iterdir())[0]
    assert mlflow.pyfunc.load_model(str(model)).predict(str(image)).shape == (48, 48)
    assert marker.exists()
    monkeypatch.delenv("MEDUNET_TRUST")
    with pytest.raises(SecurityError):
        mlflow.pyfunc.load_model(str(model))


@pytest.mark.slow
def test_a_served_model_answers_what_the_command_predicts(
    run_2d: Path, cells: Path, tmp_path: Path, serve: Callable[[str, str], Any]
) -> None:
    image = sorted((cells / "imagesTr").iterdir())[1]
    expected = read_volume(Predictor(run_2d, output_dir=tmp_path, device="cpu").predict_case(image)).image
    address = serve("models:/run/1", store_of(run_2d))
    for given in (str(image), np.asarray(read_volume(image).image.as_tensor()).tolist()):
        answer = requests.post(f"{address}/invocations", json={"inputs": [given]}, timeout=120)
        assert answer.ok, answer.text[:500]
        [found] = answer.json()["predictions"]
        assert np.array_equal(np.array(found), np.asarray(expected.as_tensor())[0])
    absent = requests.post(f"{address}/invocations", json={"inputs": ["absent.png"]}, timeout=120)
    assert absent.status_code == 400
    assert "absent.png" in absent.json()["message"]
    assert len(absent.text) < 400


def test_runs_are_listed_compared_and_resumed(
    run_2d: Path, cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run_2d.parent, tmp_path, dirs_exist_ok=True)
    run, uri = tmp_path / "run", store_of(tmp_path / "run")
    changes = {**SMALL, "learning_rate": 0.0, "tracking_model": False, "tracking_pictures": False}
    train_bundle(find_bundle("unet_2d"), cells, tmp_path / "other", changes=changes, device="cpu", tracking_uri=uri)
    found = list_runs(uri)
    assert [one.name for one in found] == ["other", "run"]
    rows = differing(found)
    assert rows["epochs"] == ["1", "2"]
    assert rows["learning_rate"] == ["0.0", "0.006"]
    assert "seed" not in rows
    best = best_run(found)
    assert best.metrics["kept_val_mean_dice"] == max(one.metrics["kept_val_mean_dice"] for one in found)
    assert folder_of(find_run("run", found), tmp_path) == run
    monkeypatch.setenv("COLUMNS", "200")

    def output_of(*words: object) -> str:
        assert run_medunet("runs", *words, "--runs", tmp_path) == 0
        return capsys.readouterr().out

    assert "run fold 0" in output_of("list", "--folds")
    assert "learning_rate" in output_of("compare", "run", "other")
    assert f"medunet predict {folder_of(best, tmp_path)}" in output_of("best")
    assert "1 epochs" not in output_of("resume", "run")  # finished: nothing is trained again
    assert len(json.loads((run / "eval" / "history.json").read_text())) == 2


@pytest.mark.slow
def test_a_cross_validation_is_one_run_with_its_folds_and_its_ensemble(cells: Path, tmp_path: Path, uri: str) -> None:
    output, changes = tmp_path / "cv", {**SMALL, "tracking_pictures": False, "system_metrics": False}
    result = train_folds(find_bundle("unet_2d"), cells, output, changes=changes, device="cpu", tracking_uri=uri)
    assert result.is_whole
    training, *folds = list_runs(uri, folds=True)
    assert [one.parent for one in folds] == [training.run_id] * 2
    assert training.status == "FINISHED"
    means = [one.metrics["best_val_mean_dice"] for one in folds]
    assert training.metrics["best_val_mean_dice"] == pytest.approx(sum(means) / 2)
    assert result.summary is not None
    final = result.postprocessed or result.summary
    assert training.metrics["out_of_fold_mean_dice"] == pytest.approx(final["mean_dice"])
    client = mlflow.MlflowClient(tracking_uri=uri)
    table = client.download_artifacts(training.run_id, "out_of_fold/metrics.csv", str(tmp_path))
    assert len(Path(table).read_text().splitlines()) == 1 + len(open_dataset(cells).cases)
    assert "cells_00" not in Path(table).read_text()
    [version] = client.search_model_versions("name = 'cv'")
    assert version.run_id == training.run_id
    assert folder_of(training, tmp_path) == output
    assert [judge(run).reason for run in (output, output / "fold_0", output / "fold_1")] == ["known"] * 3
    again = resume_run(output, device="cpu", tracking_uri=uri)
    assert again.is_whole
    assert len(list_runs(uri, folds=True)) == 3


@pytest.mark.parametrize(("metric", "best"), [("val_dice_loss", "high"), ("out_of_fold_hd95_mm_gloss", "low")])
def test_ranking_depends_on_the_metric_and_not_on_the_class(metric: str, best: str) -> None:
    runs = [
        TrackedRun(name, name, "training", "FINISHED", 0, 1.0, {}, {metric: value}, {})
        for name, value in (("low", 0.1), ("high", 0.9))
    ]
    assert best_run(runs, metric).name == best
