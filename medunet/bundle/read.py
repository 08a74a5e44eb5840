"""Configs of a bundle, from its folder or from the trust check."""

import copy
from pathlib import Path
from typing import Any

from medunet.config import read_json
from medunet.errors import ConfigError
from medunet.prediction.configuration import config_file
from medunet.trust import Verdict

OWN_IDS = ("spatial_dims", "in_channels", "label_names", "label_values")  # each workflow of a medunet bundle has them


def read_own(bundle: Path, name: str) -> dict[str, Any]:
    """Read `configs/NAME.json` of a bundle; raise `ConfigError` if it is not one of medunet's."""
    path = config_file(bundle, name) or bundle / "configs" / f"{name}.json"
    config = read_json(path) if path.suffix == ".json" else {}
    if missing := [id_ for id_ in OWN_IDS if id_ not in config]:
        received = f"a config without {', '.join(missing)}" if path.suffix == ".json" else "YAML"
        remedy = "run `medunet predict`, and `medunet evaluate --pred --ref` on its files; or train your own bundle"
        raise ConfigError("this command needs a bundle of medunet", file=path, received=received, remedy=remedy)
    return config


def checked_config(verdict: Verdict, name: str) -> dict[str, Any]:
    """Return a copy of a config as the trust check read it; raise `ConfigError` if it is not a JSON object."""
    file = f"configs/{name}.json"
    if not isinstance(content := verdict.configs.get(file), dict):
        raise ConfigError("the bundle lacks a config", file=verdict.bundle / file, expected="a JSON object")
    return copy.deepcopy(content)
