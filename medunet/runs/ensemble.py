"""Trained folds as one bundle: the mean of their probabilities, and the cleaning that cross-validation found to pay."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medunet.bundle.check import check_config
from medunet.bundle.read import WORKFLOWS
from medunet.bundle.render import write_bundle
from medunet.config import read_json, to_json
from medunet.errors import ConfigError
from medunet.files import atomic_path
from medunet.metrics.tables import json_text
from medunet.prediction import ClassRule, as_step
from medunet.resources import bundle_texts
from medunet.runtime import SAFE_SUFFIX
from medunet.training import BEST_NAME
from medunet.trust import adopt, forget_weights, record_weights

ENSEMBLE_FOLDS = "ensemble_folds"
"""Config id by which a bundle is an ensemble of folds."""

DECISION_NAME = "docs/cross_validation.json"
"""What was decided, with its numbers."""


def write_ensemble(
    output: Path, runs: Mapping[int, Path], *, rules: Sequence[ClassRule], decision: Mapping[str, Any]
) -> None:
    """Write a bundle whose network is the ensemble of the folds; an earlier one is replaced.

    `train.json` says how the first fold was trained. `evaluate.json` and `inference.json` load ``models/fold_K.pt``.

    Args:
        output: folder of the bundle.
        runs: trained runs by fold.
        rules: which classes are cleaned; those that are not kept are only written down.
        decision: numbers for :data:`DECISION_NAME`.

    Raises:
        ConfigError: the runs' configs are too old for a step after the network.
    """
    first = next(iter(runs.values()))
    configs = {name: read_json(first / "configs" / f"{name}.json") for name in WORKFLOWS}
    for name in ("evaluate", "inference"):
        configs[name] = _with_rules(_with_members(configs[name], list(runs)), rules, source=first)
    for name, config in configs.items():
        check_config(config, source=f"{name}.json")
    files = {f"configs/{name}.json": to_json(config) for name, config in configs.items()}
    metadata = read_json(first / "configs" / "metadata.json")
    metadata.pop("weights", None)
    files["configs/metadata.json"] = to_json(metadata)
    files = {**bundle_texts(first), **files}
    files["docs/README.md"] += _section(list(runs), rules, decision)
    files[DECISION_NAME] = json_text(decision)

    models = output / "models"
    forget_weights(output)
    kept = set()
    for fold, run in runs.items():
        source, target = run / "models" / BEST_NAME, models / _weights_name(fold)
        for suffix in (source.suffix, SAFE_SUFFIX):
            if source.with_suffix(suffix).is_file():
                kept.add(target.with_suffix(suffix))
                with atomic_path(target.with_suffix(suffix)) as temporary:
                    shutil.copyfile(source.with_suffix(suffix), temporary)
    write_bundle(files, output)
    for path in set(models.glob("fold_*")) - kept:
        path.unlink()
    record_weights(output, to_text=to_json)
    adopt(output)


def _weights_name(fold: int) -> str:
    return f"fold_{fold}.pt"


def _with_members(config: dict[str, Any], folds: list[int]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key == "network_def":
            changed[ENSEMBLE_FOLDS] = folds
            changed["member_def"] = value
            value = {  # noqa: PLW2901 (the place in the order of keys is kept)
                "_target_": "medunet.runtime.ensemble_of",
                "member": "@member_def",
                "count": f"$len(@{ENSEMBLE_FOLDS})",
                **({"activation": "@activation"} if "activation" in config else {}),
            }
        elif key == "ckpt_path":
            value = [f"$@ckpt_dir + '/{_weights_name(fold)}'" for fold in folds]  # noqa: PLW2901
        changed[key] = value
    return changed


def _with_rules(config: dict[str, Any], rules: Sequence[ClassRule], *, source: Path) -> dict[str, Any]:
    if not any(rule.is_kept for rule in rules):
        return config
    if "postprocess_steps" not in config:
        raise ConfigError(
            "the bundle has no id postprocess_steps", file=source, remedy="render it again by this medunet, then train"
        )
    step: dict[str, Any] = {"_target_": "medunet.transforms.CleanComponentsd", "keys": "pred"}
    if config.get("region_names"):
        step["_target_"] = "medunet.transforms.CleanRegionsd"
        step |= {"regions": "@region_indices", "order": "@region_order"}
    step |= as_step(rules, classes=len(config.get("region_names") or config["label_values"]))
    return {
        **config,
        "post": {**config["post"], "components": step},
        "postprocess_steps": [*config["postprocess_steps"], "@post#components"],
    }


def _section(folds: list[int], rules: Sequence[ClassRule], decision: Mapping[str, Any]) -> str:
    lines = [
        "\n## Cross-validation\n",
        f"The network is an ensemble: the mean of the probabilities of the folds {', '.join(map(str, folds))}. The",
        f"{decision['cases']} cases were each predicted by the fold that had not seen it; Dice is their mean.",
        f"All numbers: `{DECISION_NAME}`.\n",
        "| class | Dice | rule tried | Dice with it | cases better, worse | used |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for rule in rules:
        tried = ["largest component only"] if rule.keep_largest else []
        tried += [f"no component below {rule.min_size:g} mm³ (2D: mm²)"] if rule.min_size else []
        cells = [rule.name, f"{rule.dice_before:.4f}", ", ".join(tried) or "none helps", f"{rule.dice_after:.4f}"]
        cells += [f"{rule.better}, {rule.worse}", "yes" if rule.is_kept else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
