"""Commands as a user types them, in processes of their own, and what they leave behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch

SETTINGS = {
    "network_def::channels": "[4,8]",
    "patch_size": "[32,32]",
    "steps_per_epoch": "2",
    "batch_size": "2",
    "val_interval": "1",
    "folds": "2",
    "tracking_uri": "",
    # augmentation per patch and a loss that is a mean over voxels, so that N processes equal one
    "batch_intensity": "false",
    "loss::lambda_dice": "0.0",
    "autocast_dtype": "float32",
}
PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
PATIENCE = 1800.0  # seconds until a test gives up; the machine may have other work


def words(*parts: object, **changes: object) -> list[str]:
    """Return the command `medunet PARTS` with values of the config."""
    settings = {**SETTINGS, **{key: str(value) for key, value in changes.items()}}
    chosen = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "medunet", *map(str, parts), *chosen]


def environment(**changes: str) -> dict[str, str]:
    """Run on the CPU, because a machine may have fewer GPUs than a test has processes."""
    fixed = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **fixed, **changes}


def run(command: Sequence[str], *, expected: int = 0) -> str:
    """Run a command and return its output."""
    done = subprocess.run(command, **PIPES, check=False, env=environment(), timeout=PATIENCE, stdin=subprocess.DEVNULL)
    assert done.returncode == expected, done.stdout[-4000:]
    return done.stdout


def wait_for(condition: Callable[[], Any], *, what: str, process: subprocess.Popen[str] | None = None) -> Any:
    """Wait until a condition is true, and return its value."""
    end = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < end, f"never: {what}"
        assert process is None or process.poll() is None, f"ended before: {what}"
        time.sleep(0.05)
    return answer


def workers_of(pid: int, *, of: str = "spawn_main") -> list[psutil.Process]:
    """The processes of a training run by rank: the children of its launcher."""
    return sorted(
        (child for child in psutil.Process(pid).children() if of in " ".join(child.cmdline())),
        key=lambda child: (child.create_time(), child.pid),
    )


def history(run_folder: Path) -> list[dict[str, Any]]:
    return json.loads((run_folder / "eval" / "history.json").read_text())


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_folder / "models" / "last.pt", weights_only=True)["model"]


@contextmanager
def started(*commands: Sequence[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Run commands in parallel; the end of the block kills those that still run, with their children."""
    running = [subprocess.Popen(c, **PIPES, env=environment(), stdin=subprocess.DEVNULL) for c in commands]
    try:
        yield running
    finally:
        for process in running:
            if process.poll() is None:
                for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                    with suppress(psutil.Error):
                        child.kill()
            process.communicate()
