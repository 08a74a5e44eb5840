"""How the blocks measure: the device, clocks, and a line per number. Run as a module, it is the process of a block."""

import contextlib
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass
class Job:
    """What a block gets.

    Args:
        name: of the block.
        out: folder of the numbers.
        pretend: whether the device is simulated, so that everything is small.
        device: where to compute.
        failed: whether a part of the block has failed.
    """

    name: str
    out: Path
    pretend: bool
    device: torch.device
    failed: bool = False

    def emit(self, name: str, value: float | str, unit: str = "", **details: Any) -> None:
        """Write a number at once."""
        entry = {"block": self.name, "name": name, "value": value, "unit": unit, **details}
        with (self.out / "gpu_first.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(entry, default=str)}\n")
        print(entry, flush=True)

    def size(self, real: Any, small: Any) -> Any:
        """Return the size for the device, or the one for a rehearsal."""
        return small if self.pretend else real

    def seconds(self, work: Callable[[], Any], *, repeats: int = 10, warm: int = 2, longest: float = 10.0) -> float:
        """Return the median seconds of a call, after some that do not count; stop after `longest` seconds."""
        for _ in range(self.size(warm, 1)):
            work()
        times: list[float] = []
        while len(times) < self.size(repeats, 1) and sum(times) < longest:
            torch.cuda.synchronize()
            begun = time.perf_counter()
            work()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
        return statistics.median(times)

    def attempt(self, name: str, work: Callable[[], Any]) -> None:
        """Do a part of a block; a failure is reported and does not stop the others, unless the device is broken."""
        try:
            work()
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.emit(name, f"{type(error).__name__}: {lines[0][:200]}", "error")
            self.failed = True
            torch.cuda.synchronize()  # raises after an illegal access
        torch.cuda.empty_cache()


def simulated() -> contextlib.AbstractContextManager[Any]:
    """Return a simulated CUDA device."""
    return importlib.import_module("simulated_cuda").SimulatedCuda()  # type: ignore[no-any-return]


def main(function: str, name: str, device: str, out: str) -> int:
    """Run a block."""
    pretend = device == "pretend"
    module, _, attribute = function.partition(":")
    block = getattr(importlib.import_module(f"scripts.gpu.{module}"), attribute)
    with simulated() if pretend else contextlib.nullcontext():
        torch.manual_seed(0)
        job = Job(name, Path(out), pretend, torch.device("cuda", 0))
        block(job)
    return int(job.failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
