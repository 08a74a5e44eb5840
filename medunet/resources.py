"""The YAML sources and the rendered bundles: in the installed package, or at the top of a checkout."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from medunet.errors import ConfigError

WORKFLOWS = ("train", "evaluate", "inference")  # configs that are complete; other JSON files of a bundle are overlays
NOT_PRESETS = {*WORKFLOWS, "metadata", "multi_gpu_train"}  # the last one works under torchrun only

_PACKAGE = Path(__file__).resolve().parent


def resource_dir(name: str) -> Path:
    """Return the folder `configs` or `bundles` of this installation."""
    for folder in (_PACKAGE / "_resources" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise ConfigError("this installation lacks a folder", file=name, remedy="reinstall medunet")


def shipped_bundles() -> list[str]:
    """Return the names of the bundles that come with medunet without weights."""
    return _shipped(trained=False)


def shipped_models() -> list[str]:
    """Return the names of the trained bundles that come with medunet."""
    return _shipped(trained=True)


def _shipped(*, trained: bool) -> list[str]:
    folders = (path for path in resource_dir("bundles").iterdir() if (path / "configs").is_dir())
    # a trained model was planned for its data; a recipe may have weights if somebody trains in its folder
    return sorted(path.name for path in folders if (path / "docs" / "plan.json").is_file() == trained)


def find_run(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the folder of a trained bundle, given its path or the name of a shipped model."""
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
    if path.name == str(name_or_path) and path.name in names:
        return resource_dir("bundles") / path.name
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
