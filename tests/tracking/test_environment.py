"""System metrics: the values, and the file that they are written to."""

import json
import time
from pathlib import Path

import pytest
import torch
from mlflow.system_metrics.metrics import gpu_monitor

from medunet.tracking.content import SystemMetrics

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow


def measure(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[dict[str, tuple[float, int]]]:
    """Value and step by key of each sample that a monitor writes until it is stopped after the second one."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monitor, end = SystemMetrics(path), time.monotonic() + 60
    monitor.start()
    while time.monotonic() < end and (not path.is_file() or path.read_text().count("\n") < 2):
        time.sleep(0.02)
    monitor.finish()
    return [{key: (value, step) for key, value, _, step in json.loads(line)} for line in path.read_text().splitlines()]


def test_system_metrics_are_sampled_and_a_resumed_run_continues_the_step_count(
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


def test_only_gpus_of_this_machine_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: pip install 'medunet[gpu]'")
    monkeypatch.setattr(gpu_monitor, "pynvml", library, raising=False)
    values = measure(monkeypatch, tmp_path / "samples")[0]
    assert any("gpu" in key for key in values) == torch.cuda.is_available()
