"""One of several cross-validated plans, or all together: what is best on cases that no member was trained on."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medunet.bundle.ensemble import DECISION_NAME
from medunet.bundle.measuring import (
    OUT_OF_FOLD,
    best_rules,
    class_values,
    measure,
    pair_of,
    region_values_of,
    source_of,
    wants_em,
)
from medunet.bundle.specialise import read_json
from medunet.datasets import datalist, open_dataset
from medunet.errors import ConfigError
from medunet.files import write_atomically
from medunet.metrics.tables import json_text
from medunet.prediction import ClassRule, JointPredictor

logger = logging.getLogger(__name__)

CHOICE_NAME = "choice.json"

MIN_ENSEMBLE_GAIN = 1e-3
"""Mean Dice by which plans together must be better than the best alone: they take as many times as long."""


@dataclass(frozen=True)
class Candidate:
    """One plan, or all together.

    Args:
        members: outputs of :func:`medunet.bundle.train_folds`.
        mean_dice: over classes of the mean over out-of-fold cases, after post-processing.
        rules: the post-processing of each class.
    """

    members: tuple[Path, ...]
    mean_dice: float
    rules: tuple[ClassRule, ...]


@dataclass(frozen=True)
class Choice:
    """What was chosen, and from what.

    Args:
        chosen: the best candidate.
        candidates: all of them: each plan alone, then all together.
    """

    chosen: Candidate
    candidates: tuple[Candidate, ...]


def choose(results: Sequence[Path], output: Path, *, device: str = "auto") -> Choice:
    """Compare cross-validated plans of one data set, such as one in the plane and one in space, and their ensemble.

    The ensemble of a case is made of the folds that did not see it, so its numbers are out of fold as well. Label maps,
    metrics and the decision (``choice.json``) go to ``output``. To predict by an ensemble that was chosen, give its
    members and rules to :class:`medunet.prediction.JointPredictor`.

    Args:
        results: at least two outputs of :func:`medunet.bundle.train_folds`, of the same data, folds and classes.
        output: folder for the comparison.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: results that cannot be compared.
        MedunetError: a case that each plan has predicted cannot be predicted by all together.
    """
    decisions = [read_json(result / DECISION_NAME) for result in results]
    _check_comparable(results, decisions)
    alone = [
        Candidate((result,), decision["mean_dice_postprocessed"], tuple(map(_rule, decision["postprocessing"])))
        for result, decision in zip(results, decisions, strict=True)
    ]
    failed = _failed(decisions[0])
    for name, why in failed.items():
        logger.warning("%s counts nowhere, for it was not predicted: %s", name, why)
    together = _measure_together(results, decisions[0]["folds"], output, without=failed, device=device)
    best = max(alone, key=lambda candidate: candidate.mean_dice)
    chosen = together if together.mean_dice > best.mean_dice + MIN_ENSEMBLE_GAIN else best
    choice = Choice(chosen, (*alone, together))
    write_atomically(
        output / CHOICE_NAME, json_text({"chosen": _entry(chosen), "of": list(map(_entry, choice.candidates))})
    )
    return choice


def _check_comparable(results: Sequence[Path], decisions: Sequence[dict[str, Any]]) -> None:
    if len(results) < 2:
        raise ConfigError("there is nothing to choose from", received=f"{len(results)} results", expected="two or more")

    def kind(decision: dict[str, Any]) -> tuple[Any, ...]:
        classes = [(rule["name"], rule["value"]) for rule in decision["postprocessing"]]
        return decision["folds"], decision["of_folds"], decision["cases"], sorted(_failed(decision)), classes

    for result, decision in zip(results, decisions, strict=True):
        if kind(decision) != kind(decisions[0]):
            raise ConfigError(
                "results of different folds, cases or classes cannot be compared",
                file=result,
                received=kind(decision),
                expected=kind(decisions[0]),
                remedy="train the same folds of the same data",
            )


def _failed(decision: Mapping[str, Any]) -> dict[str, str]:
    """Cases that the folds could not predict, with the reason; results of earlier versions name none."""
    return dict(decision.get("failed_cases", {}))


def _measure_together(
    results: Sequence[Path], folds: Sequence[int], output: Path, *, without: Container[str], device: str
) -> Candidate:
    pairs = []
    config: dict[str, Any] = {}
    ignore = None
    for fold in folds:
        runs = [result / f"fold_{fold}" for result in results]
        config = read_json(runs[0] / "configs" / "evaluate.json")
        data, skipped = config["dataset_dir"], config.get("skip_cases", ())
        ignore = open_dataset(data, problems=[] if skipped else None).ignore
        joint = JointPredictor(runs, output_dir=output / "predictions", device=device, overwrite=True)
        found = datalist(data, section="validation", fold=fold, folds=config["folds"], skip_cases=skipped)
        items = [item for item in found if str(item["name"]) not in without]
        pairs += [pair_of(item, joint.predict_case(source_of(item))) for item in items]
        logger.info("fold %d: %d cases predicted by all together", fold, len(items))
    pairs.sort(key=lambda pair: pair.name)
    rules, labels, regions = best_rules(pairs, config, ignore=ignore), class_values(config), region_values_of(config)
    em = wants_em(None, config["spatial_dims"], labels)
    summary = measure(pairs, labels, output / OUT_OF_FOLD, regions=regions, em=em, rules=rules, ignore=ignore)
    return Candidate(tuple(results), summary["mean_dice"], rules)


def _rule(entry: dict[str, Any]) -> ClassRule:
    known: dict[str, Any] = {key: float("nan") if value is None else value for key, value in entry.items()}
    return ClassRule(**known)


def _entry(candidate: Candidate) -> dict[str, Any]:
    return {
        "members": [str(member) for member in candidate.members],
        "mean_dice": candidate.mean_dice,
        "postprocessing": [asdict(rule) for rule in candidate.rules],
    }
