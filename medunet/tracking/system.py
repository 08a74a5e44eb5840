"""MLflow's system and GPU metrics, on the way that all others take: through the spool."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it tells of its start and its end

INTERVAL_SECONDS = 10.0
"""Between two samples, unless `MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL` says otherwise."""


class SystemMetrics(SystemMetricsMonitor):
    """MLflow's monitor of processor, memory, disk, network and, with `nvidia-ml-py`, GPUs.

    MLflow's own thread ends when its server does not answer once, and loses what it had; this one asks no server.

    Args:
        put: takes the values and the number of the sample.
        first_step: number of the first sample; a resumed training counts on.
    """

    def __init__(self, put: Callable[[dict[str, float], int], None], *, first_step: int = 0) -> None:
        super().__init__("", sampling_interval=INTERVAL_SECONDS, tracking_uri="sqlite://")  # neither is used
        self._put = put
        self._logging_step = first_step

    def monitor(self) -> None:
        """Sample until `finish`."""
        while not self._shutdown_event.is_set():
            for _ in range(self.samples_before_logging):
                self.collect_metrics()
                if self._shutdown_event.wait(self.sampling_interval):
                    break
            self.publish_metrics(self.aggregate_metrics())

    def publish_metrics(self, metrics: dict[str, Any]) -> None:
        """Hand over the means of the samples."""
        if metrics:
            self._put(
                {f"{self._metrics_prefix}{key}": float(value) for key, value in metrics.items()}, self._logging_step
            )
        self._logging_step += 1
        for monitor in self.monitors:
            monitor.clear_metrics()
