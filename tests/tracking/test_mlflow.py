"""MLflow: what a training run logs, and what happens when it cannot."""

import json
import logging
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, ValidationHandler, from_engine
from monai.losses import DiceLoss
from monai.transforms import AsDiscreted

from medunet.errors import ConfigError
from medunet.tracking import TrackingHandler, sync_runs
from medunet.tracking.record import RunRecord
from medunet.training import HistoryHandler

# MLflow and SQLAlchemy warn about themselves
pytestmark = pytest.mark.filterwarnings("ignore")


def train(
    folder: Path,
    uri: str | None,
    *,
    epochs: int = 2,
    first: int = 0,
    after: Callable[[int], None] = lambda epoch: None,
    **options: Any,
) -> None:
    """A training run of two steps per epoch with the losses 4 and 2, then half of that in each epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)

    def step(engine: Engine, batch: int) -> dict[str, torch.Tensor]:
        return {"loss": torch.tensor((4.0, 2.0)[batch] / 2 ** (engine.state.epoch - 1))}

    engine = Engine(step)
    if first:
        engine.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", first))
    defaults = {"system_metrics": False, "experiment_name": folder.parts[-2], "run_name": "r", "patience": 30.0}
    TrackingHandler(tracking_uri=uri, folder=str(folder), **{**defaults, **options}).attach(engine)
    HistoryHandler(str(folder), optimizer=optimizer, resume=bool(first)).attach(engine)
    # after the handler's own, which is registered when the training run starts
    engine.add_event_handler(
        Events.STARTED,
        lambda engine: engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: after(engine.state.epoch)),
    )
    engine.run([0, 1], max_epochs=epochs)


def contents(archive: Path) -> dict[str, bytes]:
    """Files of a packed bundle, except those that get hashes of weights and results after the run has ended."""
    with zipfile.ZipFile(archive) as opened:
        names = set(opened.namelist()) - {"configs/metadata.json", "docs/README.md"}
        return {name: opened.read(name) for name in names}


class Content:
    """What an experiment of a store has: one training, and its folds by number."""

    def __init__(self, uri: str, experiment: str, *, has_parents: bool = True) -> None:
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        runs = self.client.search_runs([self.client.get_experiment_by_name(experiment).experiment_id])
        [self.training] = [run for run in runs if run.data.tags["medunet.kind"] == "training"]
        children = [run for run in runs if run.data.tags["medunet.kind"] == "fold"]
        self.folds = {int(run.data.tags["medunet.fold"]): run for run in children}
        assert len(runs) == 1 + len(self.folds)
        parents = {run.data.tags.get("mlflow.parentRunId") for run in children}
        assert not has_parents or parents == {self.training.info.run_id}

    @property
    def fold(self) -> mlflow.entities.Run:
        [only] = self.folds.values()
        return only

    @property
    def statuses(self) -> set[str]:
        return {run.info.status for run in (self.training, *self.folds.values())}

    def losses(self, fold: int = 0) -> dict[int, float]:
        points = self.client.get_metric_history(self.folds[fold].info.run_id, "loss")
        assert len({point.step for point in points}) == len(points), "an epoch was logged twice"
        return {point.step: point.value for point in points}

    def files(self, run: mlflow.entities.Run) -> dict[str, Path]:
        if not self.client.list_artifacts(run.info.run_id):
            return {}
        root = Path(self.client.download_artifacts(run.info.run_id, ""))
        return {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}

    def everything(self, run: mlflow.entities.Run) -> dict[str, Any]:
        """All of a run but its ids."""
        client, info = self.client, run.info
        own = ("mlflow.parentRunId", "medunet.key", "mlflow.user")
        [*models] = client.search_logged_models([info.experiment_id], filter_string=f"source_run_id = '{info.run_id}'")
        files = self.files(run)
        return {
            "info": (info.run_name, info.status, info.start_time, info.end_time),
            "params": run.data.params,
            "tags": {key: value for key, value in run.data.tags.items() if key not in own},
            "metrics": {
                key: [
                    (point.value, point.timestamp, point.step) for point in client.get_metric_history(info.run_id, key)
                ]
                for key in run.data.metrics
            },
            "inputs": [(one.dataset.to_dictionary(), one.tags[0].value) for one in run.inputs.dataset_inputs],
            "files": {name: path.read_bytes() for name, path in files.items() if name != "bundle.zip"},
            "bundle": [contents(path) for name, path in files.items() if name == "bundle.zip"],
            "models": [({(one.key, one.value, one.step) for one in model.metrics}, model.params) for model in models],
            "versions": len(client.search_model_versions(f"run_id = '{info.run_id}'")),
        }


def test_a_trainer_without_a_history_handler_gets_one(tmp_path: Path, uri: str) -> None:
    network, data = torch.nn.Conv2d(1, 2, 3, padding=1), [{"image": torch.rand(1, 8, 8), "label": torch.ones(1, 8, 8)}]
    common: dict[str, Any] = {"device": "cpu", "network": network}
    validator = SupervisedEvaluator(
        val_data_loader=DataLoader(data, batch_size=1),
        key_val_metric={"dice": MeanDice(num_classes=2, output_transform=from_engine(["pred", "label"]))},
        postprocessing=AsDiscreted(keys="pred", argmax=True),
        **common,
    )
    trainer = SupervisedTrainer(
        max_epochs=2,
        train_data_loader=DataLoader(data, batch_size=1),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=DiceLoss(to_onehot_y=True, softmax=True),
        train_handlers=[ValidationHandler(interval=1, validator=validator)],
        **common,
    )
    options: dict[str, Any] = {"experiment_name": "e", "system_metrics": False, "validator": validator}
    TrackingHandler(tracking_uri=uri, folder=str(tmp_path), class_names=["background", "cell"], **options).attach(
        trainer
    )
    trainer.run()
    content = Content(uri, "e")
    assert sorted(content.losses()) == [1, 2]
    assert len(content.client.get_metric_history(content.fold.info.run_id, "dice")) == 2


def test_the_end_of_a_training_run_does_not_wait_indefinitely_for_a_digest(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "ab":
        (tmp_path / name).touch()
    monkeypatch.setattr("medunet.tracking.content.sha256_of", lambda path: time.sleep(0.3) or "0")
    data = SimpleNamespace(data=[{"image": str(tmp_path / name), "name": name} for name in "ab"])
    train(tmp_path / "eval", uri, datasets=[data], patience=0.1)
    assert "digest of the data set was stopped" in caplog.text


def test_a_training_run_has_its_fold_as_a_child(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlruns.db"
    train(tmp_path / "eval", uri, params={"epochs": 2})
    content = Content(uri, tmp_path.name)
    assert content.training.info.run_name == "r"
    assert content.statuses == {"FINISHED"}
    assert content.losses() == {1: 3.0, 2: 1.5}
    times = [point.timestamp for point in content.client.get_metric_history(content.fold.info.run_id, "lr")]
    assert times == [entry["time"] for entry in json.loads((tmp_path / "eval" / "history.json").read_text())]
    assert content.fold.data.metrics["lr"] == 0.5
    assert content.fold.data.params["epochs"] == "2"
    assert "version::torch" in content.fold.data.params
    files = {"environment/environment.json", "environment/requirements.txt", "plots/curves.png", "history.json"}
    assert files <= content.files(content.fold).keys()
    assert sync_runs(tmp_path) == (0, 0)


def test_a_parent_shows_no_parameter_of_a_single_fold(tmp_path: Path, uri: str) -> None:
    run = tmp_path / "fold_3"
    changes = {"bundle": "unet_2d", "changed": {"fold": [0, 3], "epochs": [60, 2]}}
    for name, content in (("configs/train", {"fold": 3, "epochs": 2}), ("docs/changes", changes)):
        path = run / f"{name}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    train(run / "eval", uri, bundle_root=str(run), training_dir=str(tmp_path), fold=3, model=False)
    logged = Content(uri, run.name)
    training, fold = logged.training.data, logged.fold.data
    assert (training.tags["medunet.changed"], fold.tags["medunet.changed"]) == ("epochs", "fold, epochs")
    assert "`fold`" in fold.tags["mlflow.note.content"]
    assert "`fold`" not in training.tags["mlflow.note.content"]
    assert "fold" in fold.params and "fold" not in training.params


@pytest.mark.parametrize("options", [{"uri": None}, {"uri": ""}, {"is_writer": False}])
def test_tracking_can_be_turned_off_and_only_the_first_process_logs(tmp_path: Path, options: dict[str, Any]) -> None:
    train(tmp_path / "eval", **{"uri": f"sqlite:///{tmp_path}/mlruns.db", **options})
    assert not list(tmp_path.rglob("*.db"))


def test_an_unusable_store_is_reported_in_one_line_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot log to MLflow: MLflow no longer supports"):
        train(tmp_path, f"file://{tmp_path}/mlruns")
    with pytest.raises(ConfigError) as info:
        train(tmp_path, "http://me:secret@127.0.0.1:9")
    assert str(info.value) == (
        "the MLflow server does not answer (received http://127.0.0.1:9); "
        "remedy: start the server, or train with --no-tracking"
    )
    assert not (tmp_path / "history.json").exists()


def test_a_store_is_created_atomically(tmp_path: Path, create_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # MLflow takes seconds to make its tables, and cannot open a file that has some of them
    def interrupted(client: mlflow.MlflowClient, **options: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("medunet.tracking.server.create_store", create_store)
    monkeypatch.setattr(mlflow.MlflowClient, "search_experiments", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "eval", f"sqlite:///{tmp_path}/mlruns.db")
    assert not list(tmp_path.rglob("*.db"))


@pytest.mark.parametrize(("error", "status"), [(ValueError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_an_error_that_ends_training_is_logged_and_raised(
    tmp_path: Path, uri: str, error: BaseException, status: str
) -> None:
    def stop(epoch: int) -> None:
        raise error

    with pytest.raises(type(error)):
        train(tmp_path / "eval", uri, after=stop)
    content = Content(uri, tmp_path.name)
    assert content.statuses == {status}
    assert content.losses() == {1: 3.0}


def test_a_resumed_run_sends_epochs_that_a_killed_process_did_not_send(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(epoch: int) -> None:
        """Let nothing reach MLflow, as though the process was killed after the history was written."""
        if epoch == 2:
            monkeypatch.setattr("medunet.tracking.record.Delivery.run", lambda delivery: True)

    train(tmp_path / "eval", uri, epochs=3, after=kill)
    monkeypatch.undo()
    assert 3 not in Content(uri, tmp_path.name).losses()
    train(tmp_path / "eval", uri, epochs=4, first=3, resume=True)
    content = Content(uri, tmp_path.name)
    assert content.losses() == {1: 3.0, 2: 1.5, 3: 0.75, 4: 0.375}
    assert content.statuses == {"FINISHED"}


def test_values_that_mlflow_rejects_do_not_block_the_others(
    tmp_path: Path, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "eval", uri, params={"a" * 300: 1})  # MLflow accepts 250 characters
    assert "MLflow rejects params" in caplog.text
    assert Content(uri, tmp_path.name).losses() == {1: 3.0, 2: 1.5}
    assert sync_runs(tmp_path) == (0, 2)


def test_sync_replays_exactly_what_training_sends(tmp_path: Path, server: Any, run_2d: Path) -> None:
    original = Content(f"sqlite:///{run_2d.parent}/mlruns.db", "medunet")
    copy = Path(shutil.copytree(run_2d, tmp_path / "run"))
    for file in (copy / "training.json", copy / "eval" / "tracking.json"):  # as though nothing had been sent
        with RunRecord.edit(file) as record:
            record.uri, record.experiment, record.key = server.uri, "replayed", f"new {file.name}"
            record.run_id, record.sent_epoch, record.sent_samples, record.is_synced = "", 0, 0, False
            record.tags.pop("mlflow.parentRunId", None)
    assert sync_runs(tmp_path) == (2, 0)
    replayed = Content(server.uri, "replayed", has_parents=False)
    assert replayed.everything(replayed.training) == original.everything(original.training)
    expected = original.everything(original.fold)
    assert replayed.everything(replayed.fold) == expected
    assert {"validation/cases.csv", "config/train.json", "history.json"} <= set(expected["files"])
    assert expected["bundle"] and expected["models"] and expected["versions"] == 1 and len(expected["inputs"]) == 2
    assert {"loss", "system/cpu_utilization_percentage"} <= set(expected["metrics"])


def test_sync_sends_what_the_server_rejected_during_a_run(
    tmp_path: Path, gate: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medunet.tracking.mlflow.TIME_SHARE", 1e9)  # try after each epoch
    run = tmp_path / "liver" / "seed0" / "eval"

    def lock_out(epoch: int) -> None:
        if epoch == 2:
            gate.token = "of tomorrow"

    with caplog.at_level(logging.WARNING, logger="medunet"):
        train(run, gate.uri, epochs=4, after=lock_out)
        assert caplog.text.count("training continues") == 1
        train(run, gate.uri, epochs=5, first=4, resume=True)  # the server still rejects the login
    assert "medunet runs sync" in caplog.text
    assert sync_runs(tmp_path) == (0, 2)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of tomorrow")
    assert sync_runs(tmp_path) == (2, 0)
    content = Content(gate.uri, "seed0")
    assert list(content.losses()) == [1, 2, 3, 4, 5]
    assert content.statuses == {"FINISHED"}
    assert {"plots/curves.png", "history.json"} <= content.files(content.fold).keys()
    assert sync_runs(tmp_path) == (0, 0)


def test_a_hanging_server_is_tried_once_and_once_at_the_end(
    tmp_path: Path, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("mlflow", "server"):
        monkeypatch.setattr(f"medunet.tracking.{module}.PROBE_SECONDS", 1)
    monkeypatch.setattr("medunet.tracking.mlflow.TIME_SHARE", 1e-9)
    train(tmp_path / "eval", gate.uri, epochs=1)
    gate.is_hanging = True
    train(tmp_path / "eval", gate.uri, epochs=5, first=1, resume=True)
    assert gate.waiting == 2
    gate.is_hanging = False
    assert sync_runs(tmp_path) == (2, 0)
    assert list(Content(gate.uri, tmp_path.name).losses()) == [1, 2, 3, 4, 5]


def test_a_fold_that_starts_while_the_server_is_down_gets_its_run_later(tmp_path: Path, gate: Any) -> None:
    for fold in (0, 1):
        train(tmp_path / f"fold_{fold}" / "eval", gate.uri, training_dir=str(tmp_path), fold=fold, experiment_name="f")
        gate.token = "another"
    gate.token = "of today"
    assert sync_runs(tmp_path) == (2, 0)  # the parent and the second fold
    content = Content(gate.uri, "f")
    assert content.losses(0) == content.losses(1) == {1: 3.0, 2: 1.5}


def test_sync_sends_everything_after_a_server_outage(
    tmp_path: Path, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "liver" / "stopped" / "eval"
    with caplog.at_level(logging.WARNING, logger="medunet"):
        train(run, server.uri, epochs=3, after=lambda epoch: server.stop())
        train(run, server.uri, epochs=4, first=3, resume=True)  # the server is still down
    assert caplog.text.count("training continues") == 1  # of the second part; the first noticed it at its end
    assert "medunet runs sync" in caplog.text
    assert sync_runs(tmp_path) == (0, 2)
    server.start()
    assert sync_runs(tmp_path) == (2, 0)
    content = Content(server.uri, "stopped")
    assert content.losses() == {1: 3.0, 2: 1.5, 3: 0.75, 4: 0.375}
    assert content.statuses == {"FINISHED"}
    assert {"plots/curves.png", "history.json"} <= set(content.files(content.fold))
    assert sync_runs(tmp_path) == (0, 0)
