"""Patches per second of medunet's data path and of a plain MONAI pipeline with the same augmentation probabilities.

    python -m scripts.bench.data [--data DATA] [--rounds 5] [--patches 20] [--threads 1] [--tasks hippocampus ct]

The pipelines take turns in one process, so that a busy machine slows all of them; the result is the median over the
rounds. `threads` are PyTorch's: a worker of a data loader has 1. medunet's pipeline is that of the bundle `unet_3d`,
except for the size of the patch. MONAI's has two forms: plain, and tuned, with precomputed foreground indices and the
elastic deformation in one resampling. Results: a table and results/data.json.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import monai.transforms as mt
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset
from monai.transforms import Compose

from medunet.bundle import find_bundle
from medunet.datasets import StoreDataset, datalist
from medunet.io import read_header, read_label

from .measure import RESULTS, ROOT, machine, read_json, write_json

DATA = Path(os.environ.get("MEDUNET_TEST_DATA") or ROOT.parent / "shared" / "data")
KEYS = ["image", "label"]
GOAL = 20.0  # times the patches per second of the plain MONAI pipeline

PATCHES = {"hippocampus": (40, 56, 40), "ct": (96, 96, 96)}
OURS, PLAIN, TUNED = "medunet", "MONAI, plain", "MONAI, indices found before, one resampling"


def parse(task: str, data: Path, cases: int) -> tuple[ConfigParser, list[Any]]:
    """Return the bundle's training config for a task, and the items."""
    parser = ConfigParser()
    parser.read_config(str(find_bundle("unet_3d") / "configs" / "train.json"))
    # patch by patch, as MONAI's pipelines change intensities; medunet's training runs do it batch by batch
    parser.update({"device": torch.device("cpu"), "patch_size": list(PATCHES[task]), "batch_intensity": False})
    if task == "hippocampus":
        return parser, datalist(data / "Task04_Hippocampus", section="training")[:cases]
    folder = data / "CT_Lung1_001"
    files = {"image": str(folder / "ct.nii.gz"), "label": str(folder / "labels.nii.gz")}
    values = np.unique(read_label(files["label"], reference=files["image"]).image.numpy()).astype(int).tolist()
    spacing = [float(value) for value in read_header(files["image"]).geometry.spacing_mm]
    parser.update({"label_values": values, "label_names": [str(value) for value in values], "spacing_mm": spacing})
    return parser, [{**files, "name": "ct"}]


def monai_steps(deform: dict[str, Any], size: Sequence[int], *, tuned: bool) -> list[Any]:
    """Return MONAI's own transforms with the parameters of `RandDeformd`."""
    common = {"mode": deform["mode"], "padding_mode": deform["padding_mode"]}
    smallest, largest = deform["scale_range"]
    affine = {"rotate_range": deform["rotate_range"], "scale_range": [(1 / largest - 1, 1 / smallest - 1)] * 3}
    elastic = {"sigma_range": (5, 7), "magnitude_range": (50, 150), "spatial_size": size}
    share = deform["foreground_prob"]
    crop = {
        "label_key": "label",
        "spatial_size": size,
        "pos": share,
        "neg": 1 - share,
        "num_samples": 1,
        "allow_smaller": True,
    }
    steps: list[Any] = []
    if tuned:
        steps.append(mt.FgBgToIndicesd("label"))
        crop |= {"fg_indices_key": "label_fg_indices", "bg_indices_key": "label_bg_indices"}
    steps.append(mt.RandCropByPosNegLabeld(KEYS, **crop))
    if tuned:
        steps.append(mt.DeleteItemsd(["label_fg_indices", "label_bg_indices"]))
        both, only = deform["prob"] * deform["elastic_prob"], deform["prob"] * (1 - deform["elastic_prob"])
        steps.append(mt.Rand3DElasticd(KEYS, prob=both, **elastic, **affine, **common))
        # conditional on no deformation before, so that as many patches are rotated
        steps.append(mt.RandAffined(KEYS, prob=only / (1 - both), spatial_size=size, **affine, **common))
    else:
        steps.append(mt.RandAffined(KEYS, prob=deform["prob"], spatial_size=size, **affine, **common))
        elastic_prob = deform["prob"] * deform["elastic_prob"]
        steps.append(mt.Rand3DElasticd(KEYS, prob=elastic_prob, **elastic, **common))
    steps.append(mt.ResizeWithPadOrCropd(KEYS, size))
    return steps


def monai_chain(parser: ConfigParser, size: Sequence[int], *, tuned: bool) -> Compose:
    """Return the pipeline from files to patches with MONAI's transforms alone, except for reading."""
    fixed = parser.get_parsed_content("steps")
    steps = [fixed["load"], fixed["load_label"], fixed["encode"], *parser.get_parsed_content("image_steps")]
    augment = parser["augment"]
    deform = {**augment["deform"], "mode": parser["patch_modes"]}
    intensity = [
        mt.RandScaleIntensityd("image", factors=augment["brightness"]["factors"], prob=augment["brightness"]["prob"]),
        mt.RandShiftIntensityd("image", offsets=augment["shift"]["offsets"], prob=augment["shift"]["prob"]),
        mt.RandGaussianNoised("image", std=augment["noise"]["std"][1], prob=augment["noise"]["prob"]),
        mt.EnsureTyped(KEYS, track_meta=False),
    ]
    return Compose([*steps, *monai_steps(deform, size, tuned=tuned), *intensity])


def pipelines(task: str, data: Path, cases: int, store: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return prepared data sets by name, and the costs of preparing them."""
    parser, items = parse(task, data, cases)
    ready: dict[str, Any] = {}
    facts: dict[str, Any] = {"cases": len(items), "patch": list(PATCHES[task])}

    def make(name: str, build: Callable[[], Any]) -> None:
        begun = time.perf_counter()
        ready[name] = build()
        facts.setdefault("prepare_seconds", {})[name] = round(time.perf_counter() - begun, 2)
        facts.setdefault("peak_resident_mib_after", {})[name] = (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        )

    def ours() -> StoreDataset:
        dataset = StoreDataset(items, parser.get_parsed_content("train#preprocessing"), store_dir=store)
        dataset.prepare()
        return dataset

    def theirs(tuned: bool) -> CacheDataset:
        return CacheDataset(items, monai_chain(parser, PATCHES[task], tuned=tuned), progress=False, num_workers=2)

    make(OURS, ours)
    make(f"{OURS}, from the store of an earlier run", ours)
    make(PLAIN, lambda: theirs(False))
    make(TUNED, lambda: theirs(True))
    ready.pop(f"{OURS}, from the store of an earlier run")
    return ready, facts


def measure(ready: dict[str, Any], rounds: int, patches: int) -> dict[str, list[float]]:
    """Return patches per second of each pipeline and round; the first round is a warm-up."""
    rates: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(rounds + 1):
        for name, dataset in ready.items():
            dataset.transform.set_random_state(turn)
            count = patches if name != OURS else 4 * patches
            begun = time.perf_counter()
            for index in range(count):
                dataset[index % len(dataset)]
            if turn:
                rates[name].append(count / (time.perf_counter() - begun))
    return rates


def print_table(task: str, result: dict[str, Any]) -> None:
    rates = result["patches_per_second"]
    print(f"\n{task}: patches of {'x'.join(map(str, result['patch']))} from {result['cases']} case(s)")
    for name, rate in rates.items():
        prepared = result["prepare_seconds"][name]
        ratio = rates[OURS] / rate
        print(f"  {name:<46} {rate:8.1f} per second  medunet: {ratio:5.1f} times  prepared in {prepared:.1f} s")
    print(f"  goal against plain MONAI: {GOAL:g} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--tasks", nargs="+", choices=list(PATCHES), default=list(PATCHES))
    parser.add_argument("--cases", type=int, default=20, help="of the hippocampus")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--patches", type=int, default=20, help="per round of MONAI's; medunet makes four times as many"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "data.json")
    options = parser.parse_args()
    logging.getLogger("monai").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    document = read_json(options.output)
    for task in options.tasks:
        with tempfile.TemporaryDirectory() as store:
            ready, facts = pipelines(task, options.data, options.cases, Path(store))
            found = measure(ready, options.rounds, options.patches)
        rates = {name: round(statistics.median(values), 2) for name, values in found.items()}
        spread = {name: [round(min(values), 2), round(max(values), 2)] for name, values in found.items()}
        ratio = round(rates[OURS] / rates[PLAIN], 1)
        document[task] = {
            **facts,
            "patches_per_second": rates,
            "slowest_and_fastest_round": spread,
            "times_plain_monai": ratio,
            "machine": machine("monai"),
        }
        print_table(task, document[task])
    write_json(options.output, document)


if __name__ == "__main__":
    main()
