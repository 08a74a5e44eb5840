"""Compare `nnUNetv2_predict` with `medunet predict` for one trained nnU-Net model: labels, Dice, time and memory.

    python -m scripts.bench.nnunet_import MODEL_FOLDER IMAGES --work FOLDER [--labels LABELS] [--mirror] [--folds 0]

Both run as commands, so loading and start are included; a second run with one image tells what each further image
costs. medunet predicts in float32, as nnU-Net does, and once more in the format that it takes by default. nnU-Net
always has as many threads as the machine has cores. Threads sleep while they wait, so that CPU seconds do not depend on
other work on the machine. nnU-Net may be in another environment: `--nnunet-bin FOLDER` is the folder of its programs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medunet.io import read_volume

from .measure import describe, machine, table, write_json

FORMATS = {"medunet": ("--set", "autocast_dtype=float32"), "medunet default": ()}


def run(command: Sequence[str], threads: int) -> dict[str, float]:
    """Run a command and return its seconds, CPU seconds and the peak memory of its largest process in MB."""
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    environment = {**os.environ, **dict.fromkeys(names, "."), "nnUNet_compile": "f"}
    environment |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    environment.setdefault("nnUNet_extTrainer", str(Path(__file__).parent / "nnunet_trainer"))
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": time.perf_counter() - begun, "CPU seconds": cpu, "peak MB": usage.ru_maxrss / 1024}


def pairs(first: Path, second: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the label maps of the same names in two folders."""
    names = sorted(path.name for path in first.iterdir() if (second / path.name).is_file())
    return [(read_volume(first / name).image.numpy(), read_volume(second / name).image.numpy()) for name in names]


def mean_dice(pred: Path, reference: Path, ignore: int | None) -> float:
    """Return the mean Dice over the cases and the values of their references; ignored voxels do not count."""
    dice = []
    for ours, truth in pairs(pred, reference):
        for value in set(np.unique(truth)) - {0, ignore}:
            found, wanted = (ours == value) & (truth != ignore), truth == value
            dice.append(2 * np.count_nonzero(found & wanted) / (np.count_nonzero(found) + np.count_nonzero(wanted)))
    return float(np.mean(dice))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--labels", type=Path, help="references of the images, for the Dice of both")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--folds", default="all")
    parser.add_argument("--mirror", action="store_true")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--nnunet-bin", type=Path, default=Path(sys.executable).parent)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    given = parser.parse_args()
    shutil.rmtree(given.work, ignore_errors=True)
    given.work.mkdir(parents=True)
    bundle, single = given.work / "bundle", given.work / "single"
    single.mkdir()
    case, _, ending = min(given.images.iterdir()).name.rpartition("_")
    for path in given.images.glob(f"{case}_{'?' * len(ending)}"):  # all its channels
        shutil.copy(path, single)
    folds = [path.name[5:] for path in sorted(given.model.glob("fold_*"))]
    folds = folds if given.folds == "all" else given.folds.split(",")
    medunet, predict = [sys.executable, "-m", "medunet"], given.nnunet_bin / "nnUNetv2_predict_from_modelfolder"
    theirs = [str(predict), "-m", str(given.model), "-f", *folds, "-npp", "1", "-nps", "1", "-device", "cpu"]
    theirs += [] if given.mirror else ["--disable_tta"]
    ours = ["--device", "cpu", *(["--tta", "mirror"] if given.mirror else [])]
    imported = [*medunet, "bundle", "import", str(given.model), "-o", str(bundle), "--folds", given.folds]
    rows = {"medunet bundle import": run([*imported, "--any-trainer"], given.threads)}
    several = len(list(given.images.iterdir())) > len(list(single.iterdir()))
    for ending, images in (("", given.images), *([(", first image", single)] if several else [])):
        outputs = {name: given.work / f"{name}{ending.replace(', ', '_')}" for name in ("nnunet", *FORMATS)}
        words = [*theirs, "-i", str(images), "-o", str(outputs["nnunet"])]
        rows[f"nnUNetv2_predict{ending}"] = run(words, given.threads)
        for name, changes in FORMATS.items():
            words = [*medunet, "predict", str(bundle), str(images), "--output", str(outputs[name]), *ours, *changes]
            rows[f"{name} predict{ending}"] = run(words, given.threads)
    found = pairs(given.work / "medunet", given.work / "nnunet")
    different = sum(int(np.count_nonzero(one != other)) for one, other in found)
    total = sum(one.size for one, _ in found)
    document = {"machine": machine(), "results": rows, "cases": len(found), "different": different, "voxels": total}
    if given.labels is not None:
        ignore = json.loads((given.model / "dataset.json").read_text())["labels"].get("ignore")
        folders = ("nnunet", *FORMATS)
        document["dice"] = {name: mean_dice(given.work / name, given.labels, ignore) for name in folders}
    units = rows["medunet predict"]
    print(table(["command", *units], [[name, *(f"{row[unit]:.1f}" for unit in units)] for name, row in rows.items()]))
    print(f"\n{different} of {total} voxels differ: {1e5 * different / max(total, 1):.2f} per 100,000")
    print(document.get("dice", ""), describe(machine()))
    if given.output is not None:
        write_json(given.output, document)


if __name__ == "__main__":
    main()
