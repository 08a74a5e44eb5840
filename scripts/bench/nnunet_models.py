"""Train six models with nnU-Net v2 itself, for some minutes each, and compare its predictions with those of medunet.

    python -m scripts.bench.nnunet_models --data DATA --work FOLDER --nnunet-bin BIN [--only NAME ...]

DATA has `Task04_Hippocampus`, `ISBI2012_EM` and `STS_GTV_CT`; BIN has the programs of nnU-Net 2.8, which may be in
another environment. nnU-Net makes fingerprint and plan; of the plan, only the channels (a quarter) and the size of a
batch (2) change, so that a step takes a few seconds at the most on a CPU. Then nnU-Net trains fold 0 for 300 steps with
AdamW, and `scripts.bench.nnunet_import` compares both programs on cases that training had not seen, without and with
mirroring. The last row is the model of sarcomas with 14 classes, whose last layer is random, on a volume of
512 x 512 x 300.
Results go to scripts/results/nnunet_models.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from .measure import RESULTS, describe, machine, read_json, table, write_json

Change = Callable[[sitk.Image, bool], sitk.Image]
TRAINER = "nnUNetTrainerShort"
CLASSES, LARGE = 14, (512, 512, 300)
ENDINGS = {"MR": ".nii.gz", "CT": ".nii.gz", "EM": ".png"}


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


def every_second_pixel(image: sitk.Image, is_label: bool) -> sitk.Image:
    """Return the image with every second pixel of a slice along both axes."""
    return image[::2, ::2, :]


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
    "EM, 2d": Model(
        "ISBI2012_EM", "EM", {"background": 0, "membrane": 1}, 10, 10, configuration="2d", change=membranes
    ),
    "sarcoma CT, every second pixel": Model(
        "STS_GTV_CT", "CT", {"background": 0, "sarcoma": 1}, 10, 4, change=every_second_pixel
    ),
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


def with_many_classes(trained: Path, folder: Path) -> Path:
    """Return a copy of a trained model whose last layers have `CLASSES` channels with random weights."""
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    file = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    generator = torch.Generator().manual_seed(0)
    for name, values in checkpoint["network_weights"].items():
        if ".seg_layers." in name:
            shape = (CLASSES, *values.shape[1:])
            checkpoint["network_weights"][name] = torch.randn(shape, generator=generator)
    torch.save(checkpoint, file)
    document = json.loads((folder / "dataset.json").read_text())
    document["labels"] = {"background": 0, **{f"class {value}": value for value in range(1, CLASSES)}}
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def write_large(source: Path, folder: Path) -> None:
    """Write a volume of `LARGE` voxels, 0.8 x 0.8 x 1 mm each, from a smaller one."""
    folder.mkdir(exist_ok=True)
    image = sitk.ReadImage(str(source))
    spacing = (0.8, 0.8, 1.0)
    image.SetSpacing([mm * n / old for mm, n, old in zip(spacing, LARGE, image.GetSize(), strict=True)])
    grid = sitk.Image(LARGE, image.GetPixelID())
    grid.SetOrigin(image.GetOrigin())
    grid.SetDirection(image.GetDirection())
    grid.SetSpacing(spacing)
    values = sitk.Resample(
        image, grid, sitk.Transform(), sitk.sitkLinear, float(np.min(sitk.GetArrayViewFromImage(image)))
    )
    sitk.WriteImage(values, str(folder / "large_0000.nii.gz"))


def compare(trained: Path, images: Path, output: Path, *, bin_folder: Path, labels: Path | None, mirror: bool) -> Any:
    """Compare both programs; return the document of `scripts.bench.nnunet_import`."""
    words = [trained, images, "--folds", "0", "--work", output.parent / "compare", "--nnunet-bin", bin_folder]
    words += ["--output", output, *(["--mirror"] if mirror else []), *(["--labels", labels] if labels else [])]
    subprocess.run([sys.executable, "-m", "scripts.bench.nnunet_import", *map(str, words)], check=True)
    return json.loads(output.read_text())


def main() -> None:
    """Train and compare what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--nnunet-bin", type=Path, default=Path(sys.executable).parent)
    parser.add_argument("--only", nargs="+", default=list(MODELS), choices=MODELS)
    given = parser.parse_args()
    file = RESULTS / "nnunet_models.json"

    def keep(row: str, result: Any) -> None:
        document = read_json(file)
        document.setdefault("models", {})[row] = result
        write_json(file, {**document, "machine": machine()})

    for number, (name, model) in enumerate(MODELS.items(), start=1):
        if name not in given.only:
            continue
        work = given.work.resolve() / f"model_{number}"
        trained = train(model, number, given.data / model.data, work, programs=given.nnunet_bin)
        images, labels = work / "tests" / "images", work / "tests" / "labels"
        for mirror in (False, True):
            output = work / f"compared_{mirror}.json"
            result = compare(trained, images, output, bin_folder=given.nnunet_bin, labels=labels, mirror=mirror)
            keep(name + (", mirrored" if mirror else ""), result)
        if model.modality == "CT":
            many = with_many_classes(trained, work / "many")
            write_large(min(images.iterdir()), work / "large")
            output = work / "compared_large.json"
            result = compare(many, work / "large", output, bin_folder=given.nnunet_bin, labels=None, mirror=False)
            keep(f"{CLASSES} classes, {' x '.join(map(str, LARGE))}", result)
    rows = []
    for name, one in read_json(file)["models"].items():
        commands = ("nnUNetv2_predict", "medunet predict", "medunet default predict")
        dice = ", ".join(f"{value:.4f}" for value in one.get("dice", {}).values())
        both = [(one["results"][command], one["results"].get(f"{command}, first image")) for command in commands]
        cpu = [(all_of["CPU seconds"], first and first["CPU seconds"]) for all_of, first in both]
        each = ", ".join(f"{(all_of - first) / (one['cases'] - 1):.2f}" for all_of, first in cpu if first)
        whole = ", ".join(f"{all_of:.1f}" for all_of, _ in cpu)
        memory = ", ".join(f"{all_of['peak MB']:.0f}" for all_of, _ in both)
        differ = f"{one['different']} of {one['voxels']}"
        rows.append([name, str(one["cases"]), differ, dice, whole, each, memory])
    print("Of nnU-Net, of medunet in float32, of medunet in its default format:")
    columns = ("model", "cases", "voxels that differ", "Dice", "CPU seconds", "of each further image", "peak MB")
    print(table(list(columns), rows))
    print(describe(machine()))


if __name__ == "__main__":
    main()
