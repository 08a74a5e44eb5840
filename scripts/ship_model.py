"""Make a trained run one of the models that come with medunet: small weights, no paths, and a card with its figures.

    python scripts/ship_model.py RUN bundles/NAME --facts facts.json --scores metrics.json

`facts.json` has what a run does not know: `name`, `description`, `task`, `data_source`, `copyright` of metadata.json,
`licence` (short name), `labels` (new names of the classes, by the old name), and `card` (paragraphs on use, data and
limits). `metrics.json` is what `medunet evaluate` wrote for images that were not used in training. A run that `medunet
evaluate --calibrate` has calibrated keeps its calibration. The figures also go into `bundles/models.json`, the registry
of trained models.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from medunet.bundle import find_bundle
from medunet.config import read_json
from medunet.files import sha256_of
from medunet.prediction.configuration import CALIBRATION
from medunet.resources import WEIGHTS
from medunet.runs.card import EXPECTED_DICE
from medunet.runtime.weights import load_checkpoint
from medunet.trust import record_weights

CARD = "docs/README.md"
SCORES = {"ap_50": "AP at IoU 0.5", "mean_ap": "mean AP, IoU 0.5 to 0.95", "f1": "F1 at IoU 0.5", "aji": "AJI"}
OF_RUN = ("dataset_dir", "training_dir", "store_dir", "init_from", "tracking_uri")  # ids of the machine


def to_text(config: Any) -> str:
    """Return JSON as medunet writes it."""
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def ship(run: Path, target: Path, facts: dict[str, Any], scores: dict[str, Any]) -> None:
    """Copy what prediction and fine-tuning need; convolutions are stored as float16."""
    names, card, licence = facts.pop("labels", {}), facts.pop("card"), facts.pop("licence")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(run / "configs", target / "configs")
    for folder in ("docs", "models", "eval"):
        (target / folder).mkdir()
    note = f"The weights in models/ have the licence {licence}, see docs/README.md. All other files have this one:\n"
    (target / "LICENSE").write_text(note + (run / "LICENSE").read_text(encoding="utf-8"), encoding="utf-8")
    shutil.copy(run / "docs" / "plan.json", target / "docs")
    shutil.copy(run / "eval" / "trained_on.json", target / "eval")  # so that `evaluate` recognises these images
    dims = read_json(run / "configs" / "train.json")["spatial_dims"]
    for path in [*sorted((target / "configs").glob("*.json")), target / "docs" / "plan.json"]:
        text = path.read_text(encoding="utf-8")
        for old, new in names.items():
            text = text.replace(f'"{old}"', f'"{new}"')
        config = json.loads(text)
        recipe = find_bundle(f"unet_{dims}d") / "configs" / path.name
        if recipe.is_file():
            config |= {id_: value for id_, value in read_json(recipe).items() if id_ in OF_RUN}
        if path.name == "metadata.json":
            config |= facts
        path.write_text(to_text(config), encoding="utf-8")
    weights = load_checkpoint(run / "models" / "model.pt")["model"]
    # the variances of batch norm can be too small for float16
    half = {key: (value.half() if value.ndim > 1 else value).contiguous() for key, value in weights.items()}
    file = target / WEIGHTS
    save_file(half, file)
    file.chmod(0o644)
    record_weights(target, to_text=to_text)
    metrics = figures(scores, names)
    rows = [f"| {title} | {value:.3f} |" for title, value in metrics.items()]
    about = f"{scores['cases']} images that were not used in training"
    about += ", all objects together." if scores.get("objects") else "; mean over the images."
    table = ["| metric | value |", "| --- | --- |", *rows]
    lines = [f"# {facts['name']}", *card, "## Results", about, "\n".join(table)]
    if (run / CALIBRATION).is_file():
        text = (run / CALIBRATION).read_text(encoding="utf-8")
        for old, new in names.items():
            text = text.replace(f'"{old}"', f'"{new}"').replace(f'"{old} ', f'"{new} ')
        (target / CALIBRATION).write_text(text, encoding="utf-8")
        heading = f"## {EXPECTED_DICE}\n\n"
        lines += [heading.strip(), (run / CARD).read_text(encoding="utf-8").partition(heading)[2].strip()]
    (target / CARD).write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    registry = target.parent / "models.json"
    entry = {"version": read_json(target / "configs" / "metadata.json")["version"], "task": facts["task"]}
    entry |= {"licence": licence, "size": file.stat().st_size, "sha256": sha256_of(file)}
    entry |= {"metrics": metrics, "card": CARD}
    registry.write_text(to_text(dict(sorted((read_json(registry) | {target.name: entry}).items()))), encoding="utf-8")


def figures(scores: dict[str, Any], names: dict[str, str]) -> dict[str, float]:
    """Return the figures of the model card by their titles: of objects, or the Dice of each class."""
    if objects := scores.get("objects"):
        ((_, classes),) = objects.items()
        return {title: round(classes["pooled"][key], 3) for key, title in SCORES.items()}
    dice = {name: entry["scores"]["dice"]["mean"] for name, entry in scores["classes"].items()}
    named = {f"Dice {names.get(name, name)}": value for name, value in dice.items()}
    return {key: round(value, 3) for key, value in (named | {"mean Dice": scores["mean_dice"]}).items()}


def main() -> None:
    """Ship the run on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--scores", type=Path, required=True)
    options = parser.parse_args()
    ship(options.run, options.target, read_json(options.facts), read_json(options.scores)["summary"])


if __name__ == "__main__":
    main()
