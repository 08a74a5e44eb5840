"""A run's configuration as MLflow's parameters: flat, and with a note of what differs from the preset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from medunet.config import leaves

# wiring that is the same in all runs, and paths; the whole config is an artifact
SKIPPED = {"imports", "train", "validate", "initialize", "run", "training", "finalize"}
SKIPPED |= {"bundle_root", "dataset_dir", "resume"}


def flat_parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """Return values by config id, without expressions and references, whose value a config does not have.

    Examples:
        >>> flat_parameters({"epochs": 3, "network_def": {"channels": [4, 8], "spatial_dims": "@dims"}})
        {'epochs': '3', 'network_def::channels': '[4, 8]'}
    """
    values = leaves({key: value for key, value in config.items() if key not in SKIPPED})
    return {id_: show(value) for id_, value in values.items() if not _is_expression(value)}


def changed_parameters(changes: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the preset's value and the run's by id, from the ``{id: [preset, run]}`` of ``docs/changes.json``."""
    selected = {id_: pair for id_, pair in changes.items() if id_.partition("::")[0] not in SKIPPED}
    return {id_: (show(before), show(after)) for id_, (before, after) in selected.items()}


def describe(base: str, changed: Mapping[str, tuple[str, str]]) -> str:
    """Return the description of a run in MLflow's page (Markdown)."""
    if not changed:
        return f"As `{base}` has it." if base else ""
    rows = [f"| `{id_}` | {_cell(before)} | {_cell(after)} |" for id_, (before, after) in changed.items()]
    return "\n".join([f"Changed from `{base}`:", "", "| parameter | there | here |", "| --- | --- | --- |", *rows])


def show(value: Any) -> str:
    """Return a text unchanged, and anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _cell(text: str) -> str:
    return f"`{text[:200]}`".replace("|", "\\|").replace("\n", " ")


def _is_expression(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return any(isinstance(text, str) and text.startswith(("$", "@", "%")) for text in texts)
