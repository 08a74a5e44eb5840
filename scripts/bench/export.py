"""Time and agreement of exported networks: torch, TorchScript, torch.export, ONNX Runtime and OpenVINO, in turns.

    pip install -c scripts/constraints.txt -e '.[export,openvino]'    # a missing engine is left out, and said so
    python -m scripts.bench.export --case RUN IMAGE [--case RUN IMAGE ...] [--readme README.md]

Of each run the network is exported by `medunet bundle export`. Then, in one process, the systems take turns with the
same preprocessed image: tiles, network, classes, the grid of the file. The first turn counts as `first call`, the
median of the others as `s`. Agreement is that of the labels with torch in float32, and of the logits on noise.
Engines compute in float32 with as many threads as torch; only the row `medunet` chooses its number format.

Results go to scripts/results/export.json (--results). Give it the machine to itself; --rounds 1 tries the script.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from medunet.deploy.export import FORMATS, ExportedNetwork, export_bundle, load_tile_network
from medunet.errors import ConfigError
from medunet.prediction import Predictor

from .measure import RESULTS, describe, machine, table, write_between, write_json

README_MARKS = "<!-- export -->", "<!-- end of export -->"
EXACT = "torch, float32"
FILES = ("torchscript", "torch-export", "onnx", "openvino")


def measure(run: Path, image: Path, *, rounds: int, folder: Path) -> Iterator[dict[str, Any]]:
    """A row a system, those that are absent included."""
    exact = Predictor(run, output_dir=folder, device="cpu", overrides={"autocast_dtype": "float32"})
    chosen = Predictor(run, output_dir=folder, device="cpu")
    network = load_tile_network(run)
    volume = exact.preprocessing({"image": str(image)})["image"]
    rows: dict[str, dict[str, Any]] = {EXACT: {}, "medunet": {}}
    ways: dict[str, tuple[Predictor, torch.nn.Module]] = {
        EXACT: (exact, exact.network),
        "medunet": (chosen, chosen.network),
    }
    for name in FILES:
        path = folder / f"network{FORMATS[name].suffix}"
        try:
            done = export_bundle(run, path, to=name, overwrite=True)
        except ConfigError as error:
            rows[name] = {"absent": str(error)}
            continue
        begun = time.perf_counter()
        ways[name] = exact, ExportedNetwork(FORMATS[name].open(path), network.reference).eval()
        rows[name] = {
            "program": done.program,
            "export_seconds": done.seconds,
            "open_seconds": time.perf_counter() - begun,
            "megabytes": sum(part.stat().st_size for part in done.paths) / 1e6,
            "rms": done.agreement.rms,
        }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    labels: dict[str, torch.Tensor] = {}
    for turn in range(rounds + 1):
        order = list(ways) if turn % 2 == 0 else list(reversed(ways))
        for name in order:
            predictor, engine = ways[name]
            predictor.network = engine
            begun = time.perf_counter()
            labels[name] = torch.as_tensor(predictor.logits(volume))
            seconds[name].append(time.perf_counter() - begun)
            print(f"{run.name}: turn {turn}: {name}: {seconds[name][-1]:.3f} s", flush=True)
    for name, row in rows.items():
        if name in ways:
            first, *later = seconds[name]
            row |= {"first_seconds": first, "median_seconds": statistics.median(later), "seconds": later}
            row |= {"unlike": int((labels[name] != labels[EXACT]).sum()), "voxels": labels[name].numel()}
        yield {"run": run.name, "size": list(volume.shape[1:]), "system": name, **row}


def rows_table(rows: list[dict[str, Any]]) -> str:
    head = [
        "case",
        "system",
        "s",
        "times torch, float32",
        "first call, s",
        "logits differ, sd",
        "labels unlike float32",
    ]
    head += ["to export and compare, s", "MB"]
    lines = []
    exact = {row["run"]: row["median_seconds"] for row in rows if row["system"] == EXACT}
    for row in rows:
        cells = [f"{row['run']}, {'x'.join(map(str, row['size']))}", row.get("program", row["system"])]
        if "absent" in row:
            cells += ["not installed", *[""] * 6]
        else:
            cells += [f"{row['median_seconds']:.3g}", f"{exact[row['run']] / row['median_seconds']:.2f}"]
            cells += [f"{row['first_seconds']:.3g}", f"{row['rms']:.1e}" if "rms" in row else ""]
            cells += [f"{row['unlike']} of {row['voxels']}"]
            cells += [f"{row[key]:.3g}" if key in row else "" for key in ("export_seconds", "megabytes")]
        lines.append(cells)
    return table(head, lines)


def main() -> None:
    """Parse, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=2, type=Path, action="append", required=True, metavar=("RUN", "IMAGE"))
    parser.add_argument("--rounds", type=int, default=7, help="turns that count")
    parser.add_argument("--results", type=Path, default=RESULTS / "export.json")
    parser.add_argument("--readme", type=Path, help="also replace the table between its marks in this file")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore")
    rows: list[dict[str, Any]] = []
    where = machine()
    for run, image in options.case:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(run, image, rounds=options.rounds, folder=Path(folder))
        write_json(options.results, {"machine": where, "rows": rows})
    shown = f"{rows_table(rows)}\n\n{describe(where)}"
    print(shown)
    if options.readme:
        write_between(options.readme, README_MARKS, shown)


if __name__ == "__main__":
    main()
