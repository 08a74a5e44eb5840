"""Checkpoints of nnU-Net: read without running code in them, and renamed for medunet's U-Net."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medunet.errors import DataError, SecurityError
from medunet.files import damaged_checkpoint
from medunet.networks import UNet

from .model import NnunetModel

# NumPy's scalars in nnU-Net's log of losses, under the names that NumPy 1 and 2 give them; none of them runs code
_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
ALLOWED: tuple[Any, ...] = (
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "float16", "int64", "int32", "bool")),
)
SHOWN = 3  # names in a message

_DUPLICATE = re.compile(r"^decoder\.encoder\.|\.all_modules\.")  # nnU-Net saves these tensors twice
_PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")  # of several processes, and of torch.compile


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says about itself."""

    path: Path
    weights: Mapping[str, torch.Tensor]
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]  # of the network's input, in nnU-Net's order
    epoch: int


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a `checkpoint_*.pth` of nnU-Net v2.

    Raises:
        DataError: damaged, or not a checkpoint of nnU-Net v2.
        SecurityError: it contains pickled objects other than tensors, numbers and texts.
    """
    if (damaged := damaged_checkpoint(path)) is not None:
        raise damaged
    try:
        with torch.serialization.safe_globals([*ALLOWED]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's unpicklers raise many types
        match = re.search(r"GLOBAL ([\w.]+)|(?:function|class) ([\w.]+)", str(error))
        found = (match and (match[1] or match[2])) or type(error).__name__
        cause = "the checkpoint contains objects that could run code; nothing of it was run"
        raise SecurityError(cause, file=path, received=found, expected="tensors, numbers and texts") from error
    try:
        return Checkpoint(
            path,
            {_PREFIX.sub("", name): tensor for name, tensor in content["network_weights"].items()},
            str(content["init_args"]["configuration"]),
            str(content["trainer_name"]),
            tuple(int(axis) for axis in content.get("inference_allowed_mirroring_axes") or ()),
            int(content.get("current_epoch", 0)),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        cause = "this is not a checkpoint of nnU-Net v2"
        raise DataError(cause, file=path, received=f"{type(error).__name__}: {error}") from error


def convert_weights(checkpoint: Checkpoint, network: UNet, model: NnunetModel) -> dict[str, torch.Tensor]:
    """Return the state dictionary of medunet's network; biases that a normalisation cancels are left out.

    Raises:
        DataError: the weights contradict the plan.
    """
    levels = len(network.encoder)
    expected, converted, unknown = network.state_dict(), {}, []
    for name, tensor in checkpoint.weights.items():
        if _DUPLICATE.search(name):
            continue
        new = _renamed(name, levels)
        if new is None:
            unknown.append(name)
        elif new not in expected and new.endswith("conv.bias"):
            continue
        else:
            converted[new] = _converted(name, tensor, model)
    wrong = [f"{name}: {tuple(t.shape)}" for name, t in converted.items() if name not in expected]
    wrong += [
        f"{name} is {tuple(converted[name].shape)}, the plan says {tuple(t.shape)}"
        for name, t in expected.items()
        if name in converted and converted[name].shape != t.shape
    ]
    optional = ("num_batches_tracked", "up.conv.bias")  # a network without biases has zeros there
    missing = [name for name in expected if name not in converted and not name.endswith(optional)]
    if unknown or wrong or missing:
        parts = {"unknown": unknown, "different": wrong, "missing": missing}
        received = "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:SHOWN])})" for kind, names in parts.items() if names
        )
        cause = f"the weights do not fit the plan; trainer {checkpoint.trainer} may build another network"
        raise DataError(cause, file=checkpoint.path, received=received)
    return {**{name: t for name, t in expected.items() if name not in converted}, **converted}


def _renamed(name: str, levels: int) -> str | None:
    """Return medunet's name of a tensor of `PlainConvUNet` or `ResidualEncoderUNet`; None if it has none."""
    number = r"(\d+)"
    if match := re.fullmatch(rf"encoder\.stages\.{number}\.0\.convs\.{number}\.(conv|norm)\.(\w+)", name):
        return f"encoder.{match[1]}.convs.{match[2]}.{match[3]}.{match[4]}"
    if match := re.fullmatch(r"encoder\.stem\.convs\.0\.(conv|norm)\.(\w+)", name):
        return f"encoder.0.convs.0.{match[1]}.{match[2]}"
    block = rf"encoder\.stages\.{number}\.blocks\.{number}\."
    if match := re.fullmatch(rf"{block}conv([12])\.(conv|norm)\.(\w+)", name):
        place = int(match[2]) + (match[1] == "0")  # the stem precedes the blocks of the first level
        return f"encoder.{match[1]}.convs.{place}.units.{int(match[3]) - 1}.{match[4]}.{match[5]}"
    if match := re.fullmatch(rf"{block}skip\.[01]\.(conv|norm)\.(\w+)", name):
        place = int(match[2]) + (match[1] == "0")
        return f"encoder.{match[1]}.convs.{place}.shortcut.{match[3]}.{match[4]}"
    if match := re.fullmatch(rf"decoder\.stages\.{number}\.convs\.{number}\.(conv|norm)\.(\w+)", name):
        return f"decoder.{match[1]}.convs.{match[2]}.{match[3]}.{match[4]}"
    if match := re.fullmatch(rf"decoder\.transpconvs\.{number}\.(\w+)", name):
        return f"decoder.{match[1]}.up.conv.{match[2]}"
    if match := re.fullmatch(rf"decoder\.seg_layers\.{number}\.(\w+)", name):
        finer = levels - 2 - int(match[1])  # 0 for the head of the finest level
        return f"head.{match[2]}" if finer == 0 else f"coarse_heads.{finer - 1}.{match[2]}"
    return None


def _converted(name: str, tensor: torch.Tensor, model: NnunetModel) -> torch.Tensor:
    """Return a tensor with its kernel in the image's order of axes, and the channels of the skip connection first."""
    if tensor.ndim == model.dims + 2:
        tensor = tensor.permute(0, 1, *(2 + axis for axis in model.permutation))
        if re.match(r"decoder\.stages\.\d+\.convs\.0\.conv", name):
            up, skip = tensor.chunk(2, dim=1)
            tensor = torch.cat([skip, up], dim=1)
    return tensor.contiguous()
