"""The mean answer of several networks, for instance of the folds of a cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from medunet.errors import ConfigError

from .activation import check_activation, to_probabilities


class Ensemble(nn.Module):
    """Mean of the class probabilities of networks that take and give the same.

    Args:
        networks: at least one; of several outputs (deep supervision) the first counts.
        activation: `softmax` over the classes, or `sigmoid` of each channel.

    Raises:
        ConfigError: no network, an unknown activation, or networks whose sizes differ.

    Example:
        >>> from medunet.networks import UNet
        >>> members = [UNet(2, 1, 3, channels=(4, 8)).eval() for _ in range(2)]
        >>> Ensemble(members)(torch.rand(1, 1, 16, 16)).sum(dim=1).round(decimals=4).unique().tolist()
        [1.0]
    """

    def __init__(self, networks: Sequence[nn.Module], *, activation: str = "softmax") -> None:
        super().__init__()
        if not networks:
            raise ConfigError("an ensemble needs a network", received="none")
        known = [getattr(network, "shapes", None) for network in networks]
        if different := [shapes for shapes in known if shapes != known[0]]:
            raise ConfigError(
                "networks of an ensemble have different sizes",
                received=different[0],
                expected=known[0],
                remedy="average networks of one plan only",
            )
        self.networks = nn.ModuleList(networks)
        self.activation = check_activation(activation)

    @property
    def shapes(self) -> Any:
        """Sizes and halo of the members."""
        return self.networks[0].shapes

    @property
    def tileable(self) -> bool:
        """Whether tiles change no voxel."""
        return all(bool(getattr(network, "tileable", True)) for network in self.networks)

    @property
    def tileable_reason(self) -> str:
        """Why, or why not."""
        found = [n for n in self.networks if not getattr(n, "tileable", True)] or [self.networks[0]]
        return str(getattr(found[0], "tileable_reason", ""))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """`(B, C, *spatial)` to mean probabilities `(B, classes, *spatial)`, float32."""
        shares = [to_probabilities(network(image), self.activation) for network in self.networks]
        return torch.stack(shares).mean(dim=0)
