"""The config ids of a bundle: value, type, meaning and origin of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunet.bundle.explain import base_of, read_plan
from medunet.config import TARGET, leaves, read_json, read_yaml, walk
from medunet.errors import ConfigError
from medunet.resources import bundle_texts, resource_dir

CONFIGS = ("train", "evaluate", "inference")
_TYPES = {bool: "true or false", int: "integer", float: "number", str: "text", list: "list", dict: "mapping"}


@dataclass(frozen=True)
class ConfigId:
    """One id that `--set` accepts.

    Args:
        id: the config id.
        value: its value in the first config that has it.
        type: type of the value, `expression` for a text that begins with `$` or `@`, or the target of a component.
        meaning: what it means; empty for ids that only connect components.
        origin: `plan`, `changed` (differs from the shipped bundle) or `default`.
        configs: the configs that have it.
    """

    id: str
    value: Any
    type: str
    meaning: str
    origin: str
    configs: tuple[str, ...]


def meanings(sources: Path | None = None) -> dict[str, str]:
    """Return the meaning of each documented config id.

    Args:
        sources: folder of the YAML sources. Default: the shipped ones.
    """
    folder = sources or resource_dir("configs")
    return {**read_yaml(folder / "reasons.yaml"), **read_yaml(folder / "meanings.yaml")}


def list_ids(bundle: Path) -> list[ConfigId]:
    """Return every id of a bundle, the documented ones first.

    Raises:
        ConfigError: the bundle has none of the configs, or one is not a JSON object.
    """
    paths = {name: bundle / "configs" / f"{name}.json" for name in CONFIGS}
    configs = {name: read_json(path) for name, path in paths.items() if path.is_file()}
    if not configs:
        raise ConfigError("no config", file=bundle, expected=", ".join(f"configs/{name}.json" for name in CONFIGS))
    texts = bundle_texts(bundle)
    planned = {decision.id: decision.value for decision in read_plan(texts)}
    base = base_of(texts)
    shipped = None if base is None else resource_dir("bundles") / base / "configs"
    originals = {name: leaves(read_json(shipped / f"{name}.json")) for name in configs} if shipped else {}
    texts_by_id = meanings()
    entries: dict[str, ConfigId] = {}
    for name, config in configs.items():
        values, parts = dict(walk(config)), leaves(config)
        for id_ in [*(id_ for id_ in texts_by_id if id_ in values), *parts]:
            if id_ in entries:
                entry = entries[id_]
                entries[id_] = ConfigId(**{**vars(entry), "configs": tuple(dict.fromkeys([*entry.configs, name]))})
                continue
            value = values[id_]
            differs = bool(originals) and id_ in parts and originals[name].get(id_) != value
            origin = "plan" if id_ in planned and planned[id_] == value else "changed" if differs else "default"
            entries[id_] = ConfigId(id_, value, type_name(value), texts_by_id.get(id_, ""), origin, (name,))
    return sorted(entries.values(), key=lambda entry: not entry.meaning)


def type_name(value: Any) -> str:
    """Return the type of a config value in words.

    Example:
        >>> type_name(3), type_name("@network"), type_name({"_target_": "torch.optim.AdamW"})
        ('integer', 'expression', 'torch.optim.AdamW')
    """
    if isinstance(value, str) and value.startswith(("$", "@")):
        return "expression"
    if isinstance(value, Mapping) and TARGET in value:
        return str(value[TARGET])
    return "any" if value is None else _TYPES[type(value)]
