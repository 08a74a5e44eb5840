"""Cost of tracking: seconds per training step with and without MLflow.

    python -m scripts.bench.tracking [--epochs 8] [--steps 40] [--rounds 3] [--output scripts/results/tracking.json]

Trains a small `unet_2d` on synthetic cells, alternately with and without tracking (SQLite, pictures, system metrics,
the digest of the data set), with a validation in every second epoch. The first epoch, which pays for opening the
store, and the model at the end do not count. Reported are wall-clock seconds per step, without and with the time
between steps, and CPU seconds of the process, including threads of tracking, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from medunet.bundle import find_bundle
from medunet.datasets import write_phantom_dataset
from medunet.runs import train_bundle
from medunet.training import HistoryHandler

from .measure import RESULTS, machine, table, write_json


def measure(data: Path, run: Path, *, uri: str, epochs: int, steps: int) -> dict[str, float]:
    """Train once and return seconds per step."""
    changes: dict[str, Any] = {"network_def::channels": [16, 32, 64, 128], "patch_size": [128, 128], "batch_size": 4}
    changes |= {"steps_per_epoch": steps, "val_interval": 2, "epochs": epochs}
    result = train_bundle(find_bundle("unet_2d"), data, run, changes=changes, device="cpu", tracking_uri=uri)
    first, *later = result.history
    count = steps * len(later)
    return {
        "step_seconds": statistics.median(1 / entry["steps_per_second"] for entry in later),
        # epochs end at their last handler, so the time from one end to the next includes what tracking does in between
        "with_epochs_seconds": (later[-1]["time"] - first["time"]) / 1000 / count,
        "cpu_seconds": (later[-1]["cpu_seconds"] - first["cpu_seconds"]) / count,
    }


def note_cpu_seconds() -> None:
    """Add the CPU seconds of this process so far to each entry of a history."""
    complete = HistoryHandler.epoch_completed

    def epoch_completed(self: HistoryHandler, engine: Any) -> None:
        complete(self, engine)
        self.epochs[-1].update(cpu_seconds=time.process_time(), time=1000 * time.time())

    HistoryHandler.epoch_completed = epoch_completed  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "tracking.json")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    note_cpu_seconds()
    rounds: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_phantom_dataset(root / "data", kind="cells", cases=10, size=(256, 256))
        uri = f"sqlite:///{root}/mlruns.db"
        measure(root / "data", root / "warm", uri=uri, epochs=2, steps=2)  # creates the store and prepares the cases
        for number in range(options.rounds):
            turns = [("without", ""), ("with", uri)]
            for name, store in turns if number % 2 == 0 else turns[::-1]:
                run, size = root / f"{name}_{number}", {"epochs": options.epochs, "steps": options.steps}
                rounds[name].append(measure(root / "data", run, uri=store, **size))
    best = {name: {key: min(one[key] for one in entries) for key in entries[0]} for name, entries in rounds.items()}
    share = {key: round(best["with"][key] / best["without"][key] - 1, 4) for key in best["with"]}
    result = {
        "machine": machine("mlflow"),
        "epochs": options.epochs,
        "steps_per_epoch": options.steps,
        "rounds": options.rounds,
        "best_of_rounds": best,
        "all": rounds,
        "cost_as_a_share": share,
    }
    cells = [
        [key, f"{best['without'][key]:.4f}", f"{best['with'][key]:.4f}", f"{cost:+.1%}"] for key, cost in share.items()
    ]
    print(table(["seconds per step", "without", "with", "cost"], cells))
    write_json(options.output, result)


if __name__ == "__main__":
    main()
