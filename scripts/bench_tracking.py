"""Cost of tracking: the time of training steps with and without MLflow.

    python scripts/bench_tracking.py [--epochs 8] [--steps 40] [--rounds 3] [--output scripts/results/tracking.json]

Trains `unet_2d` (smaller) on made cells, with validation in every second epoch, in turns with and without tracking
(SQLite, pictures, system metrics, the dataset's digest; the model at the end does not count: it is after the steps).
Counted are all epochs but the first, which pays for opening the store: seconds a step as the clock shows them, which
other programs on the machine disturb, and as this process has computed, threads of tracking included. The second epoch
of each pair is one with a validation, so that what is logged then is a part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from medunet.bundle import find_bundle
from medunet.datasets import write_phantom_dataset
from medunet.runs import train_bundle
from medunet.training import HistoryHandler


def measure(data: Path, run: Path, *, uri: str, epochs: int, steps: int) -> dict[str, float]:
    """Seconds a step of a training: of the clock without and with what is between steps, and of computing."""
    changes: dict[str, Any] = {
        "network_def::channels": [16, 32, 64, 128],
        "patch_size": [128, 128],
        "batch_size": 4,
        "steps_per_epoch": steps,
        "val_interval": 2,
        "epochs": epochs,
    }
    result = train_bundle(find_bundle("unet_2d"), data, run, changes=changes, device="cpu", tracking_uri=uri)
    first, *later = result.history
    count = steps * len(later)
    return {
        "step_seconds": statistics.median(1 / entry["steps_per_second"] for entry in later),
        "with_epochs_seconds": sum(entry["seconds"] for entry in later) / count,
        "computing_seconds": (later[-1]["computed"] - first["computed"]) / count,
    }


def note_computing() -> None:
    """Let each entry of a history have the seconds that all threads of this process have computed so far."""
    complete = HistoryHandler.epoch_completed

    def epoch_completed(self: HistoryHandler, engine: Any) -> None:
        complete(self, engine)
        self.epochs[-1]["computed"] = time.process_time()

    HistoryHandler.epoch_completed = epoch_completed  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "tracking.json")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    note_computing()
    found: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_phantom_dataset(root / "data", kind="cells", cases=10, size=(256, 256))
        uri = f"sqlite:///{root}/mlruns.db"
        measure(root / "data", root / "warm", uri=uri, epochs=2, steps=2)  # makes the store and prepares the cases
        for number in range(options.rounds):
            turns = [("without", ""), ("with", uri)]
            for name, where in turns if number % 2 == 0 else turns[::-1]:
                run = root / f"{name}_{number}"
                found[name].append(measure(root / "data", run, uri=where, epochs=options.epochs, steps=options.steps))
    best = {name: {key: min(one[key] for one in entries) for key in entries[0]} for name, entries in found.items()}
    share = {key: round(best["with"][key] / best["without"][key] - 1, 4) for key in best["with"]}
    result = {
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "epochs": options.epochs,
        "steps_per_epoch": options.steps,
        "rounds": options.rounds,
        "best_of_rounds": best,
        "all": found,
        "cost_as_a_share": share,
    }
    print("| seconds a step | without | with | cost |\n| --- | --- | --- | --- |")
    for key, cost in share.items():
        print(f"| {key} | {best['without'][key]:.4f} | {best['with'][key]:.4f} | {cost:+.1%} |")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
