"""The wheel is complete: configs and bundles inside, and the demo runs without a checkout."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel; scripts/test_install.sh installs the dependencies, too."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    wheel = zipfile.ZipFile(next(folder.glob("medunet-*.whl")))
    left_over = [name for name in wheel.namelist() if name.endswith((".pt", ".db")) or "/models/" in name]
    models = "hippocampus", "nuclei"
    assert left_over == [f"medunet/_resources/bundles/{name}/models/model.safetensors" for name in models]
    wheel.extractall(folder / "site")
    return folder / "site"


def run(site: Path, folder: Path, *words: str) -> str:
    """Run `medunet WORDS` of the wheel in a folder and return what it prints."""
    script = f"import medunet, sys; sys.argv = ['medunet', *{words}]\n"
    script += f"assert medunet.__file__.startswith({str(site)!r}), medunet.__file__\n"
    script += "from medunet.cli.app import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=folder, env=environment, timeout=300, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_wheel_has_every_module_and_bundle(site: Path, tmp_path: Path) -> None:
    resources = "medunet/_resources"
    for folder, there in (("medunet", "medunet"), *((name, f"{resources}/{name}") for name in ("bundles", "configs"))):
        listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
        names = [name.removeprefix(f"{folder}/") for name in listed.stdout.splitlines()]
        assert names and not [name for name in names if not (site / there / name).is_file()]
    assert "unet_3d" in run(site, tmp_path, "list")


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    run(site, tmp_path, "demo", "--epochs", "1")
    output = tmp_path / "medunet_demo"
    page = (output / "report.html").read_text()
    assert "liver" in page
    assert not re.search(r"""(src|href)=["']?http""", page)
    assert (output / "run" / "models" / "model.pt").is_file()
