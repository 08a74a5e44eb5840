"""Trained models by name: their weights come with medunet, or are fetched and compared with the registry."""

import os
import shutil
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from medunet.errors import ConfigError, DataError
from medunet.files import atomic_path, require_new, sha256_of
from medunet.resources import WEIGHTS, model_entry, model_folder, resource_dir

ADDRESS = "MEDUNET_MODELS"  # environment variable: a folder, or its address
TIMEOUT = 60.0  # seconds without an answer


def get_model(name: str, output: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of a trained model after comparing its weights with the registry; fetch missing weights.

    Args:
        name: a name of `medunet list --models`.
        output: a new folder that gets a copy of the model.

    Raises:
        ConfigError: there is no such model, or no address to fetch its weights from.
        DataError: the weights cannot be fetched or differ from the registry, or `output` exists.
    """
    entry = model_entry(name)
    require_new(output)
    folder = model_folder(name)
    if not (folder / WEIGHTS).is_file():
        shutil.copytree(resource_dir("bundles") / name, folder, dirs_exist_ok=True)
        with atomic_path(folder / WEIGHTS) as temporary:
            temporary.write_bytes(_fetch(f"{name}-{entry['version']}.safetensors", limit=entry["size"]))
            _compare(temporary, entry["sha256"])
    _compare(folder / WEIGHTS, entry["sha256"])
    return folder if output is None else Path(shutil.copytree(folder, output))


def _fetch(file: str, *, limit: int) -> bytes:
    """Return a file of the release address; one byte more than `limit` if it is larger."""
    if not (address := os.environ.get(ADDRESS)):
        raise ConfigError("no address to fetch models from", file=file, remedy=f"set {ADDRESS} to a folder or https://")
    url = f"{address if '://' in address else Path(address).resolve().as_uri()}/{file}"
    if urlsplit(url).scheme not in ("https", "file"):
        raise ConfigError(f"{ADDRESS} must be a folder, file:// or https://", received=address)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            return bytes(answer.read(limit + 1))
    except (OSError, HTTPException) as error:
        raise DataError(f"cannot be fetched: {error}", file=url) from error


def _compare(file: Path, expected: str) -> None:
    if (received := sha256_of(file)) != expected:
        raise DataError("the weights differ from the registry", file=file.name, received=received, expected=expected)
