"""MLflow: what a training logs, and what happens when it cannot."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
import torch
from ignite.engine import Engine

from medunet.errors import ConfigError
from medunet.tracking import TrackingHandler
from medunet.training import HistoryHandler

# MLflow and SQLAlchemy warn about themselves
pytestmark = pytest.mark.filterwarnings("ignore")


def train(folder: Path, uri: str | None, **options: object) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    losses = iter([4.0, 2.0, 1.0, 0.5])
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(next(losses))})
    HistoryHandler(str(folder), optimizer=optimizer).attach(engine)
    TrackingHandler(tracking_uri=uri, **options).attach(engine)
    engine.run([0, 1], max_epochs=2)


def test_loss_and_learning_rate_of_every_epoch_are_logged(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlruns.db"
    train(tmp_path, uri, experiment_name="e", run_name="r", params={"epochs": 2})
    client = mlflow.MlflowClient(tracking_uri=uri)
    [run] = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert run.info.run_name == "r"
    assert run.info.status == "FINISHED"
    assert [point.value for point in client.get_metric_history(run.info.run_id, "loss")] == [3.0, 0.75]
    assert run.data.metrics["lr"] == 0.5
    assert run.data.params["epochs"] == "2"


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
    assert mlflow.MlflowClient(tracking_uri=uri).get_experiment_by_name("medunet") is not None
