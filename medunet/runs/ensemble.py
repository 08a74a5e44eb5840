"""Trained folds as one bundle: the mean of their probabilities, and the postprocessing that cross-validation chose."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medunet.bundle.check import check_config
from medunet.bundle.render import write_bundle
from medunet.config import read_json, strict_json, to_json
from medunet.files import atomic_path
from medunet.prediction import ClassRule, as_step
from medunet.resources import WORKFLOWS, bundle_texts
from medunet.runs.card import RESULTS, without_section
from medunet.runtime import SAFE_SUFFIX
from medunet.training import BEST_NAME
from medunet.trust import adopt, forget_weights, record_weights

ENSEMBLE_FOLDS = "ensemble_folds"  # config id that only an ensemble of folds has
DECISION_NAME = "docs/cross_validation.json"  # file with the chosen postprocessing and its numbers


def write_ensemble(
    output: Path, runs: Mapping[int, Path], *, rules: Sequence[ClassRule], decision: Mapping[str, Any]
) -> None:
    """Write a bundle whose network is the ensemble of the folds; `train.json` is that of the first fold."""
    first = next(iter(runs.values()))
    configs = {name: read_json(first / "configs" / f"{name}.json") for name in WORKFLOWS}
    for name in ("evaluate", "inference"):
        configs[name] = _with_rules(with_members(configs[name], list(runs)), rules)
    for name, config in configs.items():
        check_config(config, source=f"{name}.json")
    configs["metadata"] = read_json(first / "configs" / "metadata.json")
    configs["metadata"].pop("weights", None)
    files = bundle_texts(first) | {f"configs/{name}.json": to_json(config) for name, config in configs.items()}
    files["docs/README.md"] = without_section(files["docs/README.md"], RESULTS) + _section(list(runs), rules, decision)
    files[DECISION_NAME] = strict_json(decision)

    models = output / "models"
    forget_weights(output)
    written = set()
    for fold, run in runs.items():
        for suffix in (".pt", SAFE_SUFFIX):
            source, target = (run / "models" / BEST_NAME).with_suffix(suffix), models / f"fold_{fold}{suffix}"
            if source.is_file():
                written.add(target)
                with atomic_path(target) as temporary:
                    shutil.copyfile(source, temporary)
    write_bundle(files, output)
    for path in set(models.glob("fold_*")) - written:
        path.unlink()
    record_weights(output, to_text=to_json)
    adopt(output)


def describe_rule(rule: ClassRule) -> str:
    """Return the rule in words; empty if it removes nothing.

    Examples:
        >>> describe_rule(ClassRule("liver", 1, 6, keep_largest=True, min_size=30))
        'largest component only, no component below 30 mm³ (2D: mm²)'
    """
    words = ["largest component only"] if rule.keep_largest else []
    return ", ".join(words + ([f"no component below {rule.min_size:g} mm³ (2D: mm²)"] if rule.min_size else []))


def rule_table(rules: Sequence[ClassRule]) -> list[list[str]]:
    """Return the rules that were tried and their effects, with a header row."""
    rows = [["class", "Dice", "rule tried", "Dice with it", "cases better", "cases worse", "used"]]
    for rule in rules:
        before, after, used = f"{rule.dice_before:.4f}", f"{rule.dice_after:.4f}", "yes" if rule.is_kept else "no"
        rows.append([rule.name, before, describe_rule(rule) or "none", after, str(rule.better), str(rule.worse), used])
    return rows


def with_members(config: dict[str, Any], folds: Sequence[int], activation: str = "@activation") -> dict[str, Any]:
    """Return a config with the ensemble in place of the network, in the same order of keys.

    Probabilities are averaged, or what `activation` names.
    """
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key == "network_def":
            changed |= {ENSEMBLE_FOLDS: list(folds), "member_def": value}
            ensemble = {"_target_": "medunet.runtime.ensemble_of", "member": "@member_def"}
            ensemble["count"] = f"$len(@{ENSEMBLE_FOLDS})"
            changed[key] = ensemble | ({"activation": activation} if "activation" in config else {})
        else:
            paths = [f"$@ckpt_dir + '/fold_{fold}.pt'" for fold in folds]
            changed[key] = paths if key == "ckpt_path" else value
    return changed


def _with_rules(config: dict[str, Any], rules: Sequence[ClassRule]) -> dict[str, Any]:
    if not any(rule.is_kept for rule in rules):
        return config
    step: dict[str, Any] = {"_target_": "medunet.transforms.CleanComponentsd", "keys": "pred"}
    if config.get("region_names"):
        step["_target_"] = "medunet.transforms.CleanRegionsd"
        step |= {"regions": "@region_indices", "order": "@region_order"}
    step |= as_step(rules, classes=len(config.get("region_names") or config["label_values"]))
    steps = [*config["postprocess_steps"], "@post#components"]
    return {**config, "post": {**config["post"], "components": step}, "postprocess_steps": steps}


def _section(folds: list[int], rules: Sequence[ClassRule], decision: Mapping[str, Any]) -> str:
    head, *rows = [f"| {' | '.join(row)} |" for row in rule_table(rules)]
    return f"""
## Cross-validation

The network is an ensemble: the mean of the probabilities of the folds {", ".join(map(str, folds))}. The
{decision["cases"]} cases were each predicted by the fold that held them out; Dice is their mean.
All numbers: `{DECISION_NAME}`.

""" + "\n".join([head, "| --- " * 7 + "|", *rows, ""])
