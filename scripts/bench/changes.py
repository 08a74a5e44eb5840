"""What single changes of a training run gain: pairs with the same seeds and the same number of steps.

    python -m scripts.bench.changes DATA --steps 600 --change residual network_def::block=residual

Each --change has a name and one or more ID=VALUE as in `medunet train --set`. With first::ID=VALUE, the first half of
the steps is a run of its own with these values, from whose weights the second half begins. The first row is the plan
of DATA with the values of --set. Fold 0 of the sorted names is held out. The score is the mean Dice, or mean AP for
numbered objects, after the last epoch; --em adds V_rand at the best threshold. CPU seconds are those of the training
process. A complete run is written to scripts/results/changes_NAME.json and is not repeated; delete that file to begin
anew.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from medunet.bundle import plan_bundle
from medunet.config import parse_settings
from medunet.datasets import open_dataset
from medunet.io import read_volume
from medunet.metrics import best_em_scores
from medunet.prediction import Predictor
from medunet.runs import evaluate_bundle, train_bundle

from .measure import RESULTS, describe, fold_by_name, machine, read_json, table, write_json

PER_EPOCH = 40
FIRST = "first::"  # before ids that apply to the first half of the steps


def train(bundle: Path, data: Path, work: Path, *, changes: dict[str, Any], em: bool) -> dict[str, float]:
    """Train once and evaluate the held-out cases; return scores and CPU seconds."""
    shutil.rmtree(work, ignore_errors=True)
    first = {id_.removeprefix(FIRST): value for id_, value in changes.items() if id_.startswith(FIRST)}
    changes = {id_: value for id_, value in changes.items() if not id_.startswith(FIRST)}
    begin = time.process_time()
    if first:
        changes |= {"epochs": changes["epochs"] // 2, "val_interval": changes["epochs"] // 2}
        changes["init_from"] = str(train_bundle(bundle, data, work / "first", changes=changes | first).run.resolve())
    run = train_bundle(bundle, data, work / "run", changes=changes).run
    seconds = time.process_time() - begin
    summary = evaluate_bundle(run, data, section="validation")
    scores = [entry["scores"] for entry in summary["classes"].values()]
    found = {"score": statistics.mean(one.get("mean_ap", one["dice"])["mean"] for one in scores)}
    if em:
        found["v_rand"] = v_rand(run, data, changes["validation_cases"])
    shutil.rmtree(work)
    return {**found, "seconds": seconds}


def v_rand(run: Path, data: Path, names: list[str]) -> float:
    """Return the mean V_rand of slices at the best threshold of the probability of the interior."""
    cases = [case for case in open_dataset(data).cases if case.name in names]
    predictor = Predictor(run, output_dir=run / "maps", probabilities=True)
    for case in cases:
        predictor.predict_case(case.images)
    maps = [np.load(run / "maps" / f"{case.name}_prob.npy")[1] for case in cases]
    return best_em_scores(maps, [np.asarray(read_volume(case.label).image[0]) > 0 for case in cases]).v_rand


def rows(runs: dict[str, dict[str, float]], names: list[str], seeds: int) -> list[tuple[str, ...]]:
    """Return the table's rows: mean score, mean and range of the differences to the first name, CPU seconds."""
    found: list[tuple[str, ...]] = []
    for name in names:
        own = [runs[f"{name}, seed {seed}"] for seed in range(seeds)]
        gains = [run["score"] - runs[f"{names[0]}, seed {seed}"]["score"] for seed, run in enumerate(own)]
        gain = f"{statistics.mean(gains):+.4f} ({min(gains):+.4f} to {max(gains):+.4f})"
        mean = {key: statistics.mean(run[key] for run in own) for key in own[0]}
        more = [f"{mean['v_rand']:.3f}"] if "v_rand" in mean else []
        found.append((name, f"{mean['score']:.4f}", gain if name != names[0] else "", *more, f"{mean['seconds']:.0f}"))
    return found


def main() -> None:
    """Train all pairs and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], dest="common", metavar="ID=VALUE")
    parser.add_argument("--change", nargs="+", action="append", default=[], metavar="NAME ID=VALUE")
    parser.add_argument("--em", action="store_true", help="slices of cells and membranes: add V_rand")
    parser.add_argument("--instances", action="store_true", help="the labels number objects")
    parser.add_argument("--name", help="of the results; default: the folder of the data")
    parser.add_argument("--work", type=Path, default=Path("bench_changes"))
    options = parser.parse_args()
    name = options.name or options.data.name
    path, work = RESULTS / f"changes_{name}.json", options.work / name
    epochs = options.steps // PER_EPOCH
    held_out = [case.name for case in fold_by_name(open_dataset(options.data, instances=options.instances).cases)[1]]
    common = {
        **{"epochs": epochs, "steps_per_epoch": PER_EPOCH, "val_interval": epochs, "validation_cases": held_out},
        **{"keep_epoch": "last", "tracking_uri": "", **parse_settings(options.common)},
    }
    plan_bundle(options.data, work / "bundle", measure=False, force=True, instances=options.instances)
    given = {"steps": options.steps, "set": options.common}
    results = read_json(path) or {"machine": machine(), **given, "runs": {}}
    if given != {key: results[key] for key in given}:
        raise SystemExit(f"{path} has other --steps or --set: {results['steps']}, {results['set']}")
    named: dict[str, dict[str, Any]] = {"as planned": {}} | {
        name: parse_settings(changes) for name, *changes in options.change
    }
    for seed in range(options.seeds):
        for name, change in named.items():
            key = f"{name}, seed {seed}"
            if key not in results["runs"]:
                changes = {**common, **change, "seed": seed}
                run = train(work / "bundle", options.data, work / "run", changes=changes, em=options.em)
                results["runs"][key] = run
                write_json(path, results)
                print(key, run, flush=True)
    head = ("change", "score", "difference", *(["V_rand"] if options.em else []), "CPU s")
    print(table(head, rows(results["runs"], list(named), options.seeds)))
    print(describe(results["machine"]))


if __name__ == "__main__":
    main()
