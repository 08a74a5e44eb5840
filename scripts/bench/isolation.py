"""What decoding in a child process costs: seconds to read a file here and there, and to start the child.

Prints one line of JSON a file. usage: python -m scripts.bench.isolation [FILE ...]
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medunet.io import read_volume, write_volume
from medunet.io.decode import read_one_header
from medunet.io.isolation import ReadingProcess, shared_process
from medunet.io.options import DEFAULTS

REPEATS = 7


def seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def made(folder: Path) -> list[Path]:
    """A small volume and one like a chest CT."""
    rng = np.random.default_rng(0)
    paths = []
    for size in ((64, 64, 40), (512, 512, 140)):
        voxels = rng.normal(0, 40, size).astype(np.int16)
        paths.append(write_volume(voxels, folder / f"{'x'.join(map(str, size))}.nii.gz"))
    return paths


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(name) for name in sys.argv[1:]] or made(Path(folder))
        begun = time.perf_counter()
        process = ReadingProcess()
        process.call(read_one_header, paths[0], DEFAULTS)
        print(json.dumps({"seconds to start the child": round(time.perf_counter() - begun, 2)}))
        process.close()
        for path in paths:
            voxels = read_volume(path, isolated=True).image
            here = seconds(lambda path=path: float(read_volume(path, isolated=False).image.sum()))
            there = seconds(lambda path=path: float(read_volume(path, isolated=True).image.sum()))
            line = {"file": path.name, "MiB": round(voxels.numel() * 4 / 2**20, 1), "here_ms": round(1000 * here, 1)}
            print(json.dumps({**line, "child_ms": round(1000 * there, 1), "ratio": round(there / here, 3)}))
    shared_process().close()


if __name__ == "__main__":
    main()
