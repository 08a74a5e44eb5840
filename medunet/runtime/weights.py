"""Weight files: written atomically, read without running code in them.

Beside `model.pt`, which MONAI's tools expect, `model.safetensors` holds the same weights without pickle. Its header has
the SHA-256 of that `model.pt`, so if the two files differ, the `.pt` counts.
"""

import os
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from medunet.errors import ConfigError, DataError, SecurityError, first_lines
from medunet.files import atomic_path, damaged_checkpoint, sha256_of, write_atomically

SAFE_SUFFIX = ".safetensors"
TWIN_OF = "sha256_of_pt"  # key in the header of a safetensors file
MAX_UNPACKED = 2  # PyTorch writes checkpoints uncompressed; one that unpacks to more times its size is rejected
SHOWN_NAMES = 12  # names of tensors in a message

AnyPath = str | os.PathLike[str]


def save_checkpoint(content: Mapping[str, Any], path: AnyPath) -> None:
    """Write a dictionary of state dictionaries atomically; the folder is created."""
    with atomic_path(path) as temporary:
        try:
            torch.save(dict(content), temporary)
        except RuntimeError as error:  # PyTorch's error for a full disk
            free = f"{shutil.disk_usage(Path(path).parent).free / 2**20:.1f} MiB"
            remedy = f"make room ({free} are free), then continue with --resume"
            raise DataError(f"cannot be written: {first_lines(error, 2)}", file=path, remedy=remedy) from error


def save_weights(weights: Mapping[str, Any], path: AnyPath) -> None:
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


def load_checkpoint(path: AnyPath, *, map_location: str | torch.device = "cpu") -> dict[str, Any]:
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
        raise DataError("checkpoint is missing", file=path, remedy="train first (medunet train), or give a trained run")
    _check_size(path)
    if (damaged := damaged_checkpoint(path)) is not None:  # PyTorch checks no checksum
        raise damaged
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # PyTorch's unpicklers raise many types for damaged data
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        # PyTorch's own message is not shown: it advises to run any code in the file
        cause, received = (
            "checkpoint must be a PyTorch file that contains only tensors",
            match and f"an object of {match[1]}",
        )
        remedy = "save the network's state_dict() with torch.save"
        raise DataError(cause, file=path, received=received, remedy=remedy) from error
    if not isinstance(content, dict):
        raise DataError("checkpoint is not a dictionary", file=path, received=type(content).__name__)
    return content


def load_weights(network: torch.nn.Module, path: AnyPath | Sequence[AnyPath]) -> None:
    """Load the weights under the key ``model`` (or a bare state dictionary) into a network, strictly.

    Args:
        network: network to fill; changed.
        path: a checkpoint; for :class:`medunet.runtime.EnsembleLogits` one per member.

    Raises:
        DataError: an unreadable file, or weights of a different network.
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
        cause, remedy = "weights do not fit the network of this bundle", "use the configs of the trained run"
        raise DataError(cause, file=path, received=first_lines(error, 2), remedy=remedy) from error


@dataclass(frozen=True)
class TransferReport:
    """Which weights of a different network were copied.

    Args:
        taken: number of tensors that were copied.
        total: number of tensors of the network; those that were not copied keep their values.
        left_out: one phrase per tensor that was not copied.
    """

    taken: int
    total: int
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.taken} of {self.total} tensors copied"
        if not self.left_out:
            return text
        more = f"; and {len(self.left_out) - SHOWN_NAMES} more" if len(self.left_out) > SHOWN_NAMES else ""
        return f"{text}; not copied: {'; '.join(self.left_out[:SHOWN_NAMES])}{more}"


def transfer_weights(network: torch.nn.Module, path: AnyPath) -> TransferReport:
    """Load the weights of a checkpoint whose name and shape match the network's; the others keep their values.

    Args:
        network: network to initialise; changed.
        path: a checkpoint with the key ``model``, or a bare state dictionary.

    Raises:
        DataError: an unreadable file, or no weight that fits.
    """
    content = load_checkpoint(path)
    theirs, ours = content.get("model", content), network.state_dict()
    fitting = {n: t for n, t in theirs.items() if n in ours and getattr(t, "shape", None) == ours[n].shape}
    if not any(tensor.is_floating_point() for tensor in fitting.values()):
        remedy = "give another --init-from, or the network_def of that run"
        raise DataError("no weights of this checkpoint fit the network", file=path, remedy=remedy)
    network.load_state_dict(fitting, strict=False)
    left_out = [f"{name}: only here" for name in ours if name not in theirs]
    for name, tensor in theirs.items():
        if name not in ours:
            left_out.append(f"{name}: only there")
        elif name not in fitting:
            shape = tuple(getattr(tensor, "shape", ()))
            left_out.append(f"{name}: shape {tuple(ours[name].shape)} here, {shape} there")
    return TransferReport(len(fitting), len(ours), tuple(left_out))


def _load_safe(path: Path, map_location: str | torch.device) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt", device=str(map_location)) as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"cannot read weights: {first_lines(error, 2)}", file=path) from error


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
        received = f"{unpacked} bytes of {path.stat().st_size}"
        raise SecurityError("checkpoint unpacks to many times its size", file=path, received=received)
