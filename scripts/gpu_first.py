"""What a machine with an NVIDIA GPU shows first: is medunet right on it, and how fast?

    python -m scripts.gpu.wheels wheels scipy scikit-image                       # where there is a network
    python scripts/gpu_first.py --wheels wheels --seconds 540 --out runs/gpu     # on the machine with the GPU

It needs Python 3.12, PyTorch for CUDA and NumPy, but no network. Every block runs in its own process, within its own
time: a block that fails or hangs does not stop the others. Every number is a line in `gpu_first.jsonl` as soon as it is
known; `gpu_first.md` is the table. `--device pretend` runs every block in small on a CPU, on a simulated CUDA device
without SimpleITK, ITK, MLflow, highdicom, pandas and scikit-learn.

Exit status: 0 success, 1 a block failed or ran out of time, 3 no CUDA device.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NO_CUDA = 3  # exit status
STARTUP = 15.0  # seconds that are too few to start another block
BLOCKED = Path(__file__).with_name("gpu") / "blocked"  # its sitecustomize.py hides packages that the GPU machine lacks


@dataclass(frozen=True)
class Block:
    """One block: its name, `module:function` in `scripts.gpu`, and its limit in seconds."""

    name: str
    function: str
    seconds: float


# the most important ones first
BLOCKS = (
    Block("facts", "kernels:facts", 40),
    Block("limit", "kernels:limit", 60),
    Block("numerics", "networks:numerics", 50),
    Block("inference", "networks:inference", 120),
    Block("training", "training:steps", 110),
    Block("tests", "tests:tests", 100),
    Block("pipeline", "pipeline:pipeline", 90),
    Block("conv", "kernels:conv", 60),
)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSON-lines file; a line that a killed process has cut is left out."""
    lines = []
    for text in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def run_block(block: Block, seconds: float, out: Path, device: str, environment: dict[str, str]) -> str:
    """Run a block and all its processes within a limit; return `ok` or what happened."""
    log = out / f"{block.name}.log"
    command = [sys.executable, "-m", "scripts.gpu.measure", block.function, block.name, device, str(out)]
    with log.open("wb") as file:
        options: dict[str, Any] = {"cwd": ROOT, "env": environment, "stdout": file, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, start_new_session=True, **options)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code is None:
        return f"out of time ({seconds:.0f} s)"
    return "ok" if code == 0 else f"failed ({code}), see {log.name}"


def summary(lines: Sequence[dict[str, Any]]) -> str:
    """Return the table of all numbers, with the result of each block."""
    rows = ["| block | what | value | unit |", "| --- | --- | ---: | --- |"]
    for line in lines:
        value = line["value"]
        shown = f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")
        rows.append(f"| {line['block']} | {line['name']} | {shown} | {line.get('unit', '')} |")
    return "\n".join(rows)


def run_blocks(blocks: Sequence[Block], out: Path, device: str, seconds: float, environment: dict[str, str]) -> bool:
    """Run blocks until the time is up, rewrite the table after each, and return whether all succeeded."""
    numbers, end, is_well = out / "gpu_first.jsonl", time.monotonic() + seconds, True
    numbers.unlink(missing_ok=True)
    for block in blocks:
        left = end - time.monotonic()
        begun, result = time.monotonic(), "not started: no time left"
        if left > STARTUP:
            limit = left if device == "pretend" else min(left, block.seconds)  # a CPU may be slow or busy
            print(f"{block.name} (up to {limit:.0f} s) ...", flush=True)
            result = run_block(block, limit, out, device, environment)
        is_well &= result == "ok"
        entry = {"block": block.name, "name": "result", "value": result, "seconds": round(time.monotonic() - begun, 1)}
        with numbers.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(entry)}\n")
        (out / "gpu_first.md").write_text(f"{summary(lines_of(numbers))}\n", encoding="utf-8")
        print(f"  {result}, {entry['seconds']} s", flush=True)
    return is_well


def main(words: Sequence[str] | None = None) -> int:
    """Install the wheels and run the blocks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_first"), help="folder of numbers, table and logs")
    parser.add_argument("--seconds", type=float, default=540, help="time for all blocks")
    parser.add_argument("--device", choices=("cuda", "pretend"), default="cuda")
    parser.add_argument("--blocks", nargs="*", choices=[block.name for block in BLOCKS], help="default: all")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that are installed into a temporary folder")
    options = parser.parse_args(words)
    pretend = options.device == "pretend"
    with tempfile.TemporaryDirectory() as site:
        if options.wheels:
            install = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", site]
            subprocess.run([sys.executable, *install, *map(str, options.wheels.glob("*.whl"))], check=True)
        path = [BLOCKED] if pretend else []
        path += [site, ROOT, ROOT / "tests" / "support", os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
        environment |= {"MEDUNET_CACHE_DIR": f"{site}/cache"}
        environment |= {"MPLBACKEND": "agg", "PYTHONUNBUFFERED": "1"}
        probe = [sys.executable, "-c", "import torch, sys; sys.exit(not torch.cuda.is_available())"]
        if not pretend and subprocess.run(probe, env=environment, check=False).returncode:
            print("no CUDA device: nothing was tested or measured", file=sys.stderr)
            return NO_CUDA
        out = options.out.resolve()
        out.mkdir(parents=True, exist_ok=True)
        chosen = [block for block in BLOCKS if options.blocks is None or block.name in options.blocks]
        is_well = run_blocks(chosen, out, options.device, options.seconds, environment)
    print((out / "gpu_first.md").read_text(encoding="utf-8"))
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
