"""Benchmarks in small: every module can be imported, and two of them measure."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import untrained_run

from medunet.io import write_volume
from scripts.bench import measure
from scripts.bench.inference import restore

ROOT = Path(__file__).parents[1]
OTHER_PROGRAMS = {"training_systems", "timed_trainer", "short_trainer"}  # need nnU-Net, in the extra `bench`


def test_every_benchmark_can_be_imported() -> None:
    paths = [path for path in (ROOT / "scripts" / "bench").rglob("*.py") if path.stem not in ("__init__", "__main__")]
    assert len(paths) > 20
    for path in paths:
        if path.stem not in OTHER_PROGRAMS:
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


@pytest.fixture
def small_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "CASES", {"small": ((24, 24, 16), (3.0, 3.0, 3.0))})
    monkeypatch.setattr(restore.nnunet, "available", lambda: False)


def restored(device: str) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    options = {"device": torch.device(device), "quick": False, "repeats": 2, "enough": 60.0}
    restore.restore(SimpleNamespace(**options, wants=lambda *keys: True), rows.__setitem__)
    return rows


@pytest.mark.usefixtures("small_restore")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_both_methods_restore_the_same_labels(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    rows = restored(device)
    assert len(rows) == 2
    for row in rows.values():
        assert (row["device"], len(row["seconds"])) == (device, 2)
        assert row["voxels_unlike_torch"] <= 2


@pytest.mark.usefixtures("small_restore")
def test_the_logits_are_on_the_chosen_device_and_the_timer_synchronises(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []
    waits: list[int] = []

    def note(logits: torch.Tensor, *_: Any) -> torch.Tensor:
        devices.append(logits.device.type)
        return torch.zeros(1)

    monkeypatch.setattr(restore, "_restored", note)
    monkeypatch.setattr(restore, "_interpolated", note)
    monkeypatch.setattr(restore, "synchronise", lambda: waits.append(1))
    restored("meta")
    assert set(devices) == {"meta"}
    assert len(waits) == len(devices)


@pytest.mark.slow
def test_all_export_formats_run_on_one_image(tmp_path: Path) -> None:
    image = write_volume(torch.randn(17, 19, 16).numpy(), tmp_path / "case.nii.gz")
    readme = tmp_path / "README.md"
    readme.write_text("# Mine\n<!-- export -->\n<!-- end of export -->\n")
    case = ["--case", untrained_run(tmp_path / "run"), image, "--rounds", 1]
    words = ["-m", "scripts.bench.export", *case, "--results", tmp_path / "r.json", "--readme", readme]
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=measure.ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["system"]: row for row in json.loads((tmp_path / "r.json").read_text())["rows"]}
    assert rows.keys() == {"torch, float32", "medunet", "torchscript", "torch-export", "onnx", "openvino"}
    for name, row in rows.items():
        assert "absent" in row or row["unlike"] == 0 or name == "medunet"
    assert "| torch, float32 |" in readme.read_text()
