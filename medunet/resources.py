"""The YAML sources and the rendered bundles: in the installed package, or at the top of a checkout."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medunet.errors import ConfigError, DataError
from medunet.files import require_new, sha256_of

WORKFLOWS = ("train", "evaluate", "inference")  # configs that are complete; other JSON files of a bundle are overlays
NOT_PRESETS = {*WORKFLOWS, "metadata", "multi_gpu_train"}  # the last one works under torchrun only
WEIGHTS = "models/model.safetensors"  # of a trained model that comes with medunet

_PACKAGE = Path(__file__).resolve().parent


def resource_dir(name: str) -> Path:
    """Return the folder `configs` or `bundles` of this installation."""
    for folder in (_PACKAGE / "_resources" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise ConfigError("this installation lacks a folder", file=name, remedy="reinstall medunet")


def model_registry() -> dict[str, dict[str, Any]]:
    """Return what `bundles/models.json` says about each trained model, by its name."""
    return dict(json.loads((resource_dir("bundles") / "models.json").read_text(encoding="utf-8")))


def shipped_bundles() -> list[str]:
    """Return the names of the bundles that come with medunet without weights."""
    folders = (path for path in resource_dir("bundles").iterdir() if (path / "configs").is_dir())
    return sorted({path.name for path in folders} - {*model_registry()})


def shipped_models() -> list[str]:
    """Return the names of the trained models."""
    return sorted(model_registry())


def get_model(name: str, output: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of a trained model after comparing its weights with the registry.

    Args:
        name: a name of `medunet list --models`.
        output: a new folder that gets a copy of the model.

    Raises:
        ConfigError: There is no such model.
        DataError: The weights differ from the registry, or `output` exists.
    """
    if (entry := model_registry().get(name)) is None:
        raise ConfigError("no such model", received=name, expected=" or ".join(shipped_models()))
    require_new(output)
    folder = resource_dir("bundles") / name
    if (digest := sha256_of(folder / WEIGHTS)) != entry["sha256"]:
        raise DataError("weights differ from the registry", file=name, received=digest, expected=entry["sha256"])
    return folder if output is None else Path(shutil.copytree(folder, output))


def find_run(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the folder of a trained bundle, given its path or the name of a trained model."""
    path = Path(name_or_path)
    return resource_dir("bundles") / path if str(path) in shipped_models() and not path.exists() else path


def find_bundle(name_or_path: str | Path) -> Path:
    """Return the folder of a bundle, given its path or the name of a shipped one.

    Raises:
        ConfigError: There is no such bundle.
    """
    path = Path(name_or_path)
    if (path / "configs").is_dir():
        return path
    names = [*shipped_bundles(), *shipped_models()]
    if str(name_or_path) in names:
        return resource_dir("bundles") / path
    if path.is_file():
        raise ConfigError("a bundle must be a folder", file=path, remedy="unpack it by `medunet bundle unpack`")
    cause = "is not a bundle (no folder configs/ in it)" if path.is_dir() else "no such bundle"
    raise ConfigError(cause, file=path, expected=f"a bundle's folder or one of {', '.join(names)}")


def preset_names(configs: Iterable[str]) -> list[str]:
    """Return the sorted names of a bundle's configs that are overlays for a training run."""
    return sorted({*configs} - NOT_PRESETS)


def bundle_texts(bundle: Path) -> dict[str, str]:
    """Return the configs, docs and licence of a bundle by their path in it, without hidden and binary files."""
    texts: dict[str, str] = {}
    for path in sorted([*bundle.glob("configs/*"), *bundle.glob("docs/*"), bundle / "LICENSE"]):
        if path.is_file() and not path.name.startswith("."):
            with contextlib.suppress(UnicodeDecodeError):
                texts[path.relative_to(bundle).as_posix()] = path.read_text(encoding="utf-8")
    return texts
