"""scripts/gpu_first.py, as far as a machine without a GPU can test it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from scripts import gpu_first
from scripts.gpu import wheels

ROOT = Path(__file__).parents[1]
# reads and writes NIfTI, and imports what trains and predicts
WITHOUT = """
import numpy as np
from medunet.geometry import Geometry
from medunet.io import read_volume, write_volume
from medunet.prediction import Predictor
from medunet.runs import train_bundle
path = write_volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), "image.nii.gz")
assert read_volume(path).image.sum() == 276
try:
    write_volume(np.zeros((2, 3, 4), np.int16), "image.nrrd")
except ModuleNotFoundError as error:
    print(error)
"""


def environment(*folders: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*folders, ROOT]))}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_cuda_it_fails_with_a_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert gpu_first.main(["--out", str(tmp_path / "out")]) == 3
    assert "no CUDA device" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_block_that_fails_or_hangs_does_not_stop_the_others(tmp_path: Path) -> None:
    blocks = [
        gpu_first.Block("missing", "kernels:none", 500),
        gpu_first.Block("endless", "kernels:conv", 0.1),
        gpu_first.Block("facts", "kernels:facts", 500),
    ]
    assert not gpu_first.run_blocks(blocks, tmp_path, "cuda", 1000, environment())
    with (tmp_path / "gpu_first.jsonl").open("a") as file:
        file.write('{"block": "cut')  # as a killed process leaves it
    results = {line["block"]: line["value"] for line in gpu_first.lines_of(tmp_path / "gpu_first.jsonl")}
    assert results == {"missing": "failed (1), see missing.log", "endless": "out of time (0 s)"} | (
        {"facts": "ok"} if torch.cuda.is_available() else {"facts": "failed (1), see facts.log"}
    )
    assert "| endless | result | out of time (0 s) |" in (tmp_path / "gpu_first.md").read_text()
    assert gpu_first.run_blocks([], tmp_path, "cuda", 0, {})
    assert not gpu_first.run_blocks(blocks[-1:], tmp_path, "cuda", 1, {})
    assert "not started" in (tmp_path / "gpu_first.md").read_text()


def test_all_blocks_exist() -> None:
    for block in gpu_first.BLOCKS:
        module, _, function = block.function.partition(":")
        assert f"def {function}(job: Job)" in (ROOT / "scripts" / "gpu" / f"{module}.py").read_text()


def test_nifti_and_bundles_need_neither_simpleitk_nor_itk_nor_mlflow(tmp_path: Path) -> None:
    options = {"cwd": tmp_path, "env": environment(gpu_first.BLOCKED), "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", WITHOUT], check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert "SimpleITK" in done.stdout  # NRRD does


def wheel(folder: Path, name: str, *needs: str, size: int = 0) -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(f"Requires-Dist: {need}" for need in needs))
        archive.writestr("data", bytes(size))


def test_wheels_are_complete_and_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path, "One", "two-more>=2", "numpy", "three; extra == 'test'", "four; python_version < '3.11'")
    with pytest.raises(SystemExit, match="two-more"):
        wheels.check(tmp_path, ["numpy"])
    wheel(tmp_path, "two_more", size=1 << 20)
    assert wheels.check(tmp_path, ["numpy"]) == "2 wheels, 1.0 MiB"
    monkeypatch.setattr(wheels, "MAX_MIB", 0.5)
    with pytest.raises(SystemExit, match="name what the machine has: two_more"):
        wheels.check(tmp_path, ["numpy"])


def test_the_needed_packages_are_those_that_torch_and_numpy_lack() -> None:
    there = wheels.closure(wheels.PRESENT)
    assert {"torch", "numpy", "sympy", "jinja2"} <= there
    needed = wheels.closure(wheels.NEEDED, without=there)
    assert {"monai", "pytorch-ignite", "nibabel", "rich", "pluggy"} <= needed
    hidden = {"simpleitk", "itk-io", "mlflow", "highdicom", "pandas", "scikit-learn"}  # as gpu/blocked hides them
    assert not needed & {"torch", "numpy", "jinja2", *hidden}


def test_every_block_runs_in_small_on_a_simulated_device(tmp_path: Path) -> None:
    assert gpu_first.main(["--device", "pretend", "--seconds", "900", "--out", str(tmp_path)]) == 0
    lines = gpu_first.lines_of(tmp_path / "gpu_first.jsonl")
    for block in gpu_first.BLOCKS:
        numbers = [line for line in lines if line["block"] == block.name and line["name"] != "result"]
        assert numbers, block.name
        assert not [line for line in numbers if line.get("unit") == "error" or "WRONG" in str(line["value"])]
