"""Training beside nnU-Net v2 and a plain MONAI script: preprocessing, seconds a step, Dice after the same minutes.

    python -m scripts.bench.training prepare --data DATA [--work W]      # time and memory, hippocampus and one large CT
    python -m scripts.bench.training steps   --data DATA                 # the same network, patch and batch
    python -m scripts.bench.training quality --data DATA --minutes 15 30 # nnU-Net; ours: quality --planned
    python -m scripts.bench.training few     --data DATA --minutes 8     # nnU-Net; ours: quality few
    python -m scripts.bench.training em      --data DATA --minutes 30    # nnU-Net 2D; ours: quality em

DATA holds Task04_Hippocampus, CT_Lung1_001 and ISBI2012_EM. Needs the extra `bench` (nnU-Net), the machine to itself;
`steps` and `quality` use what `prepare` left under --work. Results: scripts/results/training.json and a table.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .measure import RESULTS, fold_by_name, machine, read_json, write_json

CONFIGURATION = "3d_fullres"
PLANAR_CONFIGURATION = "2d"
HIPPOCAMPUS = {"background": 0, "Anterior": 1, "Posterior": 2}
DATASETS = {"hippocampus": (4, "Dataset004_Hippocampus"), "CT": (5, "Dataset005_CT"), "EM": (6, "Dataset006_EM")}
FEW_DATASET = 100
"""Number of nnU-Net's data sets of a few cases, plus how many."""
FOLDS = 5
POLL_SECONDS = 0.2
HALF = 0.5
"""Threshold, and membrane probability between cells, of a network whose loss weighs both classes alike."""
GOALS = {"nnU-Net": 6.0, "MONAI, plain": 5.0}


def environment(work: Path) -> dict[str, str]:
    """nnU-Net's folders, and as many processes as there are cores."""
    cores = str(len(os.sched_getaffinity(0)))
    folders = {f"nnUNet_{name}": str(work / "nnunet" / name) for name in ("raw", "preprocessed", "results")}
    ours = {
        "MEDUNET_CACHE_DIR": str(work / "cache"),
        "nnUNet_extTrainer": str(Path(__file__).parent / "nnunet_trainer"),
    }
    return {**os.environ, **folders, **ours, "nnUNet_def_n_proc": cores, "MLFLOW_TRACKING_URI": ""}


def program(name: str) -> str:
    """A program of the environment that this one runs in."""
    return str(Path(sys.executable).parent / name)


def run(command: list[str], env: dict[str, str], log: Path) -> None:
    """Run a command to its end; what it prints goes to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        if subprocess.run(command, env=env, stdout=file, stderr=subprocess.STDOUT, check=False).returncode:
            raise SystemExit(f"{' '.join(command)} failed, see {log}")


def measured(command: list[str], env: dict[str, str], log: Path) -> dict[str, float]:
    """Seconds and largest proportional set size of a command with all its processes."""
    import psutil  # noqa: PLC0415

    begun, peak = time.monotonic(), 0
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = psutil.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            total = 0
            for part in [process, *_children(process)]:
                try:
                    total += part.memory_full_info().pss
                except psutil.Error:
                    continue
            peak = max(peak, total)
            time.sleep(POLL_SECONDS)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed, see {log}")
    return {"seconds": round(time.monotonic() - begun, 1), "peak_mib": peak >> 20}


def _children(process: Any) -> list[Any]:
    import psutil  # noqa: PLC0415

    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def raw_dataset(task: str, data: Path, work: Path) -> None:
    """The same cases as a data set of nnU-Net, by links, and our folds for it."""
    from medunet.datasets import open_dataset  # noqa: PLC0415

    _, name = DATASETS[task]
    if task == "hippocampus":
        dataset = open_dataset(data / "Task04_Hippocampus")
        cases = [(case.name, case.images[0], case.label) for case in dataset.cases]
        link_cases(work, name, cases, HIPPOCAMPUS, "MRI")
        write_splits(work, name, [fold_by_name(dataset.cases, fold) for fold in range(FOLDS)])
    else:
        folder = data / "CT_Lung1_001"
        # twice, for a plan wants a case that validates
        cases = [(name, folder / "ct.nii.gz", folder / "labels.nii.gz") for name in ("ct", "again")]
        labels = {"background": 0, "left_lung": 1, "right_lung": 2, "cord": 3, "tumour": 4}
        link_cases(work, name, cases, labels, "CT")


def link_cases(
    work: Path, name: str, cases: Sequence[Any], labels: dict[str, int], channel: str, *, ending: str = ".nii.gz"
) -> None:
    """A data set of nnU-Net of (name, image, label)."""
    raw = work / "nnunet" / "raw" / name
    for case, image, label in cases:
        for source, target in (
            (image, raw / "imagesTr" / f"{case}_0000{ending}"),
            (label, raw / "labelsTr" / f"{case}{ending}"),
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(Path(source).resolve())
    manifest = {"channel_names": {"0": channel}, "labels": labels, "numTraining": len(cases), "file_ending": ending}
    (raw / "dataset.json").write_text(json.dumps(manifest))


def write_splits(work: Path, name: str, folds: Sequence[tuple[Sequence[Any], Sequence[Any]]]) -> None:
    """Training and validation cases of the folds, as nnU-Net reads them."""
    folder = work / "nnunet" / "preprocessed" / name
    folder.mkdir(parents=True, exist_ok=True)
    splits = [{"train": [case.name for case in train], "val": [case.name for case in val]} for train, val in folds]
    (folder / "splits_final.json").write_text(json.dumps(splits))


def prepare(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Fingerprint, plan and preprocessing of both, from files to what training reads."""
    env = environment(options.work)
    for task in ("hippocampus", "CT"):
        number, name = DATASETS[task]
        raw_dataset(task, options.data, options.work)
        command = [program("nnUNetv2_plan_and_preprocess"), "-d", str(number), "-c", CONFIGURATION]
        cores = env["nnUNet_def_n_proc"]
        theirs = measured([*command, "-np", cores, "-npfp", cores], env, options.work / f"prepare_{task}.log")
        yield f"{task}, nnU-Net", theirs
        source = options.work / "nnunet" / "raw" / name  # the same folder, which ours reads as well
        own = options.work / f"ours_{task}"
        ours = [sys.executable, "-m", "scripts.bench.training", "_prepare", "--data", str(source), "--work", str(own)]
        yield f"{task}, medunet", measured(ours, env, options.work / f"prepare_{task}_ours.log")


def prepare_ours(data: Path, work: Path) -> None:
    """What `medunet plan --estimate` and the start of `medunet train` do."""
    from monai.bundle import ConfigParser  # noqa: PLC0415

    from medunet.bundle import plan_bundle  # noqa: PLC0415

    folder = plan_bundle(data, work / "bundle", measure=False).folder
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "train.json"))
    parser.update({"dataset_dir": str(data), "store_dir": str(work / "store")})
    parser["train#dataset#data"] = f"$medunet.datasets.datalist({str(data)!r}, section='all')"
    parser.get_parsed_content("train#dataset").prepare()


def steps(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Seconds a step of each, by turns in one process, data included."""
    os.environ.update(environment(options.work))
    logging.getLogger("medunet").setLevel(logging.WARNING)
    from . import training_systems as systems  # noqa: PLC0415

    setting = systems.Setting.from_nnunet(options.work / "nnunet" / "preprocessed" / DATASETS["hippocampus"][1])
    built: dict[str, Callable[[int], list[float]]] = {}
    data = options.data / "Task04_Hippocampus"
    for name, build in systems.SYSTEMS.items():
        if options.only is None or options.only in name:
            built[name] = build(setting, data, options.work)
            built[name](options.warmup)
    seconds: dict[str, list[float]] = {name: [] for name in built}
    for _ in range(options.rounds):
        for name, advance in built.items():
            advance(options.settle)
            seconds[name] += advance(options.steps)
    means = {name: statistics.mean(values) for name, values in seconds.items()}
    for name, mean in means.items():
        others = {other: round(means[other] / mean, 2) for other in GOALS if other in means}
        yield (
            f"step: {name}",
            {
                "mean_seconds": round(mean, 4),
                "median_seconds": round(statistics.median(seconds[name]), 4),
                "steps": len(seconds[name]),
                "times_as_fast_as": others,
                **setting.describe(),
            },
        )
    systems.close()


def quality(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """`nnUNetv2_train` for so many minutes on fold 0, its own validation with its own inference."""
    number, name = DATASETS["hippocampus"]
    for minutes in options.minutes:
        row = trained(options.work, number, name, minutes, options.work / f"nnunet_{minutes:g}")
        yield f"nnU-Net, fold 0, {minutes:g} minutes", row


def few(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """The cases that `scripts.bench.quality few` draws by seed 0; nnU-Net plans on those that are measured as well."""
    from medunet.datasets import open_dataset  # noqa: PLC0415

    from .quality_planned import draw  # noqa: PLC0415

    minutes, *_ = options.minutes
    dataset = open_dataset(options.data / "Task04_Hippocampus")
    training, validation = fold_by_name(dataset.cases)
    env = environment(options.work)
    for size in options.sizes:
        number, name = FEW_DATASET + size, f"Dataset{FEW_DATASET + size}_Hippocampus{size}"
        chosen = draw(training, size, seed=0)
        cases = [(case.name, case.images[0], case.label) for case in (*chosen, *validation)]
        link_cases(options.work, name, cases, HIPPOCAMPUS, "MRI")
        command = [program("nnUNetv2_plan_and_preprocess"), "-d", str(number), "-c", CONFIGURATION]
        cores = env["nnUNet_def_n_proc"]
        run([*command, "-np", cores, "-npfp", cores], env, options.work / f"prepare_few_{size}.log")
        write_splits(options.work, name, [(chosen, validation)])
        row = trained(options.work, number, name, minutes, options.work / f"nnunet_few_{size}")
        yield f"nnU-Net, {size} cases, seed 0, {minutes:g} minutes", row


def em(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """nnU-Net 2D on slices 0 to 15; slices 16 to 19 are scored as `scripts.bench.quality em` scores ours."""
    from medunet.datasets import open_dataset  # noqa: PLC0415
    from medunet.io import read_volume, write_volume  # noqa: PLC0415
    from medunet.metrics import best_em_scores, em_scores  # noqa: PLC0415

    from .quality import EM_VALIDATION, separated  # noqa: PLC0415

    minutes, *_ = options.minutes
    number, name = DATASETS["EM"]
    dataset, cases, interior = open_dataset(options.data / "ISBI2012_EM"), [], {}
    for case in dataset.cases:
        interior[case.name] = read_volume(case.label).image[0].numpy() > 0
        label = options.work / "em_labels" / f"{case.name}.png"  # nnU-Net wants classes counted from 0
        cases.append((case.name, case.images[0], write_volume(interior[case.name].astype("uint8"), label)))
    link_cases(options.work, name, cases, {"background": 0, "interior": 1}, "EM", ending=".png")
    env = environment(options.work)
    cores = env["nnUNet_def_n_proc"]
    command = [program("nnUNetv2_plan_and_preprocess"), "-d", str(number), "-c", PLANAR_CONFIGURATION]
    run([*command, "-np", cores, "-npfp", cores], env, options.work / "prepare_em.log")
    validation = [case for case in dataset.cases if case.name in EM_VALIDATION]
    write_splits(options.work, name, [([case for case in dataset.cases if case not in validation], validation)])
    results = options.work / f"nnunet_em_{minutes:g}"
    row = trained(options.work, number, name, minutes, results, configuration=PLANAR_CONFIGURATION)
    folder = next((results / name).glob("nnUNetTrainerTimed__*/fold_0/validation"))
    maps = [np.load(folder / f"{case}.npz")["probabilities"][1].squeeze() for case in EM_VALIDATION]
    references = [interior[case] for case in EM_VALIDATION]
    plain = [em_scores(found > HALF, ref) for found, ref in zip(maps, references, strict=True)]
    row["em"] = {key: statistics.mean(getattr(scores, key) for scores in plain) for key in plain[0]._fields}
    row["best_threshold"] = best_em_scores(maps, references)._asdict()
    row["separated_cells"] = separated(maps, references, HALF)
    yield f"nnU-Net 2D, EM, {minutes:g} minutes", row


def trained(
    work: Path, number: int, name: str, minutes: float, results: Path, *, configuration: str = CONFIGURATION
) -> dict[str, Any]:
    """`nnUNetv2_train` on the first fold, and what its validation says."""
    env = {**environment(work), "BENCH_MINUTES": f"{minutes:g}", "nnUNet_results": str(results)}
    which = [str(number), configuration, "0", "-tr", "nnUNetTrainerTimed", "-device", "cpu", "--npz"]
    run([program("nnUNetv2_train"), *which], env, results / "log.txt")
    fold = next((results / name).glob("nnUNetTrainerTimed__*/fold_0"))
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    curve = json.loads((fold / "curve.json").read_text())
    return {
        "steps": curve[-1]["step"],
        "curve": curve,
        "mean_dice": summary["foreground_mean"]["Dice"],
        "dice": {label: entry["Dice"] for label, entry in summary["mean"].items()},
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["prepare", "steps", "quality", "few", "em", "_prepare"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/bench_training"))
    parser.add_argument("--minutes", type=float, nargs="+", default=[15.0, 30.0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 10, 20], help="few: numbers of cases")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--settle", type=int, default=8, help="untimed steps of a turn, for batches wait in queues")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="steps: systems whose name has this")
    parser.add_argument("--results", type=Path, default=RESULTS / "training.json")
    options = parser.parse_args()
    options.work = options.work.resolve()
    if options.task == "_prepare":
        prepare_ours(options.data, options.work)
        return
    tasks = {"prepare": prepare, "steps": steps, "quality": quality, "few": few, "em": em}
    rows = tasks[options.task](options)
    document = {"rows": {}, **read_json(options.results)}
    for name, row in rows:
        document["rows"][name] = {**row, "machine": machine()}
        write_json(options.results, document)
        print(name, {key: value for key, value in row.items() if key != "curve"}, flush=True)


if __name__ == "__main__":
    main()
