"""What unlabelled images gain with few labelled ones: pairs with the same labelled cases, seeds and numbers of steps.

    python -m scripts.bench.unlabelled --data DATA/Task04_Hippocampus [--sizes 5 20] [--arms few pre-training]

`few` trains on the labelled cases alone, `twice the steps` for twice as long. `pre-training` starts from a network
that first restored masked blocks of all training images without their labels (masked autoencoding, He 2021; blocks of
8 voxels, 60 % of them masked, squared error where they are), for twice the steps. `self-training` starts again, with
the labelled cases and with the predictions of `few` as labels of the others; `self-training, continued` starts from the
network of `few` with half the learning rate. Fold 0 of the sorted names is held out. The network is narrow, so that a
training takes about a minute on one core. Every row is written to scripts/results/unlabelled.json at once, and is not
measured again; the rows of `few` come first, because the others need them.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser

from medunet.bundle import plan_bundle
from medunet.datasets import open_dataset
from medunet.prediction import Predictor
from medunet.runs import evaluate_bundle, prepare_run, train_bundle
from medunet.runtime import autocast

from .measure import RESULTS, describe, fold_by_name, machine, read_json, table, write_json
from .quality_planned import draw, subset
from .sparse import NARROW

BLOCK, MASKED = 8, 0.6
ARMS = ("few", "twice the steps", "pre-training", "self-training", "self-training, continued")


def masked(images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Return which voxels of a batch are hidden, shape (batch, 1, ...)."""
    shape = [-(-size // BLOCK) for size in images.shape[2:]]
    blocks = torch.from_numpy(random.random((len(images), 1, *shape)) < MASKED)
    for axis, size in enumerate(images.shape[2:], start=2):
        blocks = blocks.repeat_interleave(BLOCK, axis).narrow(axis, 0, size)
    return blocks


def pretrain(bundle: Path, data: Path, folder: Path, *, steps: int, changes: Mapping[str, Any]) -> Path:
    """Train the network of a bundle to restore masked blocks; return a folder to start a training run from."""
    file = folder / "models" / "model.pt"
    if file.is_file():
        return folder
    epochs = steps // NARROW["steps_per_epoch"]
    own = {**changes, "epochs": epochs, "val_interval": epochs, "augment::deform::foreground_prob": 0.0}
    with prepare_run(bundle, data, folder, changes=own) as run:
        parser = ConfigParser({**run.configs["train"], "bundle_root": str(folder), "device": torch.device("cpu")})
    torch.manual_seed(changes["seed"])
    random = np.random.default_rng(changes["seed"])
    ids = ("train::dataloader", "network", "optimizer", "lr_scheduler", "clip_grad_norm")
    loader, network, optimizer, schedule, clip = (parser.get_parsed_content(id_) for id_ in ids)
    network.train()
    done, losses = 0, []
    while done < steps:
        for batch in loader:
            images = batch["image"]
            hidden = masked(images, random)
            with autocast(torch.device("cpu"), "auto"):
                restored = network(images.masked_fill(hidden, 0.0))
            loss = ((restored[:, :1].float() - images)[hidden] ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            done += 1
    print(f"masked voxels: squared error {np.mean(losses[:40]):.3f}, finally {np.mean(losses[-40:]):.3f}")
    # the last convolution, which restores intensities, stays behind
    weights = {name: value for name, value in network.state_dict().items() if not name.startswith("head.")}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights}, file)
    return folder


def measure(arm: str, options: argparse.Namespace, size: int, seed: int) -> dict[str, Any]:
    """Train one row and evaluate the held-out cases."""
    work = options.work / f"{size}_{seed}"
    training, held_out = fold_by_name(open_dataset(options.data).cases)
    labelled = draw(training, size, seed=seed)
    names = {"validation_cases": [case.name for case in held_out], "seed": seed, "tracking_uri": "", **NARROW}
    data = subset(options.data, work / "labelled", [*labelled, *held_out])
    bundle = options.work / "bundle"
    epochs = options.steps // NARROW["steps_per_epoch"] * (2 if arm == "twice the steps" else 1)
    changes = {**names, "epochs": epochs, "val_interval": epochs}
    begin = time.process_time()
    if arm == "pre-training":
        whole = subset(options.data, options.work / "images", [*training, *held_out])
        folder = options.work / f"pretrained_{seed}"
        changes["init_from"] = str(pretrain(bundle, whole, folder, steps=2 * options.steps, changes=names).resolve())
    if arm.startswith("self-training"):
        teacher = Predictor(work / "few", output_dir=work / "predicted", overwrite=True, trust=True)
        others = [case for case in training if case not in labelled]
        predicted = {case: teacher.predict_case(case.images) for case in others}
        data = subset(options.data, work / "self_labelled", [*training, *held_out], predicted)
    if arm == "self-training, continued":
        changes |= {"init_from": str((work / "few").resolve()), "learning_rate": 0.003}
    folder = work / arm.replace(",", "").replace(" ", "_")
    run = train_bundle(bundle, data, folder, changes=changes, presets=["few"], resume=True).run
    seconds = time.process_time() - begin
    summary = evaluate_bundle(run, data, section="validation")
    scores = {name: entry["scores"]["dice"]["mean"] for name, entry in summary["classes"].items()}
    return {"dice": summary["mean_dice"], **scores, "steps": epochs * NARROW["steps_per_epoch"], "cpu_seconds": seconds}


def summary(measured: Mapping[str, Mapping[str, Any]]) -> list[tuple[object, ...]]:
    """Return the table's rows: Dice of each seed, their mean, mean difference to `few` with the same seeds, seconds."""
    rows: list[tuple[object, ...]] = []
    parts = [name.split(", ", 2) for name in measured]
    for size, arm in dict.fromkeys((size, arm) for size, _, arm in parts):
        seeds = [seed for one, seed, other in parts if (one, other) == (size, arm)]
        own = [measured[f"{size}, {seed}, {arm}"] for seed in seeds]
        scores = [row["dice"] for row in own]
        gains = [score - measured[f"{size}, {seed}, few"]["dice"] for seed, score in zip(seeds, scores, strict=True)]
        each, seconds = ", ".join(f"{score:.3f}" for score in scores), mean(row["cpu_seconds"] for row in own)
        rows.append((size, arm, each, f"{mean(scores):.4f}", f"{mean(gains):+.4f}", f"{seconds:.0f}"))
    return rows


def main() -> None:
    """Measure what the results do not hold yet, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("bench_unlabelled"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--results", type=Path, default=RESULTS / "unlabelled.json")
    options = parser.parse_args()
    results = read_json(options.results) or {"machine": machine(), "steps": options.steps, "rows": {}}
    if results["steps"] != options.steps:
        raise SystemExit(f"{options.results} has other --steps: {results['steps']}")
    plan_bundle(options.data, options.work / "bundle", measure=False, force=True)
    for size in options.sizes:
        for seed in range(options.seeds):
            for arm in options.arms:
                name = f"{size} cases, seed {seed}, {arm}"
                if name not in results["rows"]:
                    results["rows"][name] = measure(arm, options, size, seed)
                    write_json(options.results, results)
                    print(name, results["rows"][name], flush=True)
    print(table(("cases", "training", "Dice of each seed", "mean", "difference", "CPU s"), summary(results["rows"])))
    print(describe(results["machine"]))


if __name__ == "__main__":
    main()
