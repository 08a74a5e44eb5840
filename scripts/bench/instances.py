"""Objects in microscopy: medunet beside StarDist and Cellpose 3, trained from scratch for the same CPU minutes.

    python -m scripts.bench.instances nuclei --data DATA/DSB2018_nuclei [--minutes 30] [--python OTHER/bin/python]
    python -m scripts.bench.instances hela   --data DATA/CellTracking/DIC-C2DH-HeLa [--minutes 30] [--frames 20]
    python -m scripts.bench.instances speed  --data DATA/DSB2018_nuclei

`nuclei` holds out every fifth image in the order of a permutation with seed 0, `hela` the frames 63 to 83. StarDist and
Cellpose need NumPy below 2.1 and about 2 GB, so they run in an environment of their own (`pip install stardist
tensorflow-cpu 'cellpose<4'`), which --python names; `instance_programs` trains them. `speed` times the model `nuclei`
that comes with medunet, and the others as `nuclei` has trained them. Times are CPU times of one thread (set
OMP_NUM_THREADS=1), so that the machine may have other work. Only medunet's plan counts minutes by the clock. Results go
to scripts/results/instances.json and are printed as a table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medunet.config import parse_settings
from medunet.runs import evaluate_folders

from .measure import RESULTS, describe, machine, read_json, table, write_json

SEED, HELD_OUT, FIRST_FRAME = 0, 5, 63
SIZE, REPEATS = 2048, 3  # pixels of the image that `speed` times
SYSTEMS = ("medunet", "stardist", "cellpose")
SCORES = ("ap_50", "mean_ap", "f1", "seg", "aji")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")


def split(data: Path, work: Path, held_out: Sequence[str], frames: int | None = None) -> tuple[Path, Path]:
    """Write training and test folders of links to the images; a folder that exists is kept."""
    folders = work / "train", work / "test"
    images = {path.stem: path for path in sorted((data / "images").iterdir())}
    labels = {path.stem: path for path in sorted((data / "labels").iterdir())}
    trained = [name for name in images if name not in held_out]
    kept = trained if frames is None else [trained[int(k)] for k in np.linspace(0, len(trained) - 1, frames)]
    for folder, names in zip(folders, (kept, held_out), strict=True):
        for kind, files in (("images", images), ("labels", labels)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            for name in names:
                target = folder / kind / files[name].name
                if not target.exists():
                    target.symlink_to(files[name].resolve())
        (folder / "dataset.json").write_text('{"instances": true}')
    return folders


def run_medunet(train: Path, test: Path, work: Path, *, minutes: float, sets: Sequence[str]) -> Path:
    """Plan, train and predict with the commands of a user; return the folder of label maps. Rows share a plan."""
    words = [word for value in sets for word in ("--set", value)]
    program = [sys.executable, "-m", "medunet"]
    bundle = work.parent / f"plan_{train.parent.name}_{minutes:g}min"
    planned = [["plan", train, "--output", bundle, "--time", f"{minutes:g}min"]] if not bundle.exists() else []
    for command in (
        *planned,
        ["train", bundle, "--data", train, "--output", work / "run", *words],
        ["predict", work / "run", test / "images", "--output", work / "pred", "--force"],
    ):
        subprocess.run([*program, *map(str, command)], check=True)
    return work / "pred"


def run_other(system: str, train: Path, test: Path, work: Path, *, python: str, minutes: float) -> Path:
    """Train and predict with one thread in another environment; return the folder of label maps."""
    command = [python, Path(__file__).parent / "instance_programs.py", system, train, test, work, minutes]
    subprocess.run([str(word) for word in command], check=True, env={**os.environ, **ONE_THREAD})
    return work / "pred"


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("nuclei", "hela", "speed"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--frames", type=int, help="of hela: train on so many frames")
    parser.add_argument("--set", action="append", default=[], metavar="ID=VALUE", help="of medunet")
    parser.add_argument("--python", default=sys.executable, help="interpreter with StarDist and Cellpose")
    parser.add_argument("--only", nargs="+", default=SYSTEMS, choices=SYSTEMS)
    parser.add_argument("--work", type=Path, default=Path("runs/instances"))
    parser.add_argument("--name", default="", help="row of the results, such as a variant of --set")
    options = parser.parse_args()
    file = RESULTS / "instances.json"
    names = sorted(path.stem for path in (options.data / "images").iterdir())
    if options.question == "hela":
        held_out = [name for name in names if int("".join(filter(str.isdigit, name))[-3:]) >= FIRST_FRAME]
    else:
        order = np.random.default_rng(SEED).permutation(names)
        held_out = sorted(map(str, order[::HELD_OUT]))
    work = options.work / options.question
    train, test = split(options.data, work / f"data_{options.frames or 'all'}", held_out, options.frames)
    for system in options.only:
        row = " ".join(filter(None, (system, options.name, options.frames and f"{options.frames} frames")))
        own = work / row.replace(" ", "_")
        own.mkdir(parents=True, exist_ok=True)
        if options.question == "speed":
            if system == "medunet":
                seconds = statistics.median(time_medunet(test, own, parse_settings(options.set)))
            else:
                seconds = json.loads((work.parent / "nuclei" / system / "seconds.json").read_text())["seconds"]
            result = {"seconds": seconds, "machine": machine()}
        else:
            begun = cpu_minutes()
            if system == "medunet":
                pred = run_medunet(train, test, own, minutes=options.minutes, sets=options.set)
            else:
                pred = run_other(system, train, test, own, python=options.python, minutes=options.minutes)
            minutes = cpu_minutes() - begun
            scores = evaluate_folders(pred, test / "labels", own / "evaluation", instances=True)
            pooled = scores["objects"]["object"]["pooled"]
            means = {key: scores["classes"]["object"]["scores"][key]["mean"] for key in SCORES}
            result = {"minutes": options.minutes, "CPU minutes in all": minutes, "pooled": pooled, "means": means}
            result["machine"] = machine()
        document = read_json(file)  # again each time: another run may have added a row
        document.setdefault(options.question, {})[row] = result
        write_json(file, document)
    if options.question == "speed":
        print(
            table(
                ["", f"seconds per {SIZE} x {SIZE}"],
                [[name, f"{one['seconds']:.2f}"] for name, one in document["speed"].items()],
            )
        )
    else:
        rows = [
            [name, f"{one['minutes']:g}", *(f"{one['means'][key]:.3f} ({one['pooled'][key]:.3f})" for key in SCORES)]
            for name, one in document[options.question].items()
        ]
        print(table(["", "minutes", *(f"{key}, mean (pooled)" for key in SCORES)], rows))
    print(describe(machine()))


def cpu_minutes() -> float:
    """Return the CPU time of the programs that have run, in minutes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / 60


def time_medunet(test: Path, work: Path, changes: dict[str, Any]) -> list[float]:
    """Return the seconds of `nuclei` from a file of `SIZE` x `SIZE` pixels to the file with its numbered objects."""
    from medunet.io import read_volume, write_volume  # noqa: PLC0415
    from medunet.prediction import Predictor  # noqa: PLC0415

    image = np.asarray(read_volume(next(iter(sorted((test / "images").iterdir())))).image)
    side = -(-SIZE // min(image.shape[1:]))
    large = np.tile(image, (1, side, side))[:, :SIZE, :SIZE].astype(np.uint8)
    files = [write_volume(one, work / f"large_{number}.png") for number, one in enumerate(large)]
    predictor = Predictor("nuclei", output_dir=work / "pred", overwrite=True, overrides=changes)
    times = []
    for _ in range(REPEATS + 1):
        shutil.rmtree(work / "pred", ignore_errors=True)
        begun = time.process_time()
        predictor.predict_case(tuple(files) if len(files) > 1 else files[0])
        times.append(time.process_time() - begun)
    return times[1:]


if __name__ == "__main__":
    main()
