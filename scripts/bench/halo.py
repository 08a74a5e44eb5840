"""What parts of the halo change: the labels of tiles with a part of it, beside those with all of it.

    python -m scripts.bench.halo RUN DATA [--core 64] [--name NAME]

Each labelled case of DATA is predicted by RUN (a trained run of a padded network) in tiles that keep about --core
voxels per axis. The first row has the whole halo, so it equals one pass over the image. Give data that RUN has not
seen, or compare the changes only. Results: a table and scripts/results/halo.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from medunet.datasets import open_dataset
from medunet.inferers.tiling import HALO_PARTS
from medunet.io import read_label, read_volume
from medunet.metrics import dice
from medunet.networks.shapes import round_up
from medunet.prediction import Predictor

from .measure import RESULTS, describe, machine, read_json, table, write_json


def measure(run: Path, data: Path, core: int) -> list[dict[str, Any]]:
    """Return one row per part of the halo: voxels that differ, and the mean Dice."""
    shapes = Predictor(run).network.shapes
    cases = [case for case in open_dataset(data).cases if case.label is not None]
    whole: list[np.ndarray] = []
    rows = []
    for part in HALO_PARTS:
        halo = [min(n, round_up(int(part * n), s)) for n, s in zip(shapes.halo, shapes.total_stride, strict=True)]
        tile = [round_up(core, s) + 2 * n for n, s in zip(halo, shapes.total_stride, strict=True)]
        with tempfile.TemporaryDirectory() as folder:
            changes = {"tile_size": tile, "tile_inferer::halo": halo}
            predictor = Predictor(run, output_dir=folder, overrides=changes)
            files = [predictor.predict_case(case.images) for case in cases]
            found = [np.asarray(read_volume(file).image[0]) for file in files]
        whole = whole or found
        scores = []
        for case, labels in zip(cases, found, strict=True):
            ref = np.asarray(read_label(case.label, reference=case.images[0]).image[0])
            scores += [dice(labels == value, ref == value) for value in np.unique(ref)[1:]]
        changed = sum(int((new != old).sum()) for new, old in zip(found, whole, strict=True))
        rows.append(
            {
                "halo": halo,
                "ppm_of_voxels": 1e6 * changed / sum(one.size for one in whole),
                "percent_of_foreground": 100 * changed / sum(int((one > 0).sum()) for one in whole),
                "mean_dice": statistics.mean(scores),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--core", type=int, default=64, help="voxels per axis that a tile keeps")
    parser.add_argument("--name", help="of the row; default: the folder of the data")
    options = parser.parse_args()
    path = RESULTS / "halo.json"
    rows = measure(options.run, options.data, options.core)
    write_json(path, read_json(path) | {options.name or options.data.name: {"machine": machine(), "rows": rows}})
    cells = [
        (
            " x ".join(map(str, row["halo"])),
            f"{row['ppm_of_voxels']:.0f}",
            f"{row['percent_of_foreground']:.2f} %",
            f"{row['mean_dice']:.4f}",
        )
        for row in rows
    ]
    print(table(("halo", "changed voxels per million", "of the foreground", "mean Dice"), cells))
    print(describe(machine()))


if __name__ == "__main__":
    main()
