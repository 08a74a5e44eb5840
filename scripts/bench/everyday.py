"""Run every line of the page *Everyday tasks* in a small workspace, and print the seconds to each answer.

    python -m scripts.bench.everyday [PAGE]

PAGE is a page of the same form, such as one with the commands of an older version.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from medunet.datasets import write_phantom_dataset

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "everyday.md"
PATIENTS = ("p1", "p2", "p3", "p4", "p5", "p6")
TINY = {
    "network_def::channels": "[4,8]",
    "patch_size": "[32,32]",
    "steps_per_epoch": "2",
    "batch_size": "2",
    "epochs": "1",
    "val_interval": "1",
    "folds": "3",
}
BEFORE = """import os, numpy as np, medunet
array = np.zeros((48, 48))
"""


def read_lines(page: Path) -> dict[str, str]:
    """Return the line of each task."""
    return dict(re.findall(r"^\| (.*?) \| `(.*)` \|$", page.read_text(encoding="utf-8"), re.MULTILINE))


def medunet(folder: Path, words: str) -> None:
    """Run a command that prepares the workspace."""
    run(f"medunet {words}", folder)[1].check_returncode()


def prepare(folder: Path) -> None:
    """Write a data set of two pictures per patient in nnU-Net's layout, a small bundle, two runs and a split."""
    write_phantom_dataset(folder / "cells", kind="cells", cases=12, test_cases=4, size=(48, 48))
    cases = [f"{patient}_{side}" for patient in (*PATIENTS, "p8", "p9") for side in ("left", "right")]
    for number, case in enumerate(cases):
        section = "Tr" if number < 12 else "Ts"
        for kind, suffix in (("images", "_0000"), ("labels", "")):
            target = folder / "data" / f"{kind}{section}" / f"{case}{suffix}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            [source] = (folder / "cells").glob(f"{kind}*/cells_{number:03d}.png")
            shutil.copy(source, target)
    labels = json.loads((folder / "cells" / "dataset.json").read_text())["labels"]
    names = {name: int(value) for value, name in labels.items()}
    header = {"channel_names": {"0": "cells"}, "labels": names, "numTraining": 12, "file_ending": ".png"}
    (folder / "data" / "dataset.json").write_text(json.dumps(header))
    split = [{"train": cases[4:12], "val": cases[:4]}, {"train": cases[:8], "val": cases[8:12]}]
    split.append({"train": cases[:4] + cases[8:12], "val": cases[4:8]})
    (folder / "splits_final.json").write_text(json.dumps(split))
    shutil.copytree(folder / "data" / "imagesTs", folder / "images")
    medunet(folder, "bundle init unet_2d -o plans/mine " + " ".join(f"--set {id_}={v}" for id_, v in TINY.items()))
    for name in ("mine", "other"):
        medunet(folder, f"train plans/mine --data data -o runs/{name} --device cpu")


def run(line: str, folder: Path) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Run one line and return its seconds and result."""
    command: str | list[str] = line.replace("medunet", f"{sys.executable} -m medunet", 1)
    if not line.startswith("medunet "):
        command = [sys.executable, "-c", f"{BEFORE}print({line})"]
    variables = {**os.environ, "MEDUNET_CACHE_DIR": str(folder / "cache")}
    begun = time.perf_counter()
    done = subprocess.run(
        command, shell=isinstance(command, str), cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    return time.perf_counter() - begun, done


def main() -> None:
    """Prepare a workspace, run the lines and print the table; exit with 1 if a line fails."""
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        for task, line in read_lines(page).items():
            seconds, done = run(line, folder)
            failed |= done.returncode != 0
            print(f"| {task} | `{line}` | {seconds:.1f} |", flush=True)
            if done.returncode:
                print(f"exit code {done.returncode}: {done.stdout[-500:]} {done.stderr[-1500:]}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
