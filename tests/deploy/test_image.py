"""The Dockerfile's images, built by Docker or Podman and used as docs/howto/deploy.md documents."""

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
UID = 10001
START_SECONDS = 180.0


@dataclass
class Engine:
    """Docker or Podman, with the options that this machine needs, and a volume for the cache."""

    command: list[str]
    build_options: list[str]
    run_options: list[str]
    cache: str

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*self.command, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def build(self, tag: str, *options: str) -> Iterator[str]:
        """Yield the tag of an image that exists until the generator is closed."""
        self("build", *self.build_options, *options, "--tag", tag, str(ROOT))
        yield tag
        self("rmi", "--force", tag, check=False)

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self("run", "--rm", *self.run_options, *words, check=check)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Return the engine named in MEDUNET_CONTAINER, with options, else the installed one."""
    words = shlex.split(os.environ.get("MEDUNET_CONTAINER", ""))
    words = words or [name for name in ("docker", "podman") if shutil.which(name)][:1]
    if not words:
        pytest.skip("neither Docker nor Podman is installed: run bash scripts/test_services.sh")
    options = [shlex.split(os.environ.get(f"MEDUNET_CONTAINER_{part}", "")) for part in ("BUILD", "RUN")]
    engine = Engine(words, *options, cache=f"medunet-test-{secrets.token_hex(4)}")
    engine("volume", "create", engine.cache)
    yield engine
    engine("volume", "rm", "--force", engine.cache, check=False)


@pytest.fixture(scope="module")
def image(engine: Engine) -> Iterator[str]:
    yield from engine.build("medunet:cpu-test")


@pytest.fixture(scope="module")
def label_image(engine: Engine) -> Iterator[str]:
    yield from engine.build("medunet:label-test", "--target", "label")


@pytest.fixture
def folder(tmp_path: Path, bundle: Path, volume: Path) -> Path:
    """A folder that the image's user may write, with a bundle, an image, and a folder of studies."""
    folder = tmp_path / "data"
    shutil.copytree(bundle, folder / "runs" / "mine")
    (folder / "studies").mkdir()
    for place in (folder, folder / "studies"):
        shutil.copy(volume, place / "case.nii.gz")
        place.chmod(0o777)
    return folder


def guide_line(beginning: str, changes: dict[str, str]) -> list[str]:
    """Return the words of the guide's command, with other names and without what a test may not have."""
    guide = (ROOT / "docs" / "howto" / "deploy.md").read_text(encoding="utf-8")
    [line] = [line for line in guide.splitlines() if line.startswith(beginning)]
    for given, wanted in changes.items():
        assert line.count(given) == 1, (given, line)
        line = line.replace(given, wanted)
    return shlex.split(line.removeprefix("docker run --rm "))


def medunet_line(engine: Engine, image: str, folder: Path) -> list[str]:
    """Return the words before medunet's own; a CPU image has no GPUs."""
    changes = {"--gpus all ": "", "CACHE:": f"{engine.cache}:", '"$PWD"': shlex.quote(str(folder))}
    changes |= {"medunet:cuda": image, " predict runs/mine IMAGES -o out": ""}
    return guide_line("docker run --rm --gpus", changes)


def label_line(engine: Engine, image: str, folder: Path, port: int) -> list[str]:
    """Return the guide's label server, in the network of this machine and only there."""
    changes = {"-p 127.0.0.1:8000:8000": "--network host", "--host 0.0.0.0": f"--port {port} --device cpu"}
    changes |= {"CACHE:": f"{engine.cache}:", '"$PWD"': shlex.quote(str(folder)), "medunet:label ": f"{image} "}
    words = guide_line("docker run --rm --read-only --tmpfs /tmp -e MEDUNET_LABEL_TOKEN", changes)
    return [word for word in words if word not in ("-e", "MEDUNET_LABEL_TOKEN")]


def test_the_image_has_no_root_user_no_cuda_and_no_source(engine: Engine, image: str) -> None:
    assert engine.run("--entrypoint", "id", image, "-u").stdout.strip() == str(UID)
    listed = engine.run("--entrypoint", "python", image, "-m", "pip", "list").stdout.lower()
    assert "medunet" in listed
    assert "nvidia" not in listed
    assert "source" not in engine.run("--entrypoint", "ls", image, "/").stdout.split()
    assert "Usage: medunet" in engine.run(image).stdout


def test_predictions_equal_those_outside_and_a_read_only_folder_is_an_error(
    engine: Engine, image: str, folder: Path
) -> None:
    words = medunet_line(engine, image, folder)
    assert {"--network", "none", "--read-only"} <= set(words)
    predict = [*words, "predict", "runs/mine", "case.nii.gz", "--device", "cpu"]
    engine.run(*predict, "-o", "out")
    [result] = (folder / "out").glob("*.nii.gz")
    assert result.stat().st_uid == UID
    own = Predictor(folder / "runs" / "mine", output_dir=folder / "own", device="cpu")
    masks = [
        read_label(path, reference=folder / "case.nii.gz").image.numpy()
        for path in (result, own.predict_case(folder / "case.nii.gz"))
    ]
    assert np.array_equal(*masks)
    assert len(np.unique(masks[0])) > 1
    folder.chmod(0o755)
    done = engine.run(*predict, "-o", "other", check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "error" in done.stderr and "other" in done.stderr


def test_the_image_plans_trains_and_predicts(engine: Engine, image: str, folder: Path) -> None:
    write_phantom_dataset(folder / "cells", kind="cells", cases=4, size=[64, 64], seed=3)
    words = ["--shm-size", "1g", *medunet_line(engine, image, folder)]
    engine.run(*words, "plan", "cells", "--output", "planned", "--time", "20s", "--device", "cpu")
    engine.run(*words, "train", "planned", "--data", "cells", "--output", "run", "--epochs", "1", "--device", "cpu")
    engine.run(*words, "predict", "run", "cells/imagesTr", "-o", "out", "--device", "cpu")
    assert len(list(folder.glob("out/*.png"))) == len(list(folder.glob("cells/imagesTr/*")))


def test_the_label_image_serves_clients_with_the_token(engine: Engine, label_image: str, folder: Path) -> None:
    name, port, token = f"medunet-test-{secrets.token_hex(4)}", usable_port(), secrets.token_hex(16)
    own = ["--detach", "--name", name, "--env", f"MEDUNET_LABEL_TOKEN={token}", *engine.run_options]
    engine("run", *own, *label_line(engine, label_image, folder, port))
    url, headers = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {token}"}
    try:
        end = time.monotonic() + START_SECONDS
        while "Uvicorn running" not in (log := (done := engine("logs", name)).stdout + done.stderr):
            assert engine("inspect", "--format", "{{.State.Running}}", name).stdout.strip() == "true", log
            assert time.monotonic() < end, log
            time.sleep(1)
        request = urllib.request.Request(f"{url}/infer/mine?image=case&output=image", headers=headers, method="POST")
        with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
            assert len(answer.read()) > 100
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url}/info/", timeout=10)
    finally:
        engine("rm", "--force", name, check=False)


def test_read_only_studies_are_an_error(engine: Engine, label_image: str, folder: Path) -> None:
    (folder / "studies").chmod(0o755)
    own = ["--env", f"MEDUNET_LABEL_TOKEN={secrets.token_hex(16)}"]
    done = engine.run(*own, *label_line(engine, label_image, folder, usable_port()), check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "folder of studies cannot be written" in done.stderr
