"""Compare `nnUNetv2_predict` with `medunet predict` for one trained nnU-Net model: labels, time and memory.

    python -m scripts.bench.nnunet_import MODEL_FOLDER IMAGES --work FOLDER [--mirror] [--folds 0]

Both run as commands with the same threads, so loading and start are included. nnU-Net may be in another environment:
`--nnunet-bin FOLDER` is the folder of its programs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from medunet.io import read_volume

from .measure import describe, machine, table, write_json


def run(command: list[str], threads: int) -> tuple[float, float]:
    """Run a command and return its seconds and the peak memory of its largest process in MB."""
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    environment = {**os.environ, **dict.fromkeys(names, "."), "OMP_NUM_THREADS": str(threads), "nnUNet_compile": "f"}
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    return time.perf_counter() - begun, usage.ru_maxrss / 1024


def unlike(first: Path, second: Path) -> tuple[int, int]:
    """Return the number of voxels with different labels, and of all voxels."""
    different = total = 0
    for file in sorted(first.iterdir()):
        if (other := second / file.name).is_file():
            labels = [read_volume(path).image.numpy() for path in (file, other)]
            different += int(np.count_nonzero(labels[0] != labels[1]))
            total += labels[0].size
    return different, total


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--folds", default="all")
    parser.add_argument("--mirror", action="store_true")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtype", default="float32", help="number format of medunet, or auto")
    parser.add_argument("--nnunet-bin", type=Path, default=Path(sys.executable).parent)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    given = parser.parse_args()
    shutil.rmtree(given.work, ignore_errors=True)
    given.work.mkdir(parents=True)
    theirs, ours, bundle = (given.work / name for name in ("nnunet", "medunet", "bundle"))
    medunet = [sys.executable, "-m", "medunet"]
    folds = [path.name[5:] for path in sorted(given.model.glob("fold_*"))]
    folds = folds if given.folds == "all" else given.folds.split(",")
    rows: dict[str, Any] = {
        "nnUNetv2_predict": run(
            [
                str(given.nnunet_bin / "nnUNetv2_predict_from_modelfolder"),
                *("-i", str(given.images), "-o", str(theirs), "-m", str(given.model), "-f", *folds),
                *("-npp", "1", "-nps", "1", "-device", "cpu", *([] if given.mirror else ["--disable_tta"])),
            ],
            given.threads,
        ),
        "medunet bundle import": run(
            [
                *medunet,
                "bundle",
                "import",
                str(given.model),
                "-o",
                str(bundle),
                "--folds",
                given.folds,
                "--any-trainer",
            ],
            given.threads,
        ),
        "medunet predict": run(
            [
                *(*medunet, "predict", str(bundle), str(given.images), "--output", str(ours), "--device", "cpu"),
                *("--set", f"autocast_dtype={given.dtype}", *(["--tta", "mirror"] if given.mirror else [])),
            ],
            given.threads,
        ),
    }
    different, total = unlike(ours, theirs)
    print(table(["command", "seconds", "peak MB"], [[name, f"{s:.1f}", f"{mb:.0f}"] for name, (s, mb) in rows.items()]))
    print(f"\n{different} of {total} voxels differ: {1e5 * different / max(total, 1):.2f} per 100,000")
    print(describe(where := machine()))
    if given.output is not None:
        write_json(given.output, {"machine": where, "results": rows, "different": different, "voxels": total})


if __name__ == "__main__":
    main()
