"""MLflow: what a training logs, and what happens when it cannot."""

from __future__ import annotations

import itertools
import json
import logging
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
from medunet.tracking import TrackingHandler, list_runs, send_waiting
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
    """A training of two steps an epoch with the losses 4 and 2, then half of that in each epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)

    def step(engine: Engine, batch: int) -> dict[str, torch.Tensor]:
        return {"loss": torch.tensor((4.0, 2.0)[batch] / 2 ** (engine.state.epoch - 1))}

    engine = Engine(step)
    if first:
        engine.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", first))
    defaults = {"system_metrics": False, "experiment_name": "e", "run_name": "r", "patience": 30.0}
    TrackingHandler(tracking_uri=uri, folder=str(folder), **{**defaults, **options}).attach(engine)
    HistoryHandler(str(folder), optimizer=optimizer, resume=bool(first)).attach(engine)
    # after the handler's own, which is registered when the training starts
    engine.add_event_handler(
        Events.STARTED,
        lambda engine: engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: after(engine.state.epoch)),
    )
    engine.run([0, 1], max_epochs=epochs)


def runs_of(uri: str) -> tuple[mlflow.MlflowClient, mlflow.entities.Run, mlflow.entities.Run]:
    """The client, the training and its fold."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    by_kind = {run.data.tags["medunet.kind"]: run for run in found}
    assert len(found) == len(by_kind) == 2
    return client, by_kind["training"], by_kind["fold"]


def losses(client: mlflow.MlflowClient, run: mlflow.entities.Run) -> dict[int, float]:
    points = client.get_metric_history(run.info.run_id, "loss")
    assert len({point.step for point in points}) == len(points), "an epoch was logged twice"
    return {point.step: point.value for point in points}


def test_the_handler_alone_logs_the_curves_of_monais_trainer(
    tmp_path: Path,
) -> None:
    uri = f"sqlite:///{tmp_path}/mlruns.db"
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    data = [{"image": torch.rand(1, 8, 8), "label": torch.ones(1, 8, 8)} for _ in range(2)]
    validator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(data, batch_size=1),
        network=network,
        key_val_metric={"dice": MeanDice(num_classes=2, output_transform=from_engine(["pred", "label"]))},
        postprocessing=AsDiscreted(keys="pred", argmax=True),
    )
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=2,
        train_data_loader=DataLoader(data, batch_size=1),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=DiceLoss(to_onehot_y=True, softmax=True),
        train_handlers=[ValidationHandler(interval=1, validator=validator)],
    )
    handler = TrackingHandler(
        tracking_uri=uri,
        folder=str(tmp_path / "eval"),
        experiment_name="e",
        run_name="r",
        system_metrics=False,
        validator=validator,
        class_names=["background", "cell"],
    )
    handler.attach(trainer)
    trainer.run()
    client, _, fold = runs_of(uri)
    assert sorted(losses(client, fold)) == [1, 2]
    assert len(client.get_metric_history(fold.info.run_id, "dice")) == 2


def test_the_end_of_a_training_does_not_wait_for_a_digest_without_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "large.nii").write_bytes(bytes(100))
    monkeypatch.setattr("medunet.tracking.dataset._blocks", lambda path: itertools.repeat(b"x"))
    data = SimpleNamespace(data=[{"image": str(tmp_path / "large.nii"), "name": "large"}])
    train(tmp_path / "eval", f"sqlite:///{tmp_path}/mlruns.db", datasets=[data], patience=0.5)
    assert "digest of the data set was stopped" in caplog.text


def test_a_training_is_a_run_and_its_fold_a_child(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlruns.db"
    train(tmp_path, uri, params={"epochs": 2})
    client, training, fold = runs_of(uri)
    assert training.info.run_name == "r"
    assert (training.info.status, fold.info.status) == ("FINISHED", "FINISHED")
    assert fold.data.tags["mlflow.parentRunId"] == training.info.run_id
    assert losses(client, fold) == {1: 3.0, 2: 1.5}
    assert fold.data.metrics["lr"] == 0.5
    assert fold.data.params["epochs"] == "2"
    assert "version::torch" in fold.data.params
    names = {file.path for file in client.list_artifacts(fold.info.run_id)}
    assert {"environment", "plots", "history.json"} <= names
    assert not list((tmp_path / "tracking").glob("0*"))


def test_a_training_of_folds_is_not_told_to_be_one_of_them(tmp_path: Path) -> None:
    run, uri = tmp_path / "fold_3", f"sqlite:///{tmp_path}/mlruns.db"
    changes = {"bundle": "unet_2d", "changed": {"fold": [0, 3], "epochs": [60, 2]}}
    for name, content in (("configs/train", {"fold": 3, "epochs": 2}), ("docs/changes", changes)):
        path = run / f"{name}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    train(run / "eval", uri, bundle_root=str(run), training_dir=str(tmp_path), fold=3, model=False)
    _, training, fold = runs_of(uri)
    assert (training.data.tags["medunet.changed"], fold.data.tags["medunet.changed"]) == ("epochs", "fold, epochs")
    assert "`fold`" in fold.data.tags["mlflow.note.content"]
    assert "`fold`" not in training.data.tags["mlflow.note.content"]
    assert "fold" in fold.data.params and "fold" not in training.data.params


def test_all_runs_are_listed_however_many_the_store_gives_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlruns.db"
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("e")
    for number in range(5):
        client.create_run(experiment, run_name=str(number), start_time=1 + number, tags={"medunet.kind": "training"})
    monkeypatch.setattr("medunet.tracking.runs.RUNS_AT_ONCE", 2)
    assert [run.name for run in list_runs(uri, experiment_name="e")] == ["4", "3", "2", "1", "0"]


@pytest.mark.parametrize("uri", [None, ""])
def test_tracking_can_be_turned_off(tmp_path: Path, uri: str | None) -> None:
    train(tmp_path, uri)
    assert not list(tmp_path.rglob("*.db"))


def test_only_the_first_process_logs(tmp_path: Path) -> None:
    train(tmp_path, f"sqlite:///{tmp_path}/mlruns.db", is_writer=False)
    assert not list(tmp_path.rglob("*.db"))


def test_a_store_that_cannot_be_used_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MLflow"):
        train(tmp_path, f"file://{tmp_path}/mlruns")


def test_a_server_that_is_down_at_the_start_is_one_line_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as info:
        train(tmp_path, "http://me:secret@127.0.0.1:9")
    assert str(info.value) == (
        "the MLflow server does not answer (received http://127.0.0.1:9); "
        "remedy: start the server, or train with --tracking-uri '' to go without"
    )
    assert not (tmp_path / "history.json").exists()


def test_a_store_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # MLflow takes seconds to make its tables, and cannot open a file that has some of them
    search = mlflow.MlflowClient.search_experiments

    def interrupted(client: mlflow.MlflowClient, **options: object) -> object:
        search(client, **options)
        raise KeyboardInterrupt

    uri = f"sqlite:///{tmp_path}/mlruns.db"
    monkeypatch.setattr(mlflow.MlflowClient, "search_experiments", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, uri)
    assert not list(tmp_path.rglob("*.db"))
    monkeypatch.setattr(mlflow.MlflowClient, "search_experiments", search)
    train(tmp_path, uri)
    assert mlflow.MlflowClient(tracking_uri=uri).get_experiment_by_name("e") is not None


@pytest.mark.parametrize(("error", "status"), [(ValueError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_what_ends_a_training_early_is_told_and_raised(tmp_path: Path, error: BaseException, status: str) -> None:
    def stop(epoch: int) -> None:
        raise error

    uri = f"sqlite:///{tmp_path}/mlruns.db"
    with pytest.raises(type(error)):
        train(tmp_path, uri, after=stop)
    client, training, fold = runs_of(uri)
    assert (training.info.status, fold.info.status) == (status, status)
    assert losses(client, fold) == {1: 3.0}


def test_a_resumed_training_goes_on_in_its_run(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlruns.db"
    train(tmp_path, uri, epochs=2)
    # a process that was killed after the history was written, but before the epoch could be logged
    (tmp_path / "tracking" / "logged_epoch").write_text("1")
    train(tmp_path, uri, epochs=3, first=2, resume=True)
    client, _, fold = runs_of(uri)
    steps = [point.step for point in client.get_metric_history(fold.info.run_id, "loss")]
    assert sorted(set(steps)) == [1, 2, 3]


def test_nothing_is_lost_when_the_server_is_down_for_a_while(
    tmp_path: Path, server: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

    def disturb(epoch: int) -> None:
        if epoch == 2:
            server.stop()
        if epoch == 4:
            server.start()

    with caplog.at_level(logging.INFO, logger="medunet"):
        train(tmp_path, server.uri, epochs=5, after=disturb)
    assert losses(*runs_of(server.uri)[::2]) == {1: 3.0, 2: 1.5, 3: 0.75, 4: 0.375, 5: 0.1875}
    client, training, fold = runs_of(server.uri)
    assert (training.info.status, fold.info.status) == ("FINISHED", "FINISHED")
    assert {file.path for file in client.list_artifacts(fold.info.run_id)} >= {"plots", "history.json"}


def test_what_a_training_could_not_send_is_sent_by_the_next_one_or_by_hand(
    tmp_path: Path, server: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

    def disturb(epoch: int) -> None:
        if epoch == 1:
            server.stop()

    run = tmp_path / "liver" / "seed0" / "eval"
    with caplog.at_level(logging.WARNING, logger="medunet"):
        train(run, server.uri, epochs=2, after=disturb)
    assert "does not answer: training goes on" in caplog.text
    assert "medunet runs sync" in caplog.text
    # resumed while the server is still down, then with a server
    train(run, server.uri, epochs=3, first=2, resume=True)
    server.start()
    sent, left = send_waiting(tmp_path)
    assert sent > 0
    assert left == 0
    assert losses(*runs_of(server.uri)[::2]) == {1: 3.0, 2: 1.5, 3: 0.75}
    server.stop()
    train(run, server.uri, epochs=4, first=3, resume=True)
    server.start()
    train(run, server.uri, epochs=5, first=4, resume=True)
    client, training, fold = runs_of(server.uri)
    assert losses(client, fold) == {1: 3.0, 2: 1.5, 3: 0.75, 4: 0.375, 5: 0.1875}
    assert (training.info.status, fold.info.status) == ("FINISHED", "FINISHED")


def test_nothing_is_lost_when_the_login_ends_in_mid_run(
    tmp_path: Path, gate: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with gate(401) as proxy:

        def disturb(epoch: int) -> None:
            if epoch == 2:
                proxy.token = "of tomorrow"

        with caplog.at_level(logging.WARNING, logger="medunet"):
            train(tmp_path / "eval", proxy.uri, epochs=4, after=disturb)
        assert caplog.text.count("does not take the login any more: training goes on") == 1
        assert send_waiting(tmp_path)[0] == 0
        assert not list((tmp_path / "eval" / "tracking").glob("refused/*"))
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of tomorrow")
        assert send_waiting(tmp_path)[1] == 0
        client, training, fold = runs_of(proxy.uri)
        assert losses(client, fold) == {1: 3.0, 2: 1.5, 3: 0.75, 4: 0.375}
        assert (training.info.status, fold.info.status) == ("FINISHED", "FINISHED")
        assert {file.path for file in client.list_artifacts(fold.info.run_id)} >= {"plots", "history.json"}


def test_a_fold_that_starts_while_the_server_is_down_gets_its_run_later(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    for fold in (0, 1):
        train(tmp_path / f"fold_{fold}" / "eval", server.uri, training_dir=str(tmp_path), fold=fold)
        server.stop()
    server.start()
    send_waiting(tmp_path)
    client = mlflow.MlflowClient(tracking_uri=server.uri)
    found = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    [training] = [run for run in found if run.data.tags["medunet.kind"] == "training"]
    folds = [run for run in found if run.data.tags.get("mlflow.parentRunId") == training.info.run_id]
    assert {run.data.tags["medunet.fold"] for run in folds} == {"0", "1"}
    for run in folds:
        assert losses(client, run) == {1: 3.0, 2: 1.5}
