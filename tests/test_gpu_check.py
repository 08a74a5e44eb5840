"""scripts/gpu_check.sh, as far as it can be tested where there is no GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from medunet.prediction import Predictor

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts" / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_cuda_it_says_so_and_fails(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "gpu_check.sh"), "--output", str(tmp_path / "out")],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 3
    assert "no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_step_that_fails_or_hangs_does_not_keep_the_others_away(check: ModuleType, tmp_path: Path) -> None:
    todo = [
        check.Step("good", python("print('4 passed')"), 60, check.last_line),
        check.Step("bad", python("raise SystemExit(2)"), 60),
        # it starts another process, which must end with it
        check.Step("endless", python("import subprocess; subprocess.run(['sleep', '100'])"), 1.5),
        check.Step("last", python("print('1 | 2')"), 60, check.last_line),
    ]
    heard: list[int] = []
    begun = time.monotonic()
    outcomes: list = []

    def done(found: list) -> None:
        heard.append(len(found))
        outcomes[:] = found

    assert not check.run_steps(todo, budget=300, folder=tmp_path, done=done)
    assert time.monotonic() - begun < 90
    assert heard == [1, 2, 3, 4]
    results = [outcome.result for outcome in outcomes]
    assert results == ["ok", "failed (2), see bad.log", "out of time", "ok"]
    text = check.table(outcomes, {"device": "NVIDIA X", "torch": "2"})
    assert text.startswith("# NVIDIA X")
    assert "| good | ok | " in text
    assert "| 4 passed |" in text
    assert "1 / 2" in text


def test_what_no_time_is_left_for_is_said_to_be_not_run(check: ModuleType, tmp_path: Path) -> None:
    outcomes: list = []
    todo = [check.Step("any", python("print()"), 60)]
    assert not check.run_steps(todo, budget=0.5, folder=tmp_path, done=outcomes.extend)
    assert outcomes[0].result.startswith("not run")


def test_all_steps_fit_into_25_minutes_and_name_what_exists(check: ModuleType, tmp_path: Path) -> None:
    todo = check.steps(tmp_path, data=tmp_path, run=None)
    assert sum(step.limit for step in todo) <= check.BUDGET_SECONDS < 25 * 60
    for step in todo:
        files = [Path(word) for word in step.command if word.endswith(".py")]
        for word in step.command:
            if files and word.startswith("--"):
                assert f'"{word}"' in files[0].read_text(), f"{files[0].name} knows no {word}"
    sections = (ROOT / "scripts" / "bench_inference.py").read_text()
    for step in todo:
        if "bench_inference.py" in " ".join(step.command):
            assert f'"{step.command[-1]}": ' in sections


def test_a_step_has_the_time_that_others_have_left(check: ModuleType) -> None:
    step, later, absent = (check.Step(name, (), 60, missing=why) for name, why in (("a", ""), ("b", ""), ("c", "no")))
    assert check.limit_of(step, [later], left=120) == 60
    assert check.limit_of(step, [later, absent], left=150) == 90
    assert check.limit_of(step, [later], left=1000) == 120
    assert check.limit_of(step, [later], left=20) == 20


def test_what_cannot_be_made_here_is_said_and_is_no_failure(check: ModuleType, tmp_path: Path) -> None:
    outcomes: list = []
    todo = [
        check.Step("two GPUs", python("raise SystemExit(1)"), 60, missing="there is one GPU"),
        check.Step("good", python("print('a | 1\\nb | 2\\nend')"), 60, check.line_with("a |")),
    ]
    assert check.run_steps(
        todo, budget=60, folder=tmp_path, done=lambda found: outcomes.__setitem__(slice(None), found)
    )
    text = check.table(outcomes, {})
    assert "| two GPUs | left out: there is one GPU | 0 |  |" in text
    assert "| a / 1 |" in text


def test_every_step_is_possible_where_there_is_everything(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: name)
    (tmp_path / check.HIPPOCAMPUS).mkdir()
    assert not any(step.missing for step in check.steps(tmp_path, data=tmp_path, run=None))
    monkeypatch.undo()
    assert any(step.missing for step in check.steps(tmp_path, data=None, run=None))


@pytest.mark.filterwarnings("ignore")
def test_the_run_that_is_made_predicts_the_image_that_is_made(check: ModuleType, tmp_path: Path) -> None:
    small = {"network_def::channels": [4, 8], "patch_size": [16, 16, 16], "autocast_dtype": "float32"}
    for _ in range(2):  # the second time it is there
        check.make_material(tmp_path, size=(24, 24, 24), **small)
    run, image = check.material_of(tmp_path)
    assert Predictor(run, output_dir=tmp_path / "out", device="cpu").predict_case(image).is_file()


@pytest.mark.filterwarnings("ignore")
def test_the_training_step_gives_steps_a_second_and_waiting(check: ModuleType) -> None:
    small = {"patch_size": [16, 16, 16], "batch_size": 1, "network_def::channels": [4, 8], "num_workers": 0}
    changes = {**small, "steps_per_epoch": 1, "epochs": 3}
    told = check.training("cpu", changes=changes, size=(24, 24, 24), cases=3)
    assert "steps/s, waits for data" in told
