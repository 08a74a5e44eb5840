"""Strong scaling: the training step of one process with all cores, and of two with half the cores and the batch each.

    python -m scripts.bench.scaling [--bundle unet_3d] [--batch 4] [--steps 20] [--processes 2] [--device cpu]

Trains the shipped network and patch on synthetic data. Counted is `steps_per_second` of the history without validation,
the median over the epochs after the first. The cores are shared out, so efficiency 1 means that a step takes as long in
two processes as in one; with --device cuda each has a GPU of its own, and it means that N take 1/N of the time. Results
go to scripts/results/scaling.json (--results). Give it the machine to itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from medunet.bundle import find_bundle
from medunet.datasets import write_phantom_dataset
from medunet.deploy.cluster import train_processes

from .measure import RESULTS, machine, write_json

EPOCHS = 4


def seconds_a_step(data: Path, run: Path, *, bundle: str, processes: int, batch: int, steps: int, device: str) -> float:
    """The median over epochs; every process waits for the others, so that of the first is that of all."""
    changes: dict[str, Any] = {
        "epochs": EPOCHS,
        "steps_per_epoch": steps,
        "batch_size": batch // processes,
        "val_interval": EPOCHS,
        "tracking_uri": "",
    }
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // processes))
    result = train_processes(find_bundle(bundle), data, run, processes=processes, changes=changes, device=device)
    assert result is not None
    return 1 / statistics.median(entry["steps_per_second"] for entry in result.history[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="unet_3d")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS / "scaling.json")
    arguments = parser.parse_args()
    seconds: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        kind = "ct" if arguments.bundle == "unet_3d" else "cells"
        write_phantom_dataset(data, kind=kind, cases=6, size=(64, 64, 48) if kind == "ct" else (512, 512))
        for processes in (1, arguments.processes):
            seconds[processes] = seconds_a_step(
                data,
                Path(folder) / f"run_{processes}",
                bundle=arguments.bundle,
                processes=processes,
                batch=arguments.batch,
                steps=arguments.steps,
                device=arguments.device,
            )
    one, many = seconds.values()
    efficiency = one / many / (arguments.processes if arguments.device == "cuda" else 1)
    row = {
        "machine": machine(),
        "device": arguments.device,
        "bundle": arguments.bundle,
        "batch": arguments.batch,
        "seconds_a_step": {str(key): round(value, 4) for key, value in seconds.items()},
        "efficiency": round(efficiency, 3),
    }
    write_json(arguments.results, row)
    print(f"1 process {one:.3f} s a step, {arguments.processes} processes {many:.3f} s: efficiency {efficiency:.2f}")


if __name__ == "__main__":
    main()
