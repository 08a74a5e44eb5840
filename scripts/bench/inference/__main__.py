"""Measure inference: medunet against MONAI's and nnU-Net's sliding windows, in turns, same weights, same volumes.

    pip install -c scripts/constraints.txt -e '.[bench]'      # for the rows of nnU-Net; without it they are left out
    python -m scripts.bench.inference all --data DATA --run RUN
    python -m scripts.bench.inference systems --data DATA --run RUN --only "1.5 mm"
    python -m scripts.bench.inference report --readme README.md

Sections: systems (volumes, Dice, share of the network), floor (FLOP/s over the machine's matmul rate), restore (labels
back to the source grid), memory (peak and time against voxels), paper (one 512x512 image), throughput (whole programs
on many cases). DATA holds CT_Lung1_001 and Task04_Hippocampus, RUN is a trained run on hippocampus.

Every row is kept in scripts/results/inference.json as soon as it is measured; --resume leaves out those of the same
revision that are there. --quick tries everything in small, into the folder of --work. Give it the machine to itself.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from medunet.runtime import resolve_device
from scripts.bench.measure import RESULTS, ROOT, machine, read_json, write_between, write_json

from .memory import memory
from .options import Options, Put
from .report import plot, tables
from .restore import restore
from .sections import floor, paper, systems
from .throughput import throughput

README_MARKS = "<!-- inference -->", "<!-- end of inference -->"
SECTIONS: dict[str, Callable[[Options, Put], None]] = {
    "systems": systems,
    "floor": floor,
    "restore": restore,
    "memory": memory,
    "paper": paper,
    "throughput": throughput,
}


class Document:
    """The results file: sections of rows by key, each row with the machine and revision that it was measured with."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.resume = resume
        self.sections: dict[str, dict[str, Any]] = read_json(path).get("sections", {})
        self.machine = machine()

    def section(self, name: str) -> Put:
        """What a section calls with every row."""
        rows = self.sections.setdefault(name, {})

        def put(key: str, row: dict[str, Any]) -> None:
            rows[key] = {**row, "machine": self.machine}
            write_json(self.path, {"sections": self.sections})
            print(f"{name}: {key}: {_brief(row)}", flush=True)

        return put

    def done(self, name: str) -> frozenset[str]:
        """Keys of a section that this revision has measured on this machine."""
        rows = self.sections.get(name, {})
        revision = self.machine["revision"]
        same = (key for key, row in rows.items() if row["machine"]["revision"] == revision and not row.get("error"))
        return frozenset(same if self.resume else ())


def _brief(row: dict[str, Any]) -> str:
    for key in ("error", "skipped"):
        if key in row:
            return f"{key}: {row[key]}"
    numbers = ("median_seconds", "seconds", "cases_per_second", "peak_gb", "share_of_matmul_rate", "mean_dice")
    return ", ".join(f"{key} {row[key]:.4g}" for key in numbers if isinstance(row.get(key), float))


def main() -> int:
    """Parse, measure, write, print; 1 if a section failed."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", choices=[*SECTIONS, "all", "report"])
    parser.add_argument("--data", type=Path, help="folder of real images; without it made ones only")
    parser.add_argument("--run", type=Path, help="a run of medunet trained on hippocampus")
    parser.add_argument("--work", type=Path, default=Path("runs/bench_inference"), help="synthetic volumes, outputs")
    parser.add_argument("--results", type=Path, help="default: scripts/results, or --work with --quick")
    parser.add_argument("--readme", type=Path, help="also replace the tables between their marks in this file")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: to try the script")
    parser.add_argument("--only", default="", help="measure what has this in its name")
    parser.add_argument("--without", nargs="+", default=[], help="systems: leave out those whose name matches")
    parser.add_argument("--resume", action="store_true", help="leave out rows measured with this revision")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--longest", type=float, default=900.0, help="seconds; slower systems are skipped on a volume")
    parser.add_argument("--enough", type=float, default=60.0, help="seconds after which a system is not timed again")
    parser.add_argument("--cases", type=int, default=200, help="of the throughput")
    parser.add_argument("--training-steps", type=int, default=200, help="of the networks made here")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE for `medunet predict`")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()

    options = Options(
        data=given.data,
        run=given.run,
        work=given.work.resolve(),
        quick=given.quick,
        repeats=1 if given.quick else given.repeats,
        longest=given.longest,
        enough=given.enough,
        only=given.only,
        without=tuple(given.without),
        cases=given.cases,
        training_steps=3 if given.quick else given.training_steps,
        settings=tuple(given.set),
        device=resolve_device(given.device),
    )
    options.work.mkdir(parents=True, exist_ok=True)
    results = given.results or (options.work if options.quick else RESULTS)
    document = Document(results / "inference.json", resume=given.resume)
    failed = False
    chosen = list(SECTIONS) if "all" in given.sections else [name for name in given.sections if name != "report"]
    for name in chosen:
        try:
            SECTIONS[name](replace(options, done=document.done(name)), document.section(name))
        except Exception:  # the other sections can still be measured
            failed = True
            traceback.print_exc()
    print(tables(document.sections))
    plot(document.sections, (results if options.quick else ROOT / "docs" / "images") / "inference.png")
    if given.readme:
        write_between(given.readme, README_MARKS, tables(document.sections))
    return int(failed)


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(main())
