"""Configs of a bundle: those of its workflows, and its presets."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medunet.config import read_json
from medunet.errors import ConfigError
from medunet.prediction.configuration import config_file
from medunet.trust import Verdict

WORKFLOWS = ("train", "evaluate", "inference")
"""Configs that are complete; other JSON files of a bundle are overlays."""

OWN_IDS = ("spatial_dims", "in_channels", "label_names", "label_values")
"""Ids that every workflow config has in a bundle of medunet."""

LAUNCHED = "multi_gpu_train"
"""The overlay that works under torchrun only, so it is not a preset."""


def read_own(bundle: Path, name: str) -> dict[str, Any]:
    """Read `configs/NAME.json` of a bundle that must be one of medunet's.

    Raises:
        ConfigError: The config is missing, not a JSON object, or not one of medunet's.
    """
    path = config_file(bundle, name) or bundle / "configs" / f"{name}.json"
    config = read_json(path) if path.suffix == ".json" else {}
    if missing := [id_ for id_ in OWN_IDS if id_ not in config]:
        raise ConfigError(
            "this command needs a bundle of medunet",
            file=path,
            received="YAML" if path.suffix != ".json" else f"a config without {', '.join(missing)}",
            remedy=(
                "predict with a third-party bundle (medunet predict) and evaluate its files (medunet evaluate --pred "
                "--ref); or train your own (medunet plan)"
            ),
        )
    return config


def judged_config(verdict: Verdict, name: str) -> dict[str, Any]:
    """Return a copy of a config as the trust check read it.

    Raises:
        ConfigError: The config is missing or not a JSON object.
    """
    file = f"configs/{name}.json"
    if file not in verdict.configs:
        raise ConfigError("the bundle lacks a config", file=verdict.bundle / file, remedy="render it again")
    content = copy.deepcopy(verdict.configs[file])
    if not isinstance(content, dict):
        raise ConfigError("not a JSON object", file=verdict.bundle / file)
    return content


def preset_names(configs: Iterable[str]) -> list[str]:
    """Return which of the names of a bundle's configs are overlays that a training may add, sorted."""
    return sorted({*configs} - {*WORKFLOWS, "metadata", LAUNCHED})
