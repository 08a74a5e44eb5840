"""What Ray costs: a cohort by one predictor in this process, and by one predictor on a Ray cluster of this machine.

    python -m scripts.bench.cohort RUN [--cases 40] [--size 96]

RUN is a bundle with weights. Counted is the wall time from the first to the last line of the ledger, so without loading
the network. Results go to scripts/results/cohort.json (--results). Give it the machine to itself.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from medunet.bundle import find_bundle
from medunet.deploy.cluster import LEDGER_NAME, predict_cohort
from medunet.deploy.cluster.cohort import Where
from medunet.io import write_volume

from .measure import RESULTS, machine, write_json

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
ORDER: tuple[Where, ...] = ("here", "ray", "ray", "here")
"""Forth and back, so that a machine that warms up favours neither."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--results", type=Path, default=RESULTS / "cohort.json")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"here": [], "ray": []}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        rng = np.random.default_rng(0)
        for index in range(arguments.cases):
            voxels = rng.normal(size=(arguments.size,) * 3).astype(np.float32)
            write_volume(voxels, images / f"case_{index:03d}.nii.gz", affine=AFFINE)
        for turn, where in enumerate(ORDER):
            output = Path(folder) / f"out_{turn}"
            predict_cohort(find_bundle(arguments.run), images, output, where=where)
            times = [json.loads(line)["time"] for line in (output / LEDGER_NAME).read_text().splitlines()]
            seconds[where].append(times[-1] - times[1])  # the first line is the bundle's
    here, ray = (min(seconds[where]) / (arguments.cases - 1) for where in ("here", "ray"))
    row = {
        "machine": machine(),
        "cases": arguments.cases,
        "size": arguments.size,
        "seconds_a_case": {"here": round(here, 4), "ray": round(ray, 4)},
        "overhead": round(ray / here - 1, 4),
    }
    write_json(arguments.results, row)
    print(f"{here:.3f} s a case here, {ray:.3f} s on Ray: {ray / here - 1:+.1%}")


if __name__ == "__main__":
    main()
