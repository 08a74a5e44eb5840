"""A network as an inferer sees it: without wrappers, with logits of the size that the plan expects."""

from __future__ import annotations

from typing import Any

import torch

from medunet.errors import ConfigError

from .tiling import Tile, TilePlan


def unwrap(network: Any) -> Any:
    """Look through torch.compile (`_orig_mod`) and DistributedDataParallel (`module`) for the network with `shapes`."""
    while not hasattr(network, "shapes"):
        inner = getattr(network, "_orig_mod", None) or getattr(network, "module", None)
        if inner is None:
            break
        network = inner
    return network


def check_output(logits: torch.Tensor, tile: Tile, plan: TilePlan) -> None:
    """Raise ConfigError unless the logits of a tile have the size that its plan expects."""
    expected = tuple(n - 2 * margin for n, margin in zip(tile.window_size, plan.margin, strict=True))
    if tuple(logits.shape[2:]) != expected:
        raise ConfigError(
            f"network returned another size than its shapes promise for a window of {tile.window_size}",
            received=tuple(logits.shape[2:]),
            expected=expected,
            remedy="use a network with the attribute `shapes`, or one whose output is as large as its input",
        )


def empty_output(image: torch.Tensor, logits: torch.Tensor, *, device: torch.device | str | None) -> torch.Tensor:
    """Allocate the stitched output: nothing is added up, so it need not be zero."""
    half = logits.dtype.is_floating_point  # softmax and resampling lose digits in half precision
    dtype = torch.promote_types(logits.dtype, torch.float32) if half else logits.dtype
    return torch.empty(
        (len(image), len(logits), *image.shape[2:]),
        dtype=dtype,
        device=image.device if device is None else device,
    )
