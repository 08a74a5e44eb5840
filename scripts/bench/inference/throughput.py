"""Cases per second of whole programs on a folder of small volumes: `medunet predict`, nnU-Net's, `monai.bundle`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from medunet.datasets import open_dataset
from medunet.runs import evaluate_folders
from scripts.bench import nnunet
from scripts.bench.measure import ROOT

from .options import Options, Put

LOOP_CASES = 3
"""Cases of the loop that starts `monai.bundle` for each: its time a case hardly varies."""


def throughput(options: Options, put: Put) -> None:
    """All programs on the same files, with one case for what starting costs and then with all."""
    if options.run is None or options.data is None:
        put("not measured", {"skipped": "needs --run and --data"})
        return
    data = options.data / "Task04_Hippocampus"
    count = 4 if options.quick else options.cases
    folder = options.work / "throughput"
    shutil.rmtree(folder, ignore_errors=True)
    cases = open_dataset(data).cases[:count]
    for part, number in (("one", 1), ("all", len(cases))):
        for case in cases[:number]:
            image = case.images[0].resolve()
            _link(image, folder / "inputs" / part / image.name)
            _link(image, folder / "nnunet" / part / image.name.replace(".nii.gz", "_0000.nii.gz"))
            if part == "all":
                _link(case.label.resolve(), folder / "labels" / image.name)
    run = options.run.resolve()
    programs = {
        "medunet predict": _medunet(run, options),
        "monai.bundle run, one call for all": _monai(run),
    }
    if nnunet.available():
        nnunet.write_model(folder / "model", run)
        programs["nnUNetv2_predict, no mirroring"] = _nnunet(folder / "model", "--disable_tta")
        programs["nnUNetv2_predict"] = _nnunet(folder / "model")
    for name, command in programs.items():
        if not options.wants(name):
            continue
        inputs = folder / ("nnunet" if "nnUNet" in name else "inputs")
        row: dict[str, Any] = {"program": name, "cases": len(cases)}
        for part in ("one", "all"):
            output = folder / "results" / name.replace(" ", "_").replace(",", "") / part
            row[f"seconds_{part}"], error = _timed(command(inputs / part, output))
            if error:
                row["error"] = error
                break
        else:
            row["cases_per_second"] = len(cases) / row["seconds_all"]
            running = row["seconds_all"] - row["seconds_one"]
            row["cases_per_second_running"] = (len(cases) - 1) / running if running > 0 else None
            row["mean_dice"] = _dice(output, folder / "labels", folder / "scores")
        put(name, row)
    loop = "monai.bundle run, one call per case"
    if options.wants(loop):
        number = min(LOOP_CASES, len(cases))
        spent = []
        for index, case in enumerate(cases[:number]):
            single = folder / "single" / str(index)
            _link(case.images[0].resolve(), single / case.images[0].name)
            seconds, error = _timed(_monai(run)(single, folder / "results" / "loop" / str(index)))
            spent.append(seconds)
            if error:
                put(loop, {"program": loop, "error": error})
                return
        total = sum(spent)
        put(loop, {"program": loop, "cases": number, "cases_per_second": number / total, "seconds_all": total})


def _medunet(run: Path, options: Options) -> Any:
    settings = [word for setting in options.settings for word in ("--set", setting)]
    return lambda inputs, output: [
        *(sys.executable, "-m", "medunet", "predict", str(run), str(inputs), "--output", str(output)),
        *("--device", options.device.type, *settings),
    ]


def _monai(run: Path) -> Any:
    return lambda inputs, output: [
        *(sys.executable, "-m", "monai.bundle", "run", "inference"),
        *("--config_file", str(run / "configs" / "inference.json"), "--bundle_root", str(run)),
        *("--dataset_dir", str(inputs), "--prediction_dir", str(output)),
    ]


def _nnunet(model: Path, *more: str) -> Any:
    program = Path(sys.executable).parent / "nnUNetv2_predict_from_modelfolder"
    device = "cpu" if not _cuda() else "cuda"
    return lambda inputs, output: [
        *(str(program), "-i", str(inputs), "-o", str(output), "-m", str(model), "-f", "0", "-device", device),
        *("--disable_progress_bar", *more),
    ]


def _cuda() -> bool:
    import torch  # noqa: PLC0415

    return torch.cuda.is_available()


def _timed(command: list[str]) -> tuple[float, str | None]:
    """Wall seconds of a program from its start to its end, and its last line if it failed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - begun
    if done.returncode:
        return seconds, ((done.stderr or done.stdout).strip().splitlines() or ["failed"])[-1][:300]
    return seconds, None


def _dice(predictions: Path, labels: Path, scores: Path) -> float | str:
    try:
        return float(evaluate_folders(predictions, labels, scores)["mean_dice"])
    except Exception as failure:
        return type(failure).__name__


def _link(target: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(target)
