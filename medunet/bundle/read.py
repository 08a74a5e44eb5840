"""Configs of a bundle, read from its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medunet.errors import ConfigError, SecurityError
from medunet.prediction.configuration import config_file
from medunet.trust import MAX_CONFIG_BYTES

OWN_IDS = ("spatial_dims", "in_channels", "label_names", "label_values")
"""Ids that every config of a workflow has in a bundle of medunet."""


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a bundle's configs.

    Raises:
        ConfigError: missing or not a JSON object.
        SecurityError: larger than any config is.
    """
    check_size(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("the bundle lacks a config", file=path, remedy="render it again") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not JSON: {error}", file=path, remedy="fix it or render it again") from error
    if not isinstance(content, dict):
        raise ConfigError("not a JSON object", file=path)
    return content


def check_size(path: Path) -> None:
    """Reject a file that is too large for a config, before it is read.

    Raises:
        SecurityError: it is.
    """
    if path.is_file() and path.stat().st_size > MAX_CONFIG_BYTES:
        raise SecurityError("too large for a config", file=path, received=f"{path.stat().st_size} bytes")


def read_own(bundle: Path, name: str) -> dict[str, Any]:
    """Read ``configs/NAME.json`` of a bundle that must be one of medunet's.

    Raises:
        ConfigError: missing or not a JSON object, or a config of another maker's bundle.
    """
    path = config_file(bundle, name) or bundle / "configs" / f"{name}.json"
    if path.suffix != ".json":
        raise _not_own(path, "YAML")
    config = read_json(path)
    if missing := [id_ for id_ in OWN_IDS if id_ not in config]:
        raise _not_own(path, f"a config without {', '.join(missing)}")
    return config


def _not_own(file: Path, received: str) -> ConfigError:
    return ConfigError(
        "this command needs a bundle of medunet",
        file=file,
        received=received,
        remedy=(
            "predict with another maker's bundle (medunet predict) and evaluate its files (medunet evaluate --pred "
            "--ref); or train your own (medunet plan)"
        ),
    )
