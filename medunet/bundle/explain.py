"""The values of a bundle by id: their meanings, and why a bundle has them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medunet.config import TARGET, leaves, read_json, read_yaml, walk
from medunet.errors import ConfigError
from medunet.planning import Decision
from medunet.reports import Setting
from medunet.resources import WORKFLOWS, bundle_texts, resource_dir, shipped_bundles

PLAN_FILE = "docs/plan.json"  # the decisions of a plan
CHANGES = "docs/changes.json"  # the shipped bundle that a bundle descends from, and the values that differ from it

_FROM_DATA = ("in_channels", "label_names", "label_values", "region_names", "spacing_mm", "patch_size", "folds")
_WIRING = ("keys", "optimizer", "params", "network", "validator", "source_key")
_TYPES = {bool: "true or false", int: "integer", float: "number", str: "text", list: "list", dict: "mapping"}


@dataclass(frozen=True)
class ConfigId:
    """One id that `--set` accepts."""

    id: str
    value: Any  # in the first config that has it
    type: str
    meaning: str  # empty for ids that only connect components
    origin: str  # `plan`, `changed` (differs from the shipped bundle) or `default`
    configs: tuple[str, ...]  # the configs that have it


def meanings() -> dict[str, str]:
    """Return the meaning of each documented config id."""
    sections = read_yaml(resource_dir("configs") / "ids.yaml")
    return {**sections["decides"], **sections["others"]}


def list_ids(bundle: Path) -> list[ConfigId]:
    """Return every id of a bundle, the documented ones first; raise `ConfigError` if it has no config."""
    paths = {name: bundle / "configs" / f"{name}.json" for name in WORKFLOWS}
    configs = {name: read_json(path) for name, path in paths.items() if path.is_file()}
    if not configs:
        raise ConfigError("no config", file=bundle, expected=", ".join(f"configs/{name}.json" for name in WORKFLOWS))
    texts, documented = bundle_texts(bundle), meanings()
    planned = {decision.id: decision.value for decision in read_plan(texts)}
    entries: dict[str, ConfigId] = {}
    for name, config in configs.items():
        values, parts, original = dict(walk(config)), leaves(config), leaves(_original(base_of(texts), name))
        for id_ in dict.fromkeys([*(id_ for id_ in documented if id_ in values), *parts]):
            if id_ in entries:
                entries[id_] = replace(entries[id_], configs=(*entries[id_].configs, name))
                continue
            value = values[id_]
            origin = "changed" if original and id_ in parts and original.get(id_) != value else "default"
            origin = "plan" if id_ in planned and planned[id_] == value else origin
            entries[id_] = ConfigId(id_, value, type_name(value), documented.get(id_, ""), origin, (name,))
    return sorted(entries.values(), key=lambda entry: not entry.meaning)


def type_name(value: Any) -> str:
    """Return the type of a config value in words.

    Examples:
        >>> type_name(3), type_name("@network"), type_name({"_target_": "torch.optim.AdamW"})
        ('integer', 'expression', 'torch.optim.AdamW')
    """
    if isinstance(value, str) and value.startswith(("$", "@")):
        return "expression"
    if isinstance(value, Mapping) and TARGET in value:
        return str(value[TARGET])
    return "any" if value is None else _TYPES[type(value)]


def settings_of(run: Path) -> list[Setting]:
    """Return the values of a run that determine its result, each with its reason."""
    return settings(read_json(run / "configs" / "train.json"), bundle_texts(run))


def settings(
    config: Mapping[str, Any], texts: Mapping[str, str], *, base: str | None = None, sources: Path | None = None
) -> list[Setting]:
    """Return the values of a `train.json` that determine the result of training, each with its reason.

    Args:
        config: The unresolved config.
        texts: Texts of the bundle by path, with the plan and the shipped bundle that it descends from.
        base: Name of the shipped bundle that is being rendered; its values are not compared with others.
        sources: Folder of the YAML sources. Default: the shipped ones.
    """
    folder = sources or resource_dir("configs")
    original = {} if base else _original(base_of(texts), "train")
    base = base or base_of(texts)
    reasons = read_yaml(folder / "ids.yaml")["decides"]
    reasons |= read_yaml(folder / "bundles.yaml")["bundles"].get(base, {}).get("reasons", {})
    values, before = dict(walk(config)), dict(walk(original))
    old, new = leaves(original), leaves(config)
    changed = {id_ for id_ in old.keys() | new.keys() if old.get(id_) != new.get(id_)} if original else set()
    planned = {decision.id: decision for decision in read_plan(texts)}
    result = []
    for id_ in dict.fromkeys([*(id_ for id_ in reasons if id_ in values or id_ in planned), *planned]):
        decision, why = planned.get(id_), reasons.get(id_, "")
        value = values[id_] if id_ in values or decision is None else decision.value
        is_changed = any(f"{other}::".startswith(f"{id_}::") for other in changed)
        if decision is not None and value == decision.value:
            why = decision.reason + (f" ({decision.numbers})" if decision.numbers else "")
        elif decision is not None:
            why = f"set for this run; the plan chose {show(decision.value)}"
        elif is_changed:
            was = f", {base} has {_text(id_, before[id_])}" if id_ in before and id_ != "init_from" else ""
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
    """Return a value in readable form for a table: components by their target and arguments.

    Examples:
        >>> show({"_target_": "medunet.losses.DiceCELoss", "batch": True}), show([[1, 2], 2])
        ('DiceCELoss(batch=True)', '[[1, 2], 2]')
    """
    if isinstance(value, Mapping):
        arguments = ", ".join(f"{key}={show(item)}" for key, item in value.items() if key != TARGET)
        return f"{str(value.get(TARGET, '')).rpartition('.')[2]}({arguments})"
    if isinstance(value, list):
        return f"[{', '.join(show(item) for item in value)}]"
    return "none" if value is None else str(value)


def _original(base: str | None, name: str) -> dict[str, Any]:
    """Return a config of a shipped bundle; empty without one."""
    path = resource_dir("bundles") / str(base) / "configs" / f"{name}.json"
    return read_json(path) if base and path.is_file() else {}


def _text(id_: str, value: Any) -> str:
    if id_ == "init_from":  # a path may name a person
        return "the weights of another run" if value else "none"
    if id_ == "split":
        return f"{sum(map(len, value))} cases in {len(value)} folds" if value else "none"
    if id_ == "validation_cases":  # so may a case
        return f"{len(value)} case{'' if len(value) == 1 else 's'}"
    if isinstance(value, Mapping):  # without what only connects components
        is_reference = {key: isinstance(part, str) and part.startswith(("@", "$")) for key, part in value.items()}
        value = {key: part for key, part in value.items() if key not in _WIRING and not is_reference[key]}
    return show(value).replace("@steps#", "").replace("@augment#", "").replace("@steps::", "").removeprefix("$")
