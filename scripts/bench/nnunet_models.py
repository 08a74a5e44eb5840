"""Train five models with nnU-Net v2 itself, for some minutes each, and compare its predictions with those of medunet.

    python -m scripts.bench.nnunet_models --data DATA --work FOLDER --nnunet-bin BIN [--only NAME ...]

DATA has `Task04_Hippocampus` and `ISBI2012_EM`; BIN has the programs of nnU-Net 2.8, which may be in another
environment. nnU-Net makes fingerprint and plan; of the plan, only the channels (a quarter) and the size of a
batch (2) change, so that a step takes about a second on a CPU. Then nnU-Net trains fold 0 for 300 steps with AdamW, and
`scripts.bench.nnunet_import` compares both programs on cases that training had not seen, without and with mirroring.
Results go to scripts/results/nnunet_models.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .measure import RESULTS, describe, machine, read_json, table, write_json

Change = Callable[[sitk.Image, bool], sitk.Image]
TRAINER = "nnUNetTrainerShort"
ENDINGS = {"MR": ".nii.gz", "EM": ".png"}


@dataclass(frozen=True)
class Model:
    """A model to train: a data set, its labels as nnU-Net describes them, and a configuration of the plan."""

    data: str
    modality: str
    labels: dict[str, int | list[int]]
    train: int
    test: int
    configuration: str = "3d_fullres"
    planner: str = "ExperimentPlanner"
    plans: str = "nnUNetPlans"
    regions: tuple[int, ...] = ()
    change: Change | None = None


def ignore_an_end(image: sitk.Image, is_label: bool) -> sitk.Image:
    """Return a label whose last five slices are to be ignored, value 3."""
    if is_label:
        values = sitk.GetArrayFromImage(image)
        values[-5:] = 3
        image = _like(values, image)
    return image


def every_fourth_slice(image: sitk.Image, is_label: bool) -> sitk.Image:
    """Return the image with slices of 4 mm."""
    return image[:, :, ::4]


def membranes(image: sitk.Image, is_label: bool) -> sitk.Image:
    """Return the label with 1 for membranes instead of 0, and 0 for cells instead of 255."""
    return _like((sitk.GetArrayFromImage(image) == 0).astype(np.uint8), image) if is_label else image


def _like(values: np.ndarray, image: sitk.Image) -> sitk.Image:
    changed = sitk.GetImageFromArray(values)
    changed.CopyInformation(image)
    return changed


HIPPOCAMPUS: dict[str, int | list[int]] = {"background": 0, "anterior": 1, "posterior": 2}
REGIONS: dict[str, int | list[int]] = {"background": 0, "hippocampus": [1, 2], "posterior": [2], "ignore": 3}
RESENC: dict[str, Any] = {"planner": "nnUNetPlannerResEncM", "plans": "nnUNetResEncUNetMPlans"}
MODELS = {
    "hippocampus": Model("Task04_Hippocampus", "MR", HIPPOCAMPUS, 60, 20),
    "hippocampus, ResEnc M": Model("Task04_Hippocampus", "MR", HIPPOCAMPUS, 60, 20, **RESENC),
    "hippocampus, regions and ignored voxels": Model(
        "Task04_Hippocampus", "MR", REGIONS, 60, 20, regions=(1, 2), change=ignore_an_end
    ),
    "hippocampus, slices of 4 mm": Model("Task04_Hippocampus", "MR", HIPPOCAMPUS, 60, 20, change=every_fourth_slice),
    "EM, 2d": Model("ISBI2012_EM", "EM", {"background": 0, "membrane": 1}, 16, 4, configuration="2d", change=membranes),
}


def write_raw(model: Model, source: Path, raw: Path, tests: Path) -> None:
    """Write nnU-Net's raw folder, and the images and labels of the cases that training does not see."""
    ending = ENDINGS[model.modality]
    files = sorted((source / "imagesTr").iterdir())[: model.train + model.test]
    for number, file in enumerate(files):
        unseen = number >= model.train
        name = file.name.removesuffix(ending)
        for kind, channel in (("images", "_0000"), ("labels", "")):
            folder = tests / kind if unseen else raw / f"{kind}Tr"
            folder.mkdir(parents=True, exist_ok=True)
            image = sitk.ReadImage(str(source / f"{kind}Tr" / file.name))
            if model.change is not None:
                image = model.change(image, kind == "labels")
            sitk.WriteImage(image, str(folder / f"{name}{channel}{ending}"))
    document = {
        "channel_names": {"0": model.modality},
        "labels": model.labels,
        "numTraining": model.train,
        "file_ending": ending,
    }
    if model.regions:
        document["regions_class_order"] = list(model.regions)
    (raw / "dataset.json").write_text(json.dumps(document))


def train(model: Model, number: int, source: Path, work: Path, *, programs: Path) -> Path:
    """Plan, preprocess and train with nnU-Net; return its folder of the trained model."""
    folders = {f"nnUNet_{name}": work / name for name in ("raw", "preprocessed", "results")}
    dataset = f"Dataset{number:03d}_bench"
    trained = folders["nnUNet_results"] / dataset / f"{TRAINER}__{model.plans}__{model.configuration}"
    if (trained / "fold_0" / "checkpoint_final.pth").is_file():
        return trained
    write_raw(model, source, folders["nnUNet_raw"] / dataset, work / "tests")
    one = dict.fromkeys(("nnUNet_def_n_proc", "nnUNet_n_proc_DA"), "1")
    environment = {**os.environ, **one, "nnUNet_compile": "f", "OMP_WAIT_POLICY": "PASSIVE"}
    environment["nnUNet_extTrainer"] = str(Path(__file__).parent / "nnunet_trainer")
    environment |= {name: str(folder) for name, folder in folders.items()}
    environment.pop("PYTHONPATH", None)

    def run(program: str, *words: str) -> None:
        subprocess.run([str(programs / program), *words], check=True, env=environment)

    run("nnUNetv2_extract_fingerprint", "-d", str(number), "-np", "1", "--verify_dataset_integrity")
    run("nnUNetv2_plan_experiment", "-d", str(number), "-pl", model.planner)
    file = folders["nnUNet_preprocessed"] / dataset / f"{model.plans}.json"
    plans = json.loads(file.read_text())
    planned = plans["configurations"][model.configuration]
    planned["batch_size"] = 2
    arguments = planned["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [count // 4 for count in arguments["features_per_stage"]]
    file.write_text(json.dumps(plans))
    run("nnUNetv2_preprocess", "-d", str(number), "-c", model.configuration, "-np", "1", "-plans_name", model.plans)
    run("nnUNetv2_train", str(number), model.configuration, "0", "-tr", TRAINER, "-p", model.plans, "-device", "cpu")
    return trained


def main() -> None:
    """Train and compare what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--nnunet-bin", type=Path, default=Path(sys.executable).parent)
    parser.add_argument("--only", nargs="+", default=list(MODELS), choices=MODELS)
    given = parser.parse_args()
    file = RESULTS / "nnunet_models.json"
    for number, (name, model) in enumerate(MODELS.items(), start=1):
        if name not in given.only:
            continue
        work = given.work.resolve() / f"model_{number}"
        trained = train(model, number, given.data / model.data, work, programs=given.nnunet_bin)
        for mirror in (False, True):
            output = work / f"compared_{mirror}.json"
            words = [trained, work / "tests" / "images", "--labels", work / "tests" / "labels", "--folds", "0"]
            words += ["--work", work / "compare", "--nnunet-bin", given.nnunet_bin]
            words += ["--output", output, *(["--mirror"] if mirror else [])]
            command = [sys.executable, "-m", "scripts.bench.nnunet_import", *map(str, words)]
            subprocess.run(command, check=True)
            document = read_json(file)
            row = name + (", mirrored" if mirror else "")
            document.setdefault("models", {})[row] = json.loads(output.read_text())
            write_json(file, {**document, "machine": machine()})
    rows = []
    for name, one in read_json(file)["models"].items():
        theirs, ours = one["results"]["nnUNetv2_predict"], one["results"]["medunet predict"]
        dice = ", ".join(f"{one['dice'][key]:.4f}" for key in ("nnunet", "medunet"))
        cpu = f"{theirs['CPU seconds']:.1f}, {ours['CPU seconds']:.1f}"
        memory = f"{theirs['peak MB']:.0f}, {ours['peak MB']:.0f}"
        rows.append([name, str(one["cases"]), f"{one['different']} of {one['voxels']}", dice, cpu, memory])
    columns = ("model", "cases", "voxels that differ", "Dice", "CPU seconds", "peak MB")
    print(table(list(columns), rows))
    print(describe(machine()))


if __name__ == "__main__":
    main()
