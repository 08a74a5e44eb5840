"""Properties of any network: whether it can be tiled, and which of its outputs are the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from medunet.errors import ConfigError

_NORMS_WITH_STATISTICS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
"""Normalisations that depend on the window unless they keep running statistics."""

_GLOBAL_LAYERS = (
    *(nn.GroupNorm, nn.MultiheadAttention),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)


def window_dependence(network: object) -> str | None:
    """Return why tiles change the result of a network, or None if they do not.

    A network without the attribute `tileable`, such as MONAI's, is judged by its layers.

    Example:
        >>> window_dependence(nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8)))
        'GroupNorm depends on the whole window'
        >>> window_dependence(nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)))
    """
    if hasattr(network, "tileable"):
        return None if network.tileable else getattr(network, "tileable_reason", "its output depends on the window")
    for layer in network.modules() if isinstance(network, nn.Module) else ():
        has_statistics = isinstance(layer, _NORMS_WITH_STATISTICS) and layer.track_running_stats
        if isinstance(layer, (*_GLOBAL_LAYERS, *_NORMS_WITH_STATISTICS)) and not has_statistics:
            return f"{type(layer).__name__} depends on the whole window"
    return None


def only_tensor(output: Any) -> torch.Tensor:
    """Return the logits of a network that may return several levels of them, or a dictionary.

    Raises:
        ConfigError: no tensor, or a dictionary of several outputs.
    """
    logits = output
    if isinstance(logits, Mapping) and len(logits) == 1:
        logits = next(iter(logits.values()))
    if isinstance(logits, list | tuple) and logits:
        logits = logits[0]
    if not isinstance(logits, torch.Tensor):
        kind = type(output).__name__
        raise ConfigError(
            "network returns several outputs or no tensor",
            received=f"{kind} of {', '.join(map(str, output))}" if isinstance(output, Mapping) else kind,
            expected="a tensor, a list or tuple of tensors (the first is taken), or a dictionary of one",
            remedy="wrap the network in a module that returns only its logits",
        )
    return logits
