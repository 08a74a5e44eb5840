"""The Dockerfile's images, built by Docker or Podman and used as docs/howto/deploy.md says."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from medunet.datasets import write_phantom_dataset
from medunet.deploy.monailabel.server import usable_port
from medunet.io import read_label
from medunet.prediction import Predictor

pytestmark = [pytest.mark.slow, pytest.mark.services, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "howto" / "deploy.md").read_text(encoding="utf-8")
UID = 10001
START_SECONDS = 180.0


@dataclass
class Engine:
    """Docker or Podman, with what this machine wants to be said to it."""

    command: list[str]
    build_options: list[str]
    run_options: list[str]

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*self.command, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def build(self, tag: str, *options: str) -> str:
        self("build", *self.build_options, *options, "--tag", tag, str(ROOT))
        return tag

    def said(self, name: str) -> str:
        """What a container has printed, here and there."""
        done = self("logs", name)
        return done.stdout + done.stderr

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self("run", "--rm", *self.run_options, *words, check=check)


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Named in MEDUNET_CONTAINER, with options; else what is installed."""
    words = shlex.split(os.environ.get("MEDUNET_CONTAINER", ""))
    words = words or [name for name in ("docker", "podman") if shutil.which(name)][:1]
    if not words:
        pytest.skip("neither Docker nor Podman is installed: run bash scripts/test_services.sh")
    options = [shlex.split(os.environ.get(f"MEDUNET_CONTAINER_{part}", "")) for part in ("BUILD", "RUN")]
    return Engine(words, *options)


@pytest.fixture(scope="module")
def image(engine: Engine) -> Iterator[str]:
    yield engine.build("medunet:cpu-test")
    engine("rmi", "--force", "medunet:cpu-test", check=False)


@pytest.fixture(scope="module")
def cache(engine: Engine) -> Iterator[str]:
    """A volume that lives as long as the tests."""
    name = f"medunet-test-{secrets.token_hex(4)}"
    engine("volume", "create", name)
    yield name
    engine("volume", "rm", "--force", name, check=False)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that the image's user may write."""
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture
def case(shared: Path, bundle: Path, volume: Path) -> Path:
    """An image in the shared folder, and a bundle beside it."""
    shutil.copytree(bundle, shared / "runs" / "mine")
    return Path(shutil.copy(volume, shared / "case.nii.gz"))


def guide_line(beginning: str, changes: dict[str, str]) -> list[str]:
    """What the guide runs, but for names and for what a test may not have."""
    [line] = [line for line in GUIDE.splitlines() if line.startswith(beginning)]
    for given, wanted in changes.items():
        assert line.count(given) == 1, (given, line)
        line = line.replace(given, wanted)
    return shlex.split(line.removeprefix("docker run --rm "))


def predict_line(image: str, cache: str, folder: Path) -> list[str]:
    """Up to medunet's own words; a CPU image has no GPUs."""
    changes = {
        "--gpus all ": "",
        "CACHE:": f"{cache}:",
        '"$PWD"': shlex.quote(str(folder)),
        "medunet:cuda": image,
        " predict runs/mine IMAGES -o out": "",
    }
    return guide_line("docker run --rm --gpus", changes)


def test_the_image_has_no_root_no_cuda_and_nothing_of_the_checkout(engine: Engine, image: str) -> None:
    assert engine.run("--entrypoint", "id", image, "-u").stdout.strip() == str(UID)
    listed = engine.run("--entrypoint", "python", image, "-m", "pip", "list").stdout.lower()
    assert "medunet" in listed
    assert "nvidia" not in listed
    assert "source" not in engine.run("--entrypoint", "ls", image, "/").stdout.split()
    assert "Usage: medunet" in engine.run(image).stdout


def test_predictions_are_those_outside(engine: Engine, image: str, cache: str, case: Path) -> None:
    shared = case.parent
    words = predict_line(image, cache, shared)
    assert {"--network", "none", "--read-only"} <= set(words)
    engine.run(*words, "predict", "runs/mine", "case.nii.gz", "-o", "out", "--device", "cpu")
    [found] = (shared / "out").glob("*.nii.gz")
    assert found.stat().st_uid == UID
    own = Predictor(shared / "runs" / "mine", output_dir=shared / "own", device="cpu").predict_case(case)
    masks = [read_label(path, reference=case).image.numpy() for path in (found, own)]
    assert np.array_equal(*masks)
    assert len(np.unique(masks[0])) > 1


def test_a_folder_that_may_not_be_written_is_said(engine: Engine, image: str, cache: str, case: Path) -> None:
    case.parent.chmod(0o755)
    words = predict_line(image, cache, case.parent)
    done = engine.run(*words, "predict", "runs/mine", "case.nii.gz", "-o", "out", "--device", "cpu", check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "error" in done.stderr
    assert "out" in done.stderr


def test_the_image_plans_trains_and_predicts(engine: Engine, image: str, cache: str, shared: Path) -> None:
    write_phantom_dataset(shared / "cells", kind="cells", cases=4, size=[64, 64], seed=3)
    words = ["--shm-size", "1g", *predict_line(image, cache, shared)]
    engine.run(*words, "plan", "cells", "--output", "planned", "--time", "20s", "--device", "cpu")
    engine.run(*words, "train", "planned", "--data", "cells", "--output", "run", "--epochs", "1", "--device", "cpu")
    engine.run(*words, "predict", "run", "cells/imagesTr", "-o", "out", "--device", "cpu")
    assert len([path for path in (shared / "out").iterdir() if path.suffix == ".png"]) == len(
        list((shared / "cells" / "imagesTr").iterdir())
    )


@pytest.fixture(scope="module")
def label_image(engine: Engine) -> Iterator[str]:
    yield engine.build("medunet:label-test", "--target", "label")
    engine("rmi", "--force", "medunet:label-test", check=False)


@pytest.fixture
def studies(case: Path) -> Path:
    """The image in a folder of its own, where annotators' labels are kept."""
    folder = case.parent / "studies"
    folder.mkdir()
    shutil.copy(case, folder)
    return folder


def label_line(image: str, cache: str, folder: Path, port: int) -> list[str]:
    """The guide's label server, in the network of this machine and only there."""
    changes = {
        "-p 127.0.0.1:8000:8000": "--network host",
        "--host 0.0.0.0": f"--port {port} --device cpu",
        "CACHE:": f"{cache}:",
        '"$PWD"': shlex.quote(str(folder)),
        "medunet:label ": f"{image} ",
    }
    return guide_line("docker run --rm --read-only --tmpfs /tmp -e MEDUNET_LABEL_TOKEN", changes)


def test_the_label_image_serves_who_has_the_token(engine: Engine, label_image: str, cache: str, studies: Path) -> None:
    studies.chmod(0o777)
    name, port, token = f"medunet-test-{secrets.token_hex(4)}", usable_port(), secrets.token_hex(16)
    words = label_line(label_image, cache, studies.parent, port)
    own = ["--detach", "--name", name, "--env", f"MEDUNET_LABEL_TOKEN={token}", *engine.run_options]
    engine("run", *own, *(word for word in words if word not in ("-e", "MEDUNET_LABEL_TOKEN")))
    url, known = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {token}"}
    try:
        end = time.monotonic() + START_SECONDS
        while "Uvicorn running" not in engine.said(name):
            assert engine("inspect", "--format", "{{.State.Running}}", name).stdout.strip() == "true", engine.said(name)
            assert time.monotonic() < end, engine.said(name)
            time.sleep(1)
        asked = urllib.request.Request(f"{url}/infer/mine?image=case&output=image", headers=known, method="POST")
        with urllib.request.urlopen(asked, timeout=START_SECONDS) as answer:
            assert len(answer.read()) > 100
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url}/info/", timeout=10)
    finally:
        engine("rm", "--force", name, check=False)


def test_studies_that_may_not_be_written_are_said(engine: Engine, label_image: str, cache: str, studies: Path) -> None:
    studies.chmod(0o755)
    words = label_line(label_image, cache, studies.parent, usable_port())
    own = ["--env", f"MEDUNET_LABEL_TOKEN={secrets.token_hex(16)}"]
    done = engine.run(*own, *(word for word in words if word not in ("-e", "MEDUNET_LABEL_TOKEN")), check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "folder of studies cannot be written" in done.stderr
