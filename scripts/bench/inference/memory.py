"""Peak memory and time against the number of voxels, each measurement in a process of its own.

`scripts.bench.inference` starts this file with a JSON object of a job and reads one of the result from the last line.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.bench.measure import ROOT

from .material import NETWORKS, Volume, as_image, made_arrays, trained, window_hu, with_classes
from .options import Options, Put
from .systems import Clock, Medunet

CLASSES = 20
SLICES = (125, 250, 500, 1000)
NETWORK = "unet_3d"
GIB = 2**30
GB = 10**9

BUDGETS = ("5GB",)
"""Memory that the inferer may plan with: what keeps the whole process under 8 GB."""

ZOO_BYTES_PER_VOXEL = 2.2 * 4 * CLASSES
"""MONAI's window stitching holds every class's logits, and their softmax beside them."""


def memory(options: Options, put: Put) -> None:
    """Start a process for each system, budget and size."""
    edge = 64 if options.quick else 512
    sizes = [n // 8 for n in SLICES] if options.quick else list(SLICES)
    image, _ = made_arrays((edge, edge, sizes[-1]), options.work)
    weights = options.work / "memory.pt"
    network = trained(NETWORK, [], options.work, steps=options.training_steps)
    torch.save(network.state_dict(), weights)
    free = _free_bytes()
    for slices in sizes:
        for system, budget in [*(("medunet", budget) for budget in BUDGETS), ("MONAI, zoo setting", "")]:
            key = f"{edge}x{edge}x{slices} | {system} {budget}".strip()
            if not options.wants(key):
                continue
            voxels = edge * edge * slices
            row: dict[str, Any] = {"system": f"{system} {budget}".strip(), "slices": slices, "voxels": voxels}
            if system != "medunet":
                put(key, {**row, "skipped": f"needs {voxels * ZOO_BYTES_PER_VOXEL / GB:.0f} GB of logits and softmax"})
                continue
            job = {
                "image": str(image),
                "slices": slices,
                "system": system,
                "budget": budget,
                "weights": str(weights),
                "device": options.device.type,
            }
            put(key, {**row, **_run(job, limit=free)})


def _run(job: dict[str, Any], *, limit: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "scripts.bench.inference.memory", json.dumps(job)]
    # what is asked for beyond the free memory fails in the child instead of waking the kernel's killer
    preexec = _limit(limit) if job["device"] == "cpu" else None
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=preexec)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"error": f"exit {done.returncode}: {last}"[:300]}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def _limit(limit: float) -> Any:
    def apply() -> None:
        # address space is more than what is touched: libraries map some gigabytes that they never use
        resource.setrlimit(resource.RLIMIT_AS, (int(limit) + 12 * GIB, resource.RLIM_INFINITY))

    return apply


def _free_bytes() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Predict one volume; what the process held before and at most."""
    device = torch.device(job["device"])
    network = NETWORKS[NETWORK]()
    network.load_state_dict(torch.load(job["weights"], weights_only=True))
    network = with_classes(network, CLASSES).eval()
    tiles = {"memory": job["budget"]}
    system = Medunet("medunet", network, device, tiles=tiles)
    # mapped, not read: the window is applied slice by slice into the float32 image
    stored = np.load(job["image"], mmap_mode="r")
    image = torch.empty(1, *stored.shape[:2], job["slices"])
    for row in range(stored.shape[0]):
        image[:, row] = window_hu(stored[row, :, : job["slices"]])
    volume = Volume("made", as_image(image))
    crop = Volume("crop", as_image(image[:, :96, :96, :96].contiguous()))
    del stored
    before = _resident()
    with torch.inference_mode():
        sampler = _Sampler()
        sampler.start()
        begun = time.perf_counter()
        system.labels(crop)  # calibrates
        first = time.perf_counter() - begun
        clock = Clock(system.clocked())
        begun = time.perf_counter()
        answer = system.labels(volume)
        seconds = time.perf_counter() - begun
        during = sampler.stop()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {
        "seconds": seconds,
        "network_seconds": clock.seconds,
        "calls": clock.calls,
        "first_seconds": first,
        "before_gb": before / GB,
        "peak_gb": peak / GB,
        "peak_without_libraries_gb": during / GB,
        "labels_found": len(torch.unique(answer.labels)),
        "facts": system.facts(volume),
    }
    if device.type == "cuda":
        found["peak_device_gb"] = torch.cuda.max_memory_allocated() / GB
    return found


class _Sampler(threading.Thread):
    """The largest anonymous memory while it runs: the kernel's peak counts pages of mapped libraries, too."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, _resident())

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self.most


def _resident() -> int:
    """Resident bytes, without pages of mapped files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024


if __name__ == "__main__":
    print(json.dumps(child(json.loads(sys.argv[1])), default=str))
