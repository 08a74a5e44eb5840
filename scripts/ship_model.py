"""Make a trained run one of the models that come with medunet: small weights, no paths, and a card with its figures.

    python scripts/ship_model.py RUN bundles/NAME --facts facts.json --scores metrics.json

`facts.json` has what a run does not know: `name`, `description`, `task`, `data_source`, `copyright` of metadata.json,
`labels` (new names of the classes, by the old name), and `card` (paragraphs on use, data and limits). `metrics.json` is
what `medunet evaluate` wrote for images that were not used in training.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from medunet.bundle import find_bundle
from medunet.config import read_json
from medunet.runtime.weights import load_checkpoint
from medunet.trust import record_weights

SCORES = {"ap_50": "AP at IoU 0.5", "mean_ap": "mean AP, IoU 0.5 to 0.95", "f1": "F1 at IoU 0.5", "aji": "AJI"}
OF_RUN = ("dataset_dir", "training_dir", "store_dir")  # ids with folders of the machine


def to_text(config: Any) -> str:
    """Return JSON as medunet writes it."""
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def ship(run: Path, target: Path, facts: dict[str, Any], scores: dict[str, Any]) -> None:
    """Copy what prediction and fine-tuning need; convolutions are stored as float16."""
    names, card = facts.pop("labels", {}), facts.pop("card")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(run / "configs", target / "configs")
    for folder in ("docs", "models", "eval"):
        (target / folder).mkdir()
    shutil.copy(run / "LICENSE", target)
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
    file = target / "models" / "model.safetensors"
    save_file(half, file)
    file.chmod(0o644)
    record_weights(target, to_text=to_text)
    ((name, classes),) = scores["objects"].items()
    rows = [f"| {title} | {classes['pooled'][key]:.3f} |" for key, title in SCORES.items()]
    about = f"{scores['cases']} images that were not used in training, all objects together ({names.get(name, name)})."
    table = ["| metric | value |", "| --- | --- |", *rows]
    lines = [f"# {facts['name']}", *card, "## Results", about, "\n".join(table)]
    (target / "docs" / "README.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


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
