"""System metrics: the values, and the file that they are written to."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlflow.system_metrics.metrics import gpu_monitor

from medunet.tracking.environment import SystemMetrics

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow


Sample = dict[str, tuple[float, int]]


def measure(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[Sample]:
    """Value and step by key of each sample that a monitor writes until it is stopped after the second one."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monitor, end = SystemMetrics(path), time.monotonic() + 60
    monitor.start()
    while time.monotonic() < end and (not path.is_file() or path.read_text().count("\n") < 2):
        time.sleep(0.02)
    monitor.finish()
    return [{key: (value, step) for key, value, _, step in json.loads(line)} for line in path.read_text().splitlines()]


def test_the_machine_is_measured_and_a_resumed_run_continues_the_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text("[]\n" * 7)
    monitor = SystemMetrics(path)
    monitor.start()
    monitor.finish()  # takes a last sample
    [(key, _, _, step), *_] = json.loads(path.read_text().splitlines()[7])
    assert key.startswith("system/") and step == 7
    first = measure(monkeypatch, tmp_path / "new.jsonl")[0]
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(first)
    assert {step for _, step in first.values()} == {0}


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


def test_gpus_are_measured_by_nvidias_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = TwoGpus()
    monkeypatch.setitem(sys.modules, "pynvml", library)  # type: ignore[arg-type] # stands for the module
    monkeypatch.setattr(gpu_monitor, "pynvml", library, raising=False)
    values = measure(monkeypatch, tmp_path / "samples")[0]
    gpus = {key.removeprefix("system/"): value for key, (value, _) in values.items() if "gpu" in key}
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


def test_a_machine_without_gpu_has_no_gpu_metrics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: pip install 'medunet[gpu]'")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(gpu_monitor, "pynvml", library, raising=False)
    values = measure(monkeypatch, tmp_path / "samples")[0]
    assert not [key for key in values if "gpu" in key]


@pytest.mark.cuda
def test_this_machines_gpu_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: pip install 'medunet[gpu]'")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    values = measure(monkeypatch, tmp_path / "samples")[0]
    assert values["system/gpu_0_memory_usage_megabytes"][0] > 0
    assert 0 <= values["system/gpu_0_utilization_percentage"][0] <= 100
