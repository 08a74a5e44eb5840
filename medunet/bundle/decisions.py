"""Why a planned bundle has its values: `docs/plan.json`, and the table in its README."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from medunet.config import get_id
from medunet.planning import Decision

PLAN_FILE = "docs/plan.json"
README_FILE = "docs/README.md"


def plan_text(decisions: Iterable[Decision]) -> str:
    """Return the content of `docs/plan.json`."""
    return json.dumps({"decisions": [asdict(decision) for decision in decisions]}, indent=1, ensure_ascii=False) + "\n"


def read_plan(files: Mapping[str, str]) -> list[Decision]:
    """Return the decisions in the texts of a bundle; empty if it was not planned, or if the file is damaged."""
    try:
        entries = json.loads(files.get(PLAN_FILE, "{}")).get("decisions", [])
        return [Decision(**{key: entry[key] for key in ("id", "value", "reason", "numbers")}) for entry in entries]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def with_values(files: Mapping[str, str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return `docs/plan.json` and the README for a config in which some values are not those of the plan."""
    decisions, readme = read_plan(files), files.get(README_FILE, "")
    for index, decision in enumerate(decisions):
        value = get_id(config, decision.id)
        if value is not None and value != decision.value:
            decisions[index] = replace(decision, value=value, reason=_set_by_hand(decision), numbers="")
            readme = readme.replace(row(decision), row(decisions[index]))
    return {PLAN_FILE: plan_text(decisions), README_FILE: readme} if decisions else {}


def reasons(files: Mapping[str, str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return why a config has the values that were planned, by id; of a value that was changed, what the plan chose."""
    found = {}
    for decision in read_plan(files):
        value = get_id(config, decision.id)
        numbers = f" ({decision.numbers})" if decision.numbers else ""
        is_planned = value is None or value == decision.value
        found[decision.id] = decision.reason + numbers if is_planned else _set_by_hand(decision)
    return found


def row(decision: Decision) -> str:
    """Return a row of the README's table."""
    cells = (f"`{decision.id}`", f"`{show(decision.value)}`", decision.reason, decision.numbers)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def show(value: Any) -> str:
    """A value as a person reads it in a table: components by their target and arguments.

    Example:
        >>> show({"_target_": "medunet.losses.DiceCELoss", "batch": True}), show([[1, 2], 2])
        ('DiceCELoss(batch=True)', '[[1, 2], 2]')
    """
    if isinstance(value, Mapping):
        arguments = ", ".join(f"{key}={show(item)}" for key, item in value.items() if key != "_target_")
        return f"{str(value.get('_target_', '')).rpartition('.')[2]}({arguments})"
    if isinstance(value, list):
        return f"[{', '.join(show(item) for item in value)}]"
    return str(value)


def _set_by_hand(decision: Decision) -> str:
    return f"set for this run; the plan chose {show(decision.value)}"
