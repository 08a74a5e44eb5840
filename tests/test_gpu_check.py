"""scripts/gpu_check.sh, as far as a machine without a GPU can test it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts import gpu_check
from scripts.bench.inference.__main__ import SECTIONS

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_cuda_it_fails_with_a_message(tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), "--output", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3
    assert "no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_step_that_fails_or_hangs_does_not_stop_the_others(tmp_path: Path) -> None:
    steps = [
        gpu_check.Step("good", 60, ("-c", "print('4 passed')")),
        gpu_check.Step("bad", 60, ("-c", "raise SystemExit(2)")),
        # it starts another process, which must end too
        gpu_check.Step("endless", 1.5, ("-c", "import subprocess; subprocess.run(['sleep', '100'])")),
        gpu_check.Step("last", 60, ("-c", "print('1 | 2')")),
    ]
    assert not gpu_check.run_steps(steps, tmp_path, title="NVIDIA X")
    text = (tmp_path / "gpu_check.md").read_text()
    assert text.startswith("# NVIDIA X")
    cells = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row[1] for row in cells] == ["ok", "failed (2), see bad.log", "out of time", "ok"]
    assert "4 passed" in cells[0][3]
    assert "1 / 2" in cells[3][3]
    assert gpu_check.run_steps(steps[:1], tmp_path)


def test_all_steps_fit_into_ten_minutes_and_name_sections(tmp_path: Path) -> None:
    steps = gpu_check.steps(tmp_path, data=tmp_path)
    assert sum(step.seconds for step in steps) <= 540
    assert {step.command[-1] for step in steps if "scripts.bench.inference" in step.command} <= set(SECTIONS)


@pytest.mark.filterwarnings("ignore")
def test_the_training_step_prints_speed_and_data_wait() -> None:
    changes = {"patch_size": [16, 16, 16], "batch_size": 1, "network_def::channels": [4, 8], "num_workers": 0}
    changes |= {"steps_per_epoch": 1, "epochs": 3}
    assert "steps/s, waits for data" in gpu_check.training("cpu", changes=changes, size=(24, 24, 24), cases=3)
