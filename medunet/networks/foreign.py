"""Properties of any network: whether it can be tiled, and which of its outputs are the logits."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from medunet.errors import ConfigError

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_GLOBAL_LAYERS = (
    *(nn.GroupNorm, nn.MultiheadAttention),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)


def window_dependence(network: object) -> str:
    """Return the reason why tiles change a network's result, based on its layers; empty if tiles do not change it.

    Examples:
        >>> window_dependence(nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8)))
        'GroupNorm depends on the whole window'
        >>> window_dependence(nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)))
        ''
    """
    for layer in network.modules() if isinstance(network, nn.Module) else ():
        if not getattr(layer, "tileable", True):
            return str(getattr(layer, "tileable_reason", "its output depends on the window"))
        without_statistics = isinstance(layer, _NORMS) and not layer.track_running_stats
        if without_statistics or isinstance(layer, _GLOBAL_LAYERS):
            return f"{type(layer).__name__} depends on the whole window"
    return ""


def only_tensor(output: Any) -> torch.Tensor:
    """Return the logits of a network: a tensor, the first of a list or tuple, or the only entry of a dictionary.

    Raises:
        ConfigError: no tensor, or a dictionary of several outputs.
    """
    logits = output
    if isinstance(logits, Mapping) and len(logits) == 1:
        logits = next(iter(logits.values()))
    if isinstance(logits, list | tuple) and logits:
        logits = logits[0]
    if not isinstance(logits, torch.Tensor):
        names = f" of {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise ConfigError(
            "network must return a tensor, a list or tuple of tensors, or a dictionary of one tensor",
            received=f"{type(output).__name__}{names}",
            remedy="wrap the network in a module that returns only its logits",
        )
    return logits
