"""Weights in files: written whole, read without running code in them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medunet.errors import ConfigError, DataError
from medunet.files import atomic_path


def save_checkpoint(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """`torch.save` that leaves either the old file or the new one, never half of one.

    Args:
        content: a dictionary of state dictionaries.
        path: target; its folder is made.
    """
    with atomic_path(path) as temporary:
        torch.save(dict(content), temporary)


def load_checkpoint(path: str | os.PathLike[str], *, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running code in it (``weights_only``).

    Raises:
        DataError: no such file, or not a checkpoint.
    """
    if not Path(path).is_file():
        raise DataError("no checkpoint", file=path, remedy="train first (medunet train), or give a trained run")
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise DataError(f"cannot read checkpoint: {_first_line(error)}", file=path, remedy="train again") from error
    if not isinstance(content, dict):
        raise DataError("checkpoint is not a dictionary", file=path, received=type(content).__name__)
    return content


def load_weights(network: torch.nn.Module, path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> None:
    """Load the weights under the key ``model`` (or a bare state dictionary) into a network, strictly.

    Args:
        network: what is filled.
        path: a checkpoint; for an ensemble (:class:`medunet.networks.EnsembleLogits`) one a member.

    Raises:
        DataError: unreadable file, or weights of another network.
        ConfigError: several files for one network, or not one a member.
    """
    if not isinstance(path, str | os.PathLike):
        members = getattr(network, "members", ())
        if len(members) != len(path):
            raise ConfigError(
                "an ensemble needs one checkpoint a member", received=f"{len(path)}", expected=f"{len(members)}"
            )
        for member, own in zip(members, path, strict=True):
            load_weights(member, own)
        return
    content = load_checkpoint(path)
    try:
        network.load_state_dict(content.get("model", content))
    except RuntimeError as error:
        raise DataError(
            "weights do not fit the network of this bundle",
            file=path,
            received=_first_line(error),
            remedy="use the configs that the weights were trained with",
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] if lines else type(error).__name__
