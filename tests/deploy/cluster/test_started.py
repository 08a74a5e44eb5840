"""A Ray cluster that was started by the commands of docs/howto/deploy.md, on two ports of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medunet.deploy.cluster import LEDGER_NAME
from medunet.deploy.monailabel.server import usable_port

from .ray_cluster import MEMORY, PATIENCE, RAYS_PATIENCE, needs_ray
from .test_cohort import make_cohort

pytestmark = [pytest.mark.slow, needs_ray, pytest.mark.filterwarnings("ignore")]

GUIDE = Path(__file__).parents[3] / "docs" / "howto" / "deploy.md"
SMALL = ["--num-cpus", "1", "--object-store-memory", str(MEMORY), "--node-ip-address", "127.0.0.1", "--block"]
CASES = 12


def guide_command(beginning: str) -> list[str]:
    """One of the guide's lines, without its comment and without GPUs."""
    [line] = [line for line in GUIDE.read_text(encoding="utf-8").splitlines() if line.startswith(beginning)]
    return shlex.split(line.partition("#")[0].replace("--num-gpus 1", ""))


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    for name, value in RAYS_PATIENCE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    found = f"127.0.0.1:{usable_port()}"
    short = tempfile.mkdtemp(prefix="ray")  # a socket's path has 107 characters
    head = [*guide_command("ray start --head"), "--port", found.partition(":")[2], "--temp-dir", short]
    other = [word.replace("HEAD:6379", found) for word in guide_command("ray start --address")]
    assert found in other
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number, words in enumerate(([*head, "--include-dashboard", "false"], other)):
            with (tmp_path / f"machine_{number}.log").open("wb") as log:
                command = [*words, *SMALL, "--disable-usage-stats"]
                if number:
                    command.remove("--disable-usage-stats")  # a word for the head alone
                machine = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            started.append(machine)
            end = time.monotonic() + PATIENCE
            while b"Ray runtime started" not in (tmp_path / f"machine_{number}.log").read_bytes():
                said = (tmp_path / f"machine_{number}.log").read_text(errors="replace")
                assert machine.poll() is None, said
                assert time.monotonic() < end, said
                time.sleep(0.2)
        monkeypatch.setenv("RAY_ADDRESS", found)
        yield found
    finally:
        for machine in reversed(started):
            machine.send_signal(signal.SIGTERM)  # it ends what it has started
            with contextlib.suppress(subprocess.TimeoutExpired):
                machine.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(machine.pid, signal.SIGKILL)
        shutil.rmtree(short, ignore_errors=True)


def test_a_cohort_is_predicted_on_machines_that_were_started_by_hand(
    address: str, bundle: Path, tmp_path: Path
) -> None:
    manifest = make_cohort(tmp_path / "cohort", cases=CASES, broken=1)
    command = [sys.executable, "-m", "medunet", "predict", str(bundle), str(manifest), "--on", "ray"]
    command += ["--output", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    lines = (tmp_path / "out" / LEDGER_NAME).read_text().splitlines()
    entries = [entry for line in lines if "name" in (entry := json.loads(line))]
    assert len({entry["name"] for entry in entries}) == CASES, done.stderr[-3000:]
    assert sorted(entry["status"] for entry in entries) == ["failed", *["written"] * (CASES - 1)], done.stderr[-3000:]
    alive = "import ray; ray.init(); print(sum(node['Alive'] for node in ray.nodes()))"
    counted = subprocess.run([sys.executable, "-c", alive], capture_output=True, text=True, check=True)
    assert counted.stdout.split()[-1] == "2"  # the machine that came later belongs to it
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == CASES - 1
