"""Hippocampus with a few annotated slices per training volume beside full labels, after the same number of steps.

    python -m scripts.bench.sparse --data DATA/Task04_Hippocampus [--steps 600] [--slices 3] [--layouts spread inside]

Layouts of the slices: `spread` has axial slices at random heights of the whole image, one in each part of equal height;
`inside` has axial slices evenly spaced within the extent of the structures; `directions` has slices through the
structures at random places, perpendicular to each axis in turn. All other voxels are `ignore`. Fold 0 of the sorted
names is held out and evaluated with full labels. The network is narrow, so that a run takes minutes on one core.
Results go to scripts/results/sparse.json and are printed as a table.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medunet.bundle import plan_bundle
from medunet.config import read_json
from medunet.datasets import SegmentationDataset, open_dataset
from medunet.runs import evaluate_bundle, train_bundle

from .measure import RESULTS, describe, fold_by_name, machine, table, write_json

NARROW: dict[str, Any] = {
    "network_def::channels": [8, 16, 32, 64],
    "patch_size": [32, 48, 32],
    "batch_size": 2,
    "steps_per_epoch": 40,
}
IGNORE = 3
AXIS = 2  # of parallel slices
LAYOUTS = ("spread", "inside", "directions")


def annotated(label: np.ndarray, slices: int, *, layout: str, seed: int) -> np.ndarray:
    """Return which voxels of a label are annotated."""
    known, random = np.zeros(label.shape, bool), np.random.default_rng(seed)
    for number in range(slices):
        axis, share = AXIS, (number + 0.5) / slices
        if layout == "spread":
            known[..., int((number + random.uniform()) / slices * label.shape[AXIS])] = True
            continue
        if layout == "directions":
            axis, share = number % 3, random.uniform(0.2, 0.8)
        found = np.flatnonzero(label.any(axis=tuple({0, 1, 2} - {axis})))
        np.moveaxis(known, axis, 0)[round(found[0] + share * (found[-1] - found[0]))] = True
    return known


def sparse_copy(dataset: SegmentationDataset, folder: Path, slices: int, held_out: list[str], layout: str) -> Path:
    """Write a data set whose training labels have only some slices, and return its folder."""
    manifest = read_json(dataset.root / "dataset.json")
    manifest["labels"] = {**manifest["labels"], str(IGNORE): "ignore"}
    (folder / "labelsTr").mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(manifest))
    if not (folder / "imagesTr").exists():
        (folder / "imagesTr").symlink_to((dataset.root / "imagesTr").resolve())
    for seed, case in enumerate(dataset.cases):
        assert case.label is not None
        image = nib.load(case.label)
        label = np.asanyarray(image.dataobj).astype(np.uint8)
        if case.name not in held_out:
            label[~annotated(label, slices, layout=layout, seed=seed)] = IGNORE
        nib.save(nib.Nifti1Image(label, image.affine), folder / "labelsTr" / case.label.name)
    return folder


def dice(data: Path, work: Path, *, steps: int, held_out: list[str]) -> dict[str, float]:
    """Plan, train and evaluate the held-out cases; return the Dice of each class and their mean."""
    plan_bundle(data, work / "bundle", measure=False)
    epochs = steps // NARROW["steps_per_epoch"]
    changes = {**NARROW, "validation_cases": held_out, "epochs": epochs, "val_interval": epochs, "tracking_uri": ""}
    run = train_bundle(work / "bundle", data, work / "run", changes=changes).run
    summary = evaluate_bundle(run, data, section="validation")
    classes = {name: entry["scores"]["dice"]["mean"] for name, entry in summary["classes"].items()}
    return {**classes, "mean": summary["mean_dice"]}


def main() -> None:
    """Measure both, write the results and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("bench_sparse"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--slices", type=int, default=3)
    parser.add_argument("--layouts", nargs="*", choices=LAYOUTS, default=LAYOUTS)
    options = parser.parse_args()
    dataset = open_dataset(options.data)
    held_out = [case.name for case in fold_by_name(dataset.cases)[1]]
    folders = {"full labels": options.data}
    for layout in options.layouts:
        folder = options.work / layout / "data"
        folders[f"{options.slices} slices, {layout}"] = sparse_copy(dataset, folder, options.slices, held_out, layout)
    rows = {}
    for name, data in folders.items():
        rows[name] = dice(data, options.work / name.split()[-1], steps=options.steps, held_out=held_out)
        print(name, rows[name], flush=True)
    where = machine()
    write_json(RESULTS / "sparse.json", {"steps": options.steps, "dice": rows, "machine": where})
    head = ("labels", *next(iter(rows.values())))
    print(table(head, [(name, *(f"{value:.3f}" for value in row.values())) for name, row in rows.items()]))
    print(describe(where))


if __name__ == "__main__":
    main()
