"""MLflow for medunet's training: MONAI's handler, fed with loss, learning rate and validation once an epoch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from mlflow import MlflowClient
from monai.handlers import MLFlowHandler

from medunet.errors import ConfigError
from medunet.files import atomic_path

logger = logging.getLogger(__name__)

SQLITE_SCHEME = "sqlite:///"


class TrackingHandler:
    """Logs a training to MLflow; by default a SQLite file in the output folder.

    Built on MONAI's ``MLFlowHandler``, so ``--tracking mlflow`` of ``monai.bundle`` adds to the same run. MLflow is
    opened when the training starts, not when the configuration is read.

    Args:
        tracking_uri: ``sqlite:///...`` or the address of a server; the environment variable ``MLFLOW_TRACKING_URI``
            wins; ``None`` or ``""`` turns tracking off.
        experiment_name: MLflow experiment.
        run_name: MLflow run; by default the time of the start.
        validator: evaluator whose metrics are logged in the epochs in which it ran.
        params: what the run was configured with.
        is_writer: False on all but the first process.
    """

    def __init__(
        self,
        *,
        tracking_uri: str | None,
        experiment_name: str = "medunet",
        run_name: str | None = None,
        validator: Any = None,
        params: dict[str, Any] | None = None,
        is_writer: bool = True,
    ) -> None:
        self.tracking_uri = tracking_uri
        self.experiment_name = experiment_name
        self.run_name = run_name
        self.validator = validator
        self.params = params
        self.is_writer = is_writer
        self._handler: MLFlowHandler | None = None

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, after its history handler."""
        if not self.tracking_uri or not self.is_writer:
            return
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self.complete)

    def start(self, engine: Any) -> None:
        """Open the run.

        Raises:
            ConfigError: the tracking store cannot be reached.
        """
        uri = str(self.tracking_uri)
        try:
            if uri.startswith(SQLITE_SCHEME) and not Path(uri.removeprefix(SQLITE_SCHEME)).exists():
                _make_store(Path(uri.removeprefix(SQLITE_SCHEME)))
            self._handler = MLFlowHandler(
                tracking_uri=uri,
                experiment_name=self.experiment_name,
                run_name=self.run_name,
                experiment_param=self.params,
            )
            self._handler.start(engine)
        except Exception as error:  # MLflow raises many types, its server's among them
            raise ConfigError(
                f"cannot log to MLflow: {str(error).splitlines()[0]}",
                received=uri,
                remedy="start the server, or train with --tracking_uri '' to go without",
            ) from error

    def epoch_completed(self, engine: Any) -> None:
        """Log the newest entry of the history; a failure is a warning, never the end of a training."""
        history = getattr(engine.state, "history", None)
        if self._handler is None or not history:
            return
        entry = history[-1]
        metrics = {"loss": entry["loss"], "lr": entry["lr"], "epoch_seconds": entry["seconds"]}
        metrics |= entry.get("val_metrics", {})
        metrics |= {f"val_dice_{name}": value for name, value in entry.get("val_dice", {}).items()}
        try:
            self._handler._log_metrics(metrics, step=entry["epoch"])
        except Exception as error:
            logger.warning("MLflow did not take the metrics of epoch %d: %s", entry["epoch"], error)

    def complete(self, engine: Any) -> None:
        """Close the run."""
        if self._handler is None:
            return
        try:
            self._handler.complete()
            self._handler.close()
        except Exception as error:
            logger.warning("MLflow run could not be closed: %s", error)


def _make_store(path: Path) -> None:
    """MLflow takes seconds to make its tables; a process that ended meanwhile would leave a file that never opens."""
    with atomic_path(path) as temporary:
        MlflowClient(f"{SQLITE_SCHEME}{temporary}").search_experiments(max_results=1)
