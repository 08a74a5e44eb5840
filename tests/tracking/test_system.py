"""System metrics: what is measured, and that they take the way of all others."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlflow.system_metrics.metrics import gpu_monitor

from medunet.tracking.system import SystemMetrics

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow


def measure(
    monkeypatch: pytest.MonkeyPatch, *, first_step: int = 0, samples: int = 2
) -> list[tuple[dict[str, float], int]]:
    """What a monitor hands over until it has so many samples."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    put: list[tuple[dict[str, float], int]] = []
    monitor = SystemMetrics(lambda values, step: put.append((values, step)), first_step=first_step)
    monitor.start()
    end = time.monotonic() + 60
    while len(put) < samples and time.monotonic() < end:
        time.sleep(0.02)
    monitor.finish()
    return put


def test_the_machine_is_measured_and_samples_are_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure(monkeypatch, first_step=7)
    assert [step for _, step in found[:2]] == [7, 8]
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(found[0][0])


class TwoGpus:
    """NVIDIA's library on a machine with two of them; the second does not tell its power."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> Any:
        return SimpleNamespace(used=(gpu + 1) * 2e9, total=8e9)

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> Any:
        return SimpleNamespace(gpu=90 - gpu)

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:
        if gpu:
            raise self.NVMLError("not supported")
        return 150_000

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu: int) -> int:
        return 300_000


def test_gpus_are_measured_by_nvidias_library(monkeypatch: pytest.MonkeyPatch) -> None:
    library = TwoGpus()
    monkeypatch.setitem(sys.modules, "pynvml", library)  # type: ignore[arg-type] # stands for the module
    monkeypatch.setattr(gpu_monitor, "pynvml", library, raising=False)
    values, _ = measure(monkeypatch)[0]
    gpus = {key.removeprefix("system/"): value for key, value in values.items() if "gpu" in key}
    assert gpus == {
        "gpu_0_memory_usage_percentage": 25.0,
        "gpu_0_memory_usage_megabytes": 2000.0,
        "gpu_0_utilization_percentage": 90.0,
        "gpu_0_power_usage_watts": 150.0,
        "gpu_0_power_usage_percentage": 50.0,
        "gpu_1_memory_usage_percentage": 50.0,
        "gpu_1_memory_usage_megabytes": 4000.0,
        "gpu_1_utilization_percentage": 89.0,
    }


def test_a_machine_without_gpu_has_no_such_metrics_with_the_library_either(monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: pip install 'medunet[gpu]'")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(gpu_monitor, "pynvml", library, raising=False)
    values, _ = measure(monkeypatch)[0]
    assert not [key for key in values if "gpu" in key]


@pytest.mark.cuda
def test_this_machines_gpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: pip install 'medunet[gpu]'")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    values, _ = measure(monkeypatch)[0]
    assert values["system/gpu_0_memory_usage_megabytes"] > 0
    assert 0 <= values["system/gpu_0_utilization_percentage"] <= 100
