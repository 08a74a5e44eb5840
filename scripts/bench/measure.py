"""What all benchmarks share: the description of the machine, clocks, results as JSON and tables."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from medunet.files import write_atomically

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "scripts" / "results"


def machine(*packages: str) -> dict[str, Any]:
    """Describe the machine and the revision of a measurement, with the versions of packages."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "revision": revision.stdout.strip(),
        **({"packages": versions} if versions else {}),
    }


def describe(where: dict[str, Any]) -> str:
    """Return the line below a table: machine, date and revision."""
    threads = f"{where['threads']} thread{'s' * (where['threads'] != 1)}"
    return f"({where['cpu']}, {threads}, torch {where['torch']}, {where['date']}, {where['revision']})"


def read_json(path: Path) -> dict[str, Any]:
    """Return earlier results, or an empty dictionary."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(document, indent=1, default=str) + "\n")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def write_between(path: Path, marks: tuple[str, str], text: str) -> None:
    """Replace the text between two marks of a file; each mark occurs once."""
    before, rest = path.read_text(encoding="utf-8").split(marks[0])
    _, after = rest.split(marks[1])
    path.write_text(f"{before}{marks[0]}\n\n{text}\n\n{marks[1]}{after}", encoding="utf-8")


def synchronise() -> None:
    """Wait for the device, so that a clock on the host is right."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], repeats: int) -> list[float]:
    """Return the seconds of each of several calls, after an untimed one."""
    times = []
    with torch.inference_mode():
        work()
        for _ in range(repeats):
            synchronise()
            begun = time.perf_counter()
            work()
            synchronise()
            times.append(time.perf_counter() - begun)
    return times


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Return the median seconds of several calls, after an untimed one."""
    return statistics.median(seconds_of(work, repeats))


def split_by_name(cases: Sequence[Any], folds: int = 5) -> list[list[str]]:
    """Return the split of the published figures: fold k holds the cases k, k + folds, ... of the sorted names."""
    names = sorted(case.name for case in cases)
    return [names[fold::folds] for fold in range(folds)]


def fold_by_name(cases: Sequence[Any], fold: int = 0) -> tuple[list[Any], list[Any]]:
    """Return the training and the validation cases of a fold of `split_by_name`."""
    held_out = split_by_name(cases)[fold]
    return [case for case in cases if case.name not in held_out], [case for case in cases if case.name in held_out]
