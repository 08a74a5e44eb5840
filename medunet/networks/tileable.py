"""Whether a network's output at one voxel depends on the whole window that it is given."""

from __future__ import annotations

from torch import nn

_NORMS_WITH_STATISTICS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
"""Normalisations that depend on the window unless they keep running statistics."""

_GLOBAL_LAYERS = (
    *(nn.GroupNorm, nn.MultiheadAttention),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)


def window_dependence(network: object) -> str | None:
    """Return the reason why tiles change the result of a network, or None if they do not.

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
