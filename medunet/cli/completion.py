"""Words that the shell completes. Nothing here imports PyTorch, so that a completion takes a fraction of a second."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import typer

from medunet.config import read_json, read_yaml
from medunet.errors import ConfigError
from medunet.resources import find_bundle, preset_names, resource_dir, shipped_bundles, shipped_models


def runs() -> list[str]:
    """Return the runs in the current folder and in runs/, and the trained models that come with medunet."""
    found: Iterator[Path] = (path for folder in (Path(), Path("runs")) for path in sorted(folder.glob("*")))
    trained = (path for path in found if (path / "configs" / "train.json").is_file() or next(path.glob("fold_*"), None))
    return [*map(str, trained), *shipped_models()]


def bundles() -> list[str]:
    """Return the shipped bundles, and the runs."""
    return [*shipped_bundles(), *runs()]


def presets(ctx: typer.Context) -> list[str]:
    """Return the presets of the bundle on the command line."""
    with contextlib.suppress(ConfigError):
        return preset_names(path.stem for path in (_bundle(ctx) / "configs").glob("*.json"))
    return []


def config_ids(ctx: typer.Context) -> list[str]:
    """Return the documented ids of the bundle on the command line, each with `=`."""
    with contextlib.suppress(ConfigError):
        config = read_json(_bundle(ctx) / "configs" / "train.json")
        meanings = read_yaml(resource_dir("configs") / "ids.yaml")
        ids = [id_ for section in meanings.values() for id_ in section]
        return [f"{id_}=" for id_ in ids if id_.split("::")[0] in config]
    return []


def _bundle(ctx: typer.Context) -> Path:
    return find_bundle(ctx.params.get("bundle") or "unet_3d")
