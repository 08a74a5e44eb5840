"""Tests and benchmarks on a CUDA device, each in its own process and within its own time, for scripts/gpu_check.sh.

The table gpu_check.md in --output is rewritten after each step; the output of the steps is beside it. A step that fails
or exceeds its time does not stop the others.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medunet.bundle import find_bundle
from medunet.datasets import write_phantom_dataset
from medunet.runs import train_bundle
from scripts.bench.measure import ROOT, describe, machine, table

NO_CUDA = 3  # exit status
WARM_EPOCHS = 2  # of the training: kernels are chosen, cases are prepared


@dataclass(frozen=True)
class Step:
    """One command.

    Args:
        name: name in the table.
        seconds: time limit.
        command: words after the Python interpreter.
    """

    name: str
    seconds: float
    command: tuple[str, ...]


def steps(output: Path, *, data: Path | None = None, run: Path | None = None) -> list[Step]:
    """Return the steps, the most important ones first; their limits add up to nine minutes."""
    given = [*(("--data", data) if data else ()), *(("--run", run) if run else ())]
    folders = ["--work", output / "work", "--results", output, "--longest", 30, "--enough", 10]
    words = ["-m", "scripts.bench.inference", "--device", "cuda", "--resume", *given, *folders]
    inference = tuple(map(str, words))
    return [
        Step("tests marked cuda", 150, ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda")),
        Step("numerics and floor", 70, (*inference, "floor")),
        Step("paper's network, 512x512", 40, (*inference, "--only", "cuda", "paper")),
        Step("training, wait for data", 70, ("-m", "scripts.gpu_check", "--training")),
        Step("volumes, systems in turns", 110, (*inference, "systems")),
        Step("labels to the source grid", 40, (*inference, "restore")),
        Step("memory against voxels", 60, (*inference, "memory")),
    ]


def run_step(step: Step, folder: Path) -> tuple[str, str, str, str]:
    """Run a step and all its processes within its limit; return its row of the table."""
    log = folder / f"{step.name.replace(' ', '_').replace(',', '')}.log"
    begun = time.monotonic()
    with log.open("wb") as file:
        command = [sys.executable, *step.command]
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(step.seconds)
            result = "ok" if code == 0 else f"failed ({code}), see {log.name}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            result = "out of time"
    lines = [line.strip(" =") for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    last = lines[-1].replace("|", "/") if lines else ""
    return step.name, result, f"{time.monotonic() - begun:.0f}", last


def run_steps(todo: Sequence[Step], folder: Path, *, title: str = "", below: str = "") -> bool:
    """Run the steps, rewrite the table after each, and return whether all succeeded."""
    rows: list[tuple[str, str, str, str]] = []
    for step in todo:
        print(f"{step.name} (up to {step.seconds:.0f} s) ...", flush=True)
        rows.append(run_step(step, folder))
        print("  " + " ".join(rows[-1][1:]), flush=True)
        text = f"# {title}\n\n{table(['step', 'result', 's', 'last line'], rows)}\n\n{below}\n"
        (folder / "gpu_check.md").write_text(text, encoding="utf-8")
    return all(row[1] == "ok" for row in rows)


def training(device: str, *, changes: dict[str, Any], size: tuple[int, ...], cases: int) -> str:
    """Train `unet_3d` on synthetic volumes; return steps per second and the share of time spent waiting for data."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_phantom_dataset(data, kind="ct", cases=cases, size=size)
        changes = {"store_dir": str(Path(folder) / "store"), "val_interval": 100, "tracking_uri": "", **changes}
        result = train_bundle(find_bundle("unet_3d"), data, Path(folder) / "run", changes=changes, device=device)
    later = result.history[WARM_EPOCHS:]
    rate, wait = (sum(entry[key] for entry in later) / len(later) for key in ("steps_per_second", "data_wait"))
    return f"{rate:.1f} steps/s, waits for data {100 * wait:.1f} % of the time"


def main() -> int:
    """Check for the device, run the steps, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of real images; default: synthetic ones only")
    parser.add_argument("--run", type=Path, help="a run of medunet trained on hippocampus")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu_check"), help="folder of the table and the logs")
    parser.add_argument("--training", action="store_true", help="only the step of that name, in this process")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"no CUDA device: torch {torch.__version__} sees none; nothing was tested or measured", file=sys.stderr)
        return NO_CUDA
    if options.training:
        changes = {"patch_size": [96, 96, 96], "batch_size": 4, "steps_per_epoch": 30, "epochs": 6, "num_workers": 4}
        print(training("cuda", changes=changes, size=(160, 160, 160), cases=8))
        return 0
    output: Path = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    where, given = machine(), {"data": options.data, "run": options.run}
    todo = steps(output, **{key: path and path.resolve() for key, path in given.items()})
    libraries = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    is_well = run_steps(todo, output, title=where["device"], below=f"{describe(where)}, {libraries}")
    print((output / "gpu_check.md").read_text(encoding="utf-8"))
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
