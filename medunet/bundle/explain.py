"""Why a bundle has its values: decisions of a plan, what a run changes, and the reasons of the defaults."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medunet.config import TARGET, leaves, read_json, read_yaml, walk
from medunet.planning import Decision
from medunet.reports import Setting
from medunet.resources import bundle_texts, resource_dir, shipped_bundles

PLAN_FILE = "docs/plan.json"
"""The decisions of a plan."""

CHANGES = "docs/changes.json"
"""The shipped bundle that a bundle comes from, and each value of its training that differs from there."""

_FROM_DATA = ("in_channels", "label_names", "label_values", "region_names", "spacing_mm", "patch_size", "folds")
_PATHS = ("init_from",)  # whether they are set is reported, not their value
_CASES = ("validation_cases",)  # their number is reported, not their names
_WIRING = ("keys", "optimizer", "params", "network", "validator", "source_key")


def settings_of(run: Path) -> list[Setting]:
    """Return the values of a run that decide about its result, each with its reason.

    Raises:
        ConfigError: `train.json` of the run is missing or not a JSON object.
    """
    texts = bundle_texts(run)
    config, base = read_json(run / "configs" / "train.json"), base_of(texts)
    original = None if base is None else read_json(resource_dir("bundles") / base / "configs" / "train.json")
    return settings(config, read_plan(texts), base=base, original=original)


def settings(
    config: Mapping[str, Any],
    decisions: Sequence[Decision] = (),
    *,
    base: str | None,
    original: Mapping[str, Any] | None = None,
    sources: Path | None = None,
) -> list[Setting]:
    """Return the values that decide about the result of training, each with its reason.

    Args:
        config: An unresolved `train.json`.
        decisions: Decisions of the plan that the bundle comes from.
        base: Name of the shipped bundle that it comes from; None for another one.
        original: `train.json` of that bundle; None if there is nothing to compare with.
        sources: Folder of the YAML sources. Default: the shipped ones.
    """
    folder = sources or resource_dir("configs")
    defaults = read_yaml(folder / "reasons.yaml")
    defaults |= read_yaml(folder / "bundles.yaml")["bundles"].get(base, {}).get("reasons", {})
    values, before = dict(walk(config)), dict(walk(original or {}))
    old, new = leaves(original or {}), leaves(config)
    changed = {id_ for id_ in old.keys() | new.keys() if old.get(id_) != new.get(id_)} if original else set()
    planned = {decision.id: decision for decision in decisions}
    result = []
    for id_ in dict.fromkeys([*defaults, *planned]):
        if id_ not in values and id_ not in planned:
            continue
        decision = planned.get(id_)
        value = values[id_] if id_ in values or decision is None else decision.value
        is_changed = any(f"{other}::".startswith(f"{id_}::") for other in changed)
        why = defaults.get(id_, "")
        if decision is not None and value == decision.value:
            why = decision.reason + (f" ({decision.numbers})" if decision.numbers else "")
        elif decision is not None:
            why = f"set for this run; the plan chose {show(decision.value)}"
        elif is_changed:
            was = f", {base} has {_text(id_, before[id_])}" if id_ in before and id_ not in _PATHS else ""
            why = f"{'taken from the data' if id_ in _FROM_DATA else 'set for this run'}{was}; {why}"
        result.append(Setting(id_, _text(id_, value), why, is_changed))
    return result


def table(rows: Iterable[Setting]) -> str:
    """Return settings as a Markdown table."""
    lines = ["| id | value | reason |", "| --- | --- | --- |"]
    for row in rows:
        cells = (f"`{row.id}`", f"`{row.value}`", row.why)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)


def plan_text(decisions: Iterable[Decision]) -> str:
    """Return the content of `docs/plan.json`."""
    return json.dumps({"decisions": [asdict(decision) for decision in decisions]}, indent=1, ensure_ascii=False) + "\n"


def read_plan(texts: Mapping[str, str]) -> list[Decision]:
    """Return the decisions in the texts of a bundle; empty if there is no valid plan."""
    try:
        entries = json.loads(texts[PLAN_FILE])["decisions"]
        return [Decision(**{key: entry[key] for key in ("id", "value", "reason", "numbers")}) for entry in entries]
    except (ValueError, TypeError, KeyError):
        return []


def base_of(texts: Mapping[str, str]) -> str | None:
    """Return the name of the shipped bundle that a bundle comes from; None if it comes from another one."""
    try:
        name = json.loads(texts[CHANGES]).get("bundle")
    except (KeyError, ValueError, AttributeError):
        return None
    return name if name in shipped_bundles() else None


def show(value: Any) -> str:
    """Return a value as a person reads it in a table: components by their target and arguments.

    Example:
        >>> show({"_target_": "medunet.losses.DiceCELoss", "batch": True}), show([[1, 2], 2])
        ('DiceCELoss(batch=True)', '[[1, 2], 2]')
    """
    if isinstance(value, Mapping):
        arguments = ", ".join(f"{key}={show(item)}" for key, item in value.items() if key != TARGET)
        return f"{str(value.get(TARGET, '')).rpartition('.')[2]}({arguments})"
    if isinstance(value, list):
        return f"[{', '.join(show(item) for item in value)}]"
    return "none" if value is None else str(value)


def _text(id_: str, value: Any) -> str:
    if id_ in _PATHS:
        return "the weights of another run" if value else "none"
    if id_ in _CASES:
        return f"{len(value)} case{'' if len(value) == 1 else 's'}"
    if isinstance(value, Mapping):  # without what only connects components
        value = {
            key: part
            for key, part in value.items()
            if key not in _WIRING and not (isinstance(part, str) and part.startswith(("@", "$")))
        }
    return show(value).replace("@steps#", "").replace("@augment#", "").replace("@steps::", "").removeprefix("$")
