"""What scripts/gpu_check.sh does: tests and benchmarks on a CUDA device, step by step, each within its minutes.

The table, with what the device and its libraries are, goes to gpu_check.md in --output; what the steps printed lies
beside it. A step that fails or takes too long does not keep the others away, and what this machine cannot do is said.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from medunet.bundle import find_bundle, specialise
from medunet.datasets import write_phantom_dataset
from medunet.runs import train_bundle
from medunet.runtime import save_weights

ROOT = Path(__file__).resolve().parents[1]

BUDGET_SECONDS = 24 * 60
"""For all steps; a minute of the promised 25 is left for what is around them."""

NO_CUDA = 3
"""Exit status where there is no device."""

MOST_TIMES = 2
"""A step may take this many times its limit where the ones before have left time that the ones after do not need."""

LEFT_OUT = "left out: "
"""How the result of a step begins that cannot be made here, which is no failure."""

HIPPOCAMPUS = "Task04_Hippocampus"

WARM_EPOCHS = 2
"""Epochs of the training that do not count: kernels are chosen, cases prepared."""


@dataclass(frozen=True)
class Step:
    """One command.

    Args:
        name: in the table.
        command: its words.
        limit: seconds.
        figure: what of the printed text is worth a cell of the table.
        missing: why it cannot be made here; empty if it can.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    figure: Callable[[str], str] = lambda text: ""
    missing: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    name: str
    result: str
    seconds: float
    figure: str


def steps(output: Path, *, data: Path | None, run: Path | None) -> list[Step]:
    """In the order of their worth, for the last ones may find the time used up."""

    def script(name: str, *words: object) -> tuple[str, ...]:
        return (sys.executable, str(ROOT / "scripts" / name), *map(str, words))

    def results(name: str) -> Path:
        return output / f"{name}.json"

    given = [*(("--data", data) if data else ()), *(("--run", run) if run else ())]
    work = output / "work"
    folders = ("--work", work, "--results", output, "--longest", 60, "--enough", 20)
    inference = script("bench_inference.py", "--device", "cuda", "--resume", *given, *folders)
    tests = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda")
    hippocampus = data is not None and (data / HIPPOCAMPUS).is_dir()
    made, image = material_of(work)
    few = ("--tasks", "hippocampus", "--cases", 6, "--rounds", 2, "--patches", 10)
    return [
        Step("tests marked cuda", tests, 240, last_line),
        Step("numerics and floor", (*inference, "floor"), 150),
        Step("paper's network, 512x512", (*inference, "--only", "cuda", "paper"), 60),
        Step("training, wait for data", script("gpu_check.py", "--training"), 120, last_line),
        Step("volumes, systems in turns", (*inference, "systems"), 315),
        Step("labels to the source grid", (*inference, "restore"), 60),
        Step("memory against voxels", (*inference, "memory"), 135),
        Step("a run and an image are made", script("gpu_check.py", "--material", "--output", output), 45),
        Step(
            "exported files, on the CPU",
            script("bench_export.py", "--case", made, image, "--rounds", 2, "--results", results("export")),
            90,
            line_with("ONNX Runtime"),
        ),
        Step(
            "a cohort, here and on Ray",
            script("bench_cohort.py", made, "--cases", 12, "--results", results("cohort")),
            75,
            last_line,
            missing="" if importlib.util.find_spec("ray") else "Ray is not installed",
        ),
        Step(
            "two GPUs, one training",
            script("bench_scaling.py", "--device", "cuda", "--steps", 10, "--results", results("scaling")),
            90,
            last_line,
            missing="" if torch.cuda.device_count() > 1 else "there is one GPU",
        ),
        Step(
            "patches for training, on the CPU",
            script("bench_data.py", "--data", data, *few, "--output", results("data")),
            60,
            line_with("MONAI, plain"),
            missing="" if hippocampus else f"needs --data with {HIPPOCAMPUS}",
        ),
    ]


def material_of(work: Path) -> tuple[Path, Path]:
    """Where the run and the image lie that :func:`make_material` makes."""
    return work / "made_run", work / "made_data" / "imagesTr" / "ct_000.nii.gz"


def make_material(work: Path, *, size: tuple[int, ...], **changes: Any) -> None:
    """A run of `unet_3d` with weights of chance, and an image, for benchmarks that judge time and agreement alone."""
    run, image = material_of(work)
    if (run / "models" / "model.pt").is_file() and image.is_file():
        return
    for folder in (run, image.parents[1]):
        shutil.rmtree(folder, ignore_errors=True)  # half of an earlier check
    write_phantom_dataset(image.parents[1], kind="ct", cases=1, size=size)
    folder = specialise(find_bundle("unet_3d"), run, changes)
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    torch.manual_seed(0)
    save_weights(parser.get_parsed_content("network_def").state_dict(), folder / "models" / "model.pt")


def line_with(words: str) -> Callable[[str], str]:
    """Of a printed text the last line with these words.

    Example:
        >>> line_with("plain")("plain 1\\nplain 2\\ngoal\\n")
        'plain 2'
    """
    return lambda text: last_line("\n".join(line for line in text.splitlines() if words in line))


def last_line(text: str) -> str:
    """The last line with something on it.

    Example:
        >>> last_line("....\\n4 passed in 3 s\\n\\n")
        '4 passed in 3 s'
    """
    return next((line.strip(" =") for line in reversed(text.splitlines()) if line.strip()), "")


def run_step(step: Step, *, limit: float, folder: Path) -> Outcome:
    """Run a command and all that it starts for so many seconds at most; what it prints goes to a file."""
    log = folder / f"{step.name.replace(' ', '_').replace(',', '')}.log"
    begun = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            step.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
    result = "out of time" if code is None else "ok" if code == 0 else f"failed ({code}), see {log.name}"
    text = log.read_text(encoding="utf-8", errors="replace")
    return Outcome(step.name, result, time.monotonic() - begun, step.figure(text))


def run_steps(todo: Sequence[Step], *, budget: float, folder: Path, done: Callable[[list[Outcome]], None]) -> bool:
    """Run the steps while time is left; `done` hears of each. Whether all went well."""
    end = time.monotonic() + budget
    outcomes: list[Outcome] = []
    for index, step in enumerate(todo):
        left = end - time.monotonic()
        if step.missing:
            outcomes.append(Outcome(step.name, f"{LEFT_OUT}{step.missing}", 0.0, ""))
        elif left < 1:
            outcomes.append(Outcome(step.name, "not run, the time was used up", 0.0, ""))
        else:
            limit = limit_of(step, todo[index + 1 :], left=left)
            print(f"{step.name} (up to {limit:.0f} s) ...", flush=True)
            outcomes.append(run_step(step, limit=limit, folder=folder))
            print(f"  {outcomes[-1].result} {outcomes[-1].seconds:.0f} s {outcomes[-1].figure}", flush=True)
        done(outcomes)
    return all(outcome.result == "ok" or outcome.result.startswith(LEFT_OUT) for outcome in outcomes)


def limit_of(step: Step, later: Sequence[Step], *, left: float) -> float:
    """Seconds of a step: its own, more where those before have left some, never what is not there.

    Example:
        >>> step = Step("any", (), 60)
        >>> [limit_of(step, [step], left=seconds) for seconds in (30, 100, 150, 500)]
        [30, 60, 90, 120]
    """
    spare = left - sum(other.limit for other in later if not other.missing)
    return min(left, max(step.limit, min(spare, MOST_TIMES * step.limit)))


def table(outcomes: Sequence[Outcome], where: dict[str, str]) -> str:
    """Markdown: the device, then a row a step."""
    lines = [f"# {where.get('device', 'device')}", "", *(f"- {key}: {value}" for key, value in where.items()), ""]
    lines += ["| step | result | s | figure |", "| --- | --- | --- | --- |"]
    lines += [f"| {o.name} | {o.result} | {o.seconds:.0f} | {o.figure.replace('|', '/')} |" for o in outcomes]
    return "\n".join(lines) + "\n"


def device_facts() -> dict[str, str]:
    """The device and the libraries whose releases have been wrong before."""
    found = torch.cuda.get_device_properties(0)
    driver = _printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "device": f"{found.name}, {found.total_memory / 2**30:.0f} GiB, compute capability {found.major}.{found.minor}",
        "driver": driver.partition("\n")[0] or "unknown",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "revision": _printed("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") or "unknown",
    }


def _printed(*command: str, seconds: float = 30) -> str:
    """What a command says; nothing where it is not there, fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def training(device: str, *, changes: dict[str, Any], size: tuple[int, ...], cases: int) -> str:
    """Steps a second of `unet_3d` on made volumes, and the share of the time that it waits for data."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_phantom_dataset(data, kind="ct", cases=cases, size=size)
        result = train_bundle(
            find_bundle("unet_3d"),
            data,
            Path(folder) / "run",
            changes={"store_dir": str(Path(folder) / "store"), "val_interval": 100, **changes},
            device=device,
            tracking_uri="",
        )
    later = result.history[WARM_EPOCHS:]
    rate = sum(entry["steps_per_second"] for entry in later) / len(later)
    waits = [entry["data_wait"] for entry in later]
    return f"{rate:.1f} steps/s, waits for data {100 * sum(waits) / len(waits):.1f} % of the time"


def main() -> int:
    """Check for the device, run the steps, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of real images; without it made ones only")
    parser.add_argument("--run", type=Path, help="a run of medunet trained on hippocampus")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu_check"), help="folder of the table and the logs")
    parser.add_argument("--training", action="store_true", help="only the step of that name, in this process")
    parser.add_argument("--material", action="store_true", help="only the run and the image, in this process")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            f"no CUDA device: torch {torch.__version__} sees none, so nothing was tested or measured. "
            "Run this on a machine with an NVIDIA GPU, its driver and a CUDA build of torch.",
            file=sys.stderr,
        )
        return NO_CUDA
    if options.training:
        changes = {"patch_size": [96, 96, 96], "batch_size": 4, "steps_per_epoch": 40, "epochs": 8, "num_workers": 4}
        print(training("cuda", changes=changes, size=(160, 160, 160), cases=8))
        return 0
    output: Path = options.output.resolve()
    if options.material:
        make_material(output / "work", size=(48, 48, 32))
        return 0
    output.mkdir(parents=True, exist_ok=True)
    where = device_facts()
    todo = steps(output, data=options.data and options.data.resolve(), run=options.run and options.run.resolve())

    def keep(outcomes: list[Outcome]) -> None:
        (output / "gpu_check.md").write_text(table(outcomes, where), encoding="utf-8")

    is_well = run_steps(todo, budget=BUDGET_SECONDS, folder=output, done=keep)
    report = (sys.executable, str(ROOT / "scripts" / "bench_inference.py"), "report", "--results", str(output))
    with (output / "gpu_check.md").open("a", encoding="utf-8") as file:
        file.write(f"\n{_printed(*report, seconds=60)}\n")
    print((output / "gpu_check.md").read_text(encoding="utf-8"))
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
