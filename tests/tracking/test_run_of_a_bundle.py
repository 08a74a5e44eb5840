"""A whole training in MLflow: its content, its model, and what is read back from it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import requests
import torch
import yaml
from small import SMALL_2D

from medunet.bundle import find_bundle
from medunet.cli.app import main
from medunet.datasets import open_dataset
from medunet.errors import SecurityError
from medunet.io import read_volume
from medunet.prediction import Predictor
from medunet.runs import resume_run, train_bundle, train_folds
from medunet.tracking import CaseCodes, best_run, differing, find_run, folder_of, list_runs
from medunet.tracking.anonymous import pack_bundle
from medunet.tracking.logged_model import save_model
from medunet.trust import judge, unpack

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {**SMALL_2D, "epochs": 2, "folds": 2, "keep_epoch": "last"}


@pytest.fixture(scope="module")
def tracked(patients: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run and the store beside it."""
    root = tmp_path_factory.mktemp("runs")
    uri = f"sqlite:///{root}/mlruns.db"
    train_bundle(find_bundle("unet_2d"), patients, root / "mine", changes=SMALL, device="cpu", tracking_uri=uri)
    return root / "mine", uri


def test_a_tracked_run_and_what_is_packed_of_it_need_no_trust(tracked: tuple[Path, str], tmp_path: Path) -> None:
    assert judge(tracked[0]).reason == "known"
    foreign = shutil.copytree(tracked[0], tmp_path / "elsewhere")  # nobody there knows who made it
    assert {finding.text for finding in judge(foreign).findings} == set()
    [archive] = (tracked[0].parent / "mlruns").rglob("bundle.zip")
    packed = unpack(archive, tmp_path / "packed")
    assert judge(packed).reason == "known"
    assert {path.name for path in (packed / "models").iterdir()} == {"model.pt"}


def test_the_store_of_a_bundle_that_names_none_lies_beside_the_run(
    patients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    changes = {**SMALL, "epochs": 1, "tracking_pictures": False, "system_metrics": False}
    train_bundle(find_bundle("unet_2d"), patients, tmp_path / "run", changes=changes, device="cpu")
    assert (tmp_path / "mlruns.db").is_file()
    assert judge(tmp_path / "run").reason == "known"  # an MLflow model holds code, which is no part of a bundle


@pytest.fixture(scope="module")
def fold(tracked: tuple[Path, str]) -> tuple[mlflow.MlflowClient, mlflow.entities.Run]:
    client = mlflow.MlflowClient(tracking_uri=tracked[1])
    [found] = [run for run in list_runs(tracked[1], folds=True) if run.kind == "fold"]
    return client, client.get_run(found.run_id)


def artifacts(client: mlflow.MlflowClient, run_id: str, path: str | None = None) -> list[str]:
    found: list[str] = []
    for file in client.list_artifacts(run_id, path):
        found += artifacts(client, run_id, file.path) if file.is_dir else [file.path]
    return found


def test_metrics_parameters_and_artifacts_are_all_there(fold: tuple[mlflow.MlflowClient, mlflow.entities.Run]) -> None:
    client, run = fold
    expected = {"loss", "loss/dice", "loss/cross_entropy", "lr", "steps_per_second", "data_wait", "epoch_seconds"}
    expected |= {"val_mean_dice", "val_dice_cell", "best_val_mean_dice", "system/cpu_utilization_percentage"}
    # the phantom's foreground class is found in its files, where it has no other name
    names = {name.replace("val_dice_label_255", "val_dice_cell") for name in run.data.metrics}
    assert expected <= names
    assert run.data.params["network_def::channels"] == "[4, 8]"
    assert run.data.params["epochs"] == "2"
    assert "network_def::channels" in run.data.tags["medunet.changed"].split(", ")
    assert "seed" not in run.data.tags["medunet.changed"].split(", ")
    assert "| `epochs` | `50` | `2` |" in run.data.tags["mlflow.note.content"]
    files = set(artifacts(client, run.info.run_id))
    assert {"config/train.json", "environment/environment.json", "environment/requirements.txt"} <= files
    assert {"plots/curves.png", "history.json", "validation/cases.csv", "bundle.zip"} <= files
    assert any(name.startswith("validation/epoch_0000") and name.endswith("worst.png") for name in files)


def test_a_run_is_ranked_by_the_weights_that_it_left(
    tracked: tuple[Path, str], fold: tuple[mlflow.MlflowClient, mlflow.entities.Run]
) -> None:
    _, run = fold
    values = [
        entry["val_metrics"]["val_mean_dice"]
        for entry in json.loads((tracked[0] / "eval" / "history.json").read_text())
    ]
    found = run.data.metrics
    assert (found["kept_epoch"], found["kept_val_mean_dice"]) == (2.0, pytest.approx(values[1]))
    assert found["best_val_mean_dice"] == pytest.approx(max(values))
    [training] = list_runs(tracked[1])
    assert best_run([training]) == training
    assert training.metrics["kept_val_mean_dice"] == pytest.approx(values[1])


def test_the_logged_model_has_the_parameters_and_the_metrics_of_its_weights(
    fold: tuple[mlflow.MlflowClient, mlflow.entities.Run],
) -> None:
    client, run = fold
    [model] = client.search_logged_models([run.info.experiment_id])
    assert model.params["network_def::channels"] == "[4, 8]"
    metrics = {metric.key: (metric.value, metric.step) for metric in model.metrics}
    assert metrics["val_mean_dice"] == (run.data.metrics["kept_val_mean_dice"], 2)


def test_the_data_are_a_dataset_with_a_digest_of_its_content(
    fold: tuple[mlflow.MlflowClient, mlflow.entities.Run],
) -> None:
    client, run = fold
    contexts = {one.tags[0].value: one.dataset for one in run.inputs.dataset_inputs}
    assert set(contexts) == {"training", "validation"}
    assert contexts["training"].name == "study"
    assert len({one.digest for one in contexts.values()}) == 2
    assert json.loads(contexts["training"].profile) == {"cases": 2}
    # and the whole of it that of the training, where lists of runs show it
    [whole] = client.get_run(run.data.tags["mlflow.parentRunId"]).inputs.dataset_inputs
    assert json.loads(whole.dataset.profile) == {"cases": 4}


def test_no_name_of_a_case_and_no_path_is_logged(
    tracked: tuple[Path, str], fold: tuple[mlflow.MlflowClient, mlflow.entities.Run], patients: Path, tmp_path: Path
) -> None:
    client, run = fold
    logged = json.dumps(
        [client.get_run(one).to_dictionary() for one in (run.info.run_id, run.data.tags["mlflow.parentRunId"])]
    )
    # where the artifacts of a local store lie is MLflow's own affair
    places = json.dumps([run.info.artifact_uri, client.get_run(run.data.tags["mlflow.parentRunId"]).info.artifact_uri])
    for place in json.loads(places):
        logged = logged.replace(place, "")
    assert "Mustermann" not in logged
    assert str(patients.parent) not in logged
    root = tracked[0].parent / "mlruns"
    contents = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "MLmodel")
    assert b"Mustermann" not in contents
    assert str(patients.parent).encode() not in contents
    assert str(tracked[0]).encode() not in contents
    description = yaml.safe_load(next(root.rglob("MLmodel")).read_text())
    assert "medunet/tracking" not in description["flavors"]["python_function"]["model_code_path"]
    # the list of who is who stays here
    assert "Mustermann_A" in json.loads((tracked[0] / "eval" / "cases.json").read_text())


def test_the_model_predicts_what_the_command_predicts(
    tracked: tuple[Path, str], patients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, uri = tracked
    image = sorted((patients / "imagesTr").iterdir())[0]
    expected = read_volume(Predictor(run, output_dir=tmp_path, device="cpu").predict_case(image)).image
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    model = mlflow.pyfunc.load_model("models:/mine/1")
    wanted = np.asarray(expected.as_tensor())[0]
    assert np.array_equal(model.predict(str(image)), wanted)
    array = np.asarray(read_volume(image).image.as_tensor())
    assert np.array_equal(model.predict(array), wanted)
    assert np.array_equal(model.predict(array[0]), wanted)
    one, two = model.predict([str(image), array.tolist()])
    assert np.array_equal(one, wanted)
    assert np.array_equal(two, wanted)
    assert not list(Path(model._model_impl.context.artifacts["bundle"]).parents[1].rglob("*.pkl"))


def test_a_model_with_somebodys_expression_asks_for_a_word_that_names_its_content(
    tracked: tuple[Path, str], patients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDUNET_CONFIG_DIR", str(tmp_path / "config"))  # of a machine that never saw the run
    marker = tmp_path / "executed"
    run = Path(shutil.copytree(tracked[0], tmp_path / "run"))
    config = json.loads((run / "configs" / "inference.json").read_text())
    config["autocast_dtype"] = f"$(__import__('pathlib').Path({str(marker)!r}).touch(), 'float32')[1]"
    (run / "configs" / "inference.json").write_text(json.dumps(config))
    packed = tmp_path / "bundle.zip"
    packed.write_bytes(pack_bundle(run, CaseCodes([])))
    model = save_model(packed, tmp_path / "model")
    assert not marker.exists()  # logging a model runs nothing of it
    with pytest.raises(SecurityError, match="executed") as info:
        mlflow.pyfunc.load_model(str(model))
    assert not marker.exists()
    word = re.search("MEDUNET_TRUST=([0-9a-f]{64})", str(info.value))
    assert word is not None
    monkeypatch.setenv("MEDUNET_TRUST", word[1])
    image = sorted((patients / "imagesTr").iterdir())[0]
    assert mlflow.pyfunc.load_model(str(model)).predict(str(image)).shape == (48, 48)
    assert marker.exists()
    monkeypatch.delenv("MEDUNET_TRUST")
    with pytest.raises(SecurityError):
        mlflow.pyfunc.load_model(str(model))


@pytest.mark.slow
def test_a_served_model_answers_what_the_command_predicts(
    tracked: tuple[Path, str], patients: Path, tmp_path: Path, serve: Callable[[str, str], Any]
) -> None:
    run, uri = tracked
    image = sorted((patients / "imagesTr").iterdir())[1]
    expected = read_volume(Predictor(run, output_dir=tmp_path, device="cpu").predict_case(image)).image
    address = serve("models:/mine/1", uri)
    for given in (str(image), np.asarray(read_volume(image).image.as_tensor()).tolist()):
        answer = requests.post(f"{address}/invocations", json={"inputs": [given]}, timeout=120)
        assert answer.ok, answer.text[:500]
        [found] = answer.json()["predictions"]
        assert np.array_equal(np.array(found), np.asarray(expected.as_tensor())[0])
    absent = requests.post(f"{address}/invocations", json={"inputs": ["absent.png"]}, timeout=120)
    assert absent.status_code == 400
    assert "absent.png" in absent.json()["message"]
    assert len(absent.text) < 400


def test_runs_are_listed_compared_and_found_again(
    tracked: tuple[Path, str], patients: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, uri = tracked
    changes = {**SMALL, "epochs": 1, "learning_rate": 0.0}
    train_bundle(
        find_bundle("unet_2d"), patients, run.with_name("other"), changes=changes, device="cpu", tracking_uri=uri
    )
    found = list_runs(uri)
    assert [one.name for one in found] == ["other", "mine"]
    rows = differing(found)
    assert rows["epochs"] == ["1", "2"]
    assert rows["learning_rate"] == ["0.0", "0.003"]
    assert "seed" not in rows
    best = best_run(found)
    assert best.metrics["kept_val_mean_dice"] == max(one.metrics["kept_val_mean_dice"] for one in found)
    assert folder_of(find_run("mine", found), run.parent) == run

    def medunet(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["medunet", "runs", *map(str, words), "--runs", str(run.parent)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as info:
            main()
        assert not info.value.code
        return capsys.readouterr().out

    assert "mine fold 0" in medunet("list", "--folds")
    assert "learning_rate" in medunet("compare", "mine", "other")
    assert f"medunet predict {folder_of(best, run.parent)}" in medunet("best")
    assert "1 epochs" not in medunet("resume", "mine")  # finished: nothing is trained again
    assert len(json.loads((run / "eval" / "history.json").read_text())) == 2


@pytest.mark.slow
def test_a_cross_validation_is_one_run_with_its_folds_and_its_ensemble(patients: Path, tmp_path: Path) -> None:
    uri, output = f"sqlite:///{tmp_path}/mlruns.db", tmp_path / "cv"
    changes = {**SMALL, "epochs": 1, "tracking_pictures": False, "system_metrics": False}
    result = train_folds(find_bundle("unet_2d"), patients, output, changes=changes, device="cpu", tracking_uri=uri)
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
    assert len(Path(table).read_text().splitlines()) == 1 + len(open_dataset(patients).cases)
    assert "Mustermann" not in Path(table).read_text()
    [version] = client.search_model_versions("name = 'cv'")
    assert version.run_id == training.run_id
    assert folder_of(training, tmp_path) == output
    assert [judge(run).reason for run in (output, output / "fold_0", output / "fold_1")] == ["known"] * 3
    again = resume_run(output, device="cpu", tracking_uri=uri)
    assert again.is_whole
    assert len(list_runs(uri, folds=True)) == 3


def test_weights_hold_no_path(tracked: tuple[Path, str]) -> None:
    assert set(torch.load(tracked[0] / "models" / "model.pt", weights_only=True)) == {"model"}
