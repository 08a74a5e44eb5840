"""Cost of tracking: the time of training steps with and without MLflow.

    python scripts/bench_tracking.py [--epochs 8] [--steps 30] [--rounds 2] [--output scripts/results/tracking.json]

Trains `unet_2d` (smaller) on made cells, with validation in every second epoch, in turns with and without tracking
(SQLite, pictures, system metrics, the dataset's digest; the model at the end does not count: it is after the steps).
Counted is the wall time between the first and the last epoch, less the first epoch, which pays for opening the store;
steps/s are those without validation.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from medunet.bundle import find_bundle, train_bundle
from medunet.datasets import write_phantom_dataset


def measure(data: Path, run: Path, *, uri: str, epochs: int, steps: int) -> dict[str, float]:
    """Seconds a step, and seconds of epochs with their validation and logging, of a training."""
    changes: dict[str, Any] = {
        "network_def::channels": [16, 32, 64, 128],
        "patch_size": [128, 128],
        "batch_size": 4,
        "steps_per_epoch": steps,
        "val_interval": 2,
        "epochs": epochs,
    }
    result = train_bundle(find_bundle("unet_2d"), data, run, changes=changes, device="cpu", tracking_uri=uri)
    later = result.history[1:]
    return {
        "step_seconds": statistics.median(1 / entry["steps_per_second"] for entry in later),
        "epoch_seconds": sum(entry["seconds"] for entry in later),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "tracking.json")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    found: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_phantom_dataset(root / "data", kind="cells", cases=10, size=(256, 256))
        uri = f"sqlite:///{root}/mlruns.db"
        measure(root / "data", root / "warm", uri=uri, epochs=1, steps=2)  # makes the store and prepares the cases
        for number in range(options.rounds):
            for name, where in (("without", ""), ("with", uri)):
                run = root / f"{name}_{number}"
                found[name].append(measure(root / "data", run, uri=where, epochs=options.epochs, steps=options.steps))
    rows = {name: {key: min(one[key] for one in entries) for key in entries[0]} for name, entries in found.items()}
    share = {key: round(rows["with"][key] / rows["without"][key] - 1, 4) for key in rows["with"]}
    result = {
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "epochs": options.epochs,
        "steps_per_epoch": options.steps,
        "rounds": options.rounds,
        "best_of_rounds": rows,
        "all": found,
        "cost_as_a_share": share,
    }
    print(json.dumps(result, indent=2))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
