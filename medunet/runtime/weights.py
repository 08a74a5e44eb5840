"""Weight files: written atomically, read without running code in them.

Beside `model.pt`, which MONAI's tools expect, `model.safetensors` holds the same weights without pickle. Its header has
the SHA-256 of that `model.pt`, so if the two files differ, the `.pt` counts.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from medunet.errors import ConfigError, DataError, SecurityError
from medunet.files import atomic_path, damaged_checkpoint, sha256_of, write_atomically

SAFE_SUFFIX = ".safetensors"
TWIN_OF = "sha256_of_pt"  # key in the header of a safetensors file
MAX_UNPACKED = 2  # PyTorch writes checkpoints uncompressed; one that unpacks to more times its size is rejected


def save_checkpoint(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a dictionary of state dictionaries atomically; the folder is created."""
    with atomic_path(path) as temporary:
        try:
            torch.save(dict(content), temporary)
        except RuntimeError as error:  # PyTorch's error for a full disk
            free = f"{shutil.disk_usage(Path(path).parent).free / 2**20:.1f} MiB"
            remedy = f"make room ({free} are free), then continue with --resume"
            raise DataError(f"cannot be written: {_first_line(error)}", file=path, remedy=remedy) from error


def save_weights(weights: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a state dictionary as ``{"model": weights}``, as MONAI expects it, and as safetensors beside that file."""
    path = Path(path)
    save_checkpoint({"model": weights}, path)
    twin = path.with_suffix(SAFE_SUFFIX)
    if not all(isinstance(value, torch.Tensor) for value in weights.values()):
        twin.unlink(missing_ok=True)
        return
    # safetensors rejects tensors that share memory
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}
    # as bytes: safetensors' own writer leaves temporary files if it is killed
    write_atomically(twin, serialise(tensors, metadata={"format": "pt", TWIN_OF: sha256_of(path)}))


def load_checkpoint(path: str | os.PathLike[str], *, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running code in it: safetensors, or ``weights_only``.

    Args:
        path: ``.pt`` or ``.safetensors``; if the ``.pt`` is missing or has the same weights, the safetensors is read.
        map_location: device of the tensors.

    Raises:
        DataError: a missing file, or not a checkpoint.
        SecurityError: a file that unpacks to many times its size.
    """
    path = Path(path)
    twin = path.with_suffix(SAFE_SUFFIX)
    if twin.is_file() and (path == twin or not path.is_file() or _is_twin(twin, path)):
        return {"model": _load_safe(twin, map_location)}
    if not path.is_file():
        raise DataError("no checkpoint", file=path, remedy="train first (medunet train), or give a trained run")
    _check_size(path)
    if (damaged := damaged_checkpoint(path)) is not None:  # PyTorch checks no checksum
        raise damaged
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # PyTorch's unpicklers raise many types for damaged data
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        # PyTorch's own message is not shown: it advises to run any code in the file
        raise DataError(
            "cannot read checkpoint: it is not a file of PyTorch with tensors alone",
            file=path,
            received=match and f"an object of {match[1]}",
            remedy="save the network's state_dict() with torch.save",
        ) from error
    if not isinstance(content, dict):
        raise DataError("checkpoint is not a dictionary", file=path, received=type(content).__name__)
    return content


def load_weights(network: torch.nn.Module, path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> None:
    """Load the weights under the key ``model`` (or a bare state dictionary) into a network, strictly.

    Args:
        network: network to fill; changed.
        path: a checkpoint; for :class:`medunet.runtime.EnsembleLogits` one per member.

    Raises:
        DataError: an unreadable file, or weights of another network.
        ConfigError: several files for one network, or not one per member.
    """
    if not isinstance(path, str | os.PathLike):
        members = getattr(network, "members", ())
        if len(members) != len(path):
            raise ConfigError("an ensemble needs one checkpoint per member", received=len(path), expected=len(members))
        for member, own in zip(members, path, strict=True):
            load_weights(member, own)
        return
    content = load_checkpoint(path)
    try:
        network.load_state_dict(content.get("model", content))
    except (RuntimeError, TypeError, AttributeError) as error:  # the latter: no names, or not a dictionary
        raise DataError(
            "weights do not fit the network of this bundle",
            file=path,
            received=_first_line(error),
            remedy="use the configs that the weights were trained with",
        ) from error


def _load_safe(path: Path, map_location: str | torch.device) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt", device=str(map_location)) as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"cannot read weights: {_first_line(error)}", file=path, remedy="train again") from error


def _is_twin(twin: Path, path: Path) -> bool:
    try:
        with safe_open(twin, framework="pt") as opened:
            source = (opened.metadata() or {}).get(TWIN_OF)
    except (SafetensorError, OSError, ValueError):
        return False
    return source is not None and source == sha256_of(path)


def _check_size(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as opened:
            unpacked = sum(info.file_size for info in opened.infolist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return  # torch reports it
    if unpacked > MAX_UNPACKED * path.stat().st_size:
        raise SecurityError(
            "checkpoint unpacks to many times its size",
            file=path,
            received=f"{unpacked} bytes of {path.stat().st_size}",
            expected="an uncompressed one, as PyTorch writes it",
        )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] if lines else type(error).__name__
