"""The mean answer of several networks, for instance of the folds of a cross-validation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from medunet.errors import ConfigError
from medunet.networks.activation import check_activation, to_logits, to_probabilities
from medunet.networks.foreign import window_dependence


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
        return not self.tileable_reason

    @property
    def tileable_reason(self) -> str:
        """Why tiles change the result; empty if they do not."""
        return next(filter(None, map(window_dependence, self.networks)), "")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """`(B, C, *spatial)` to mean probabilities `(B, classes, *spatial)`, float32."""
        shares = [to_probabilities(network(image), self.activation) for network in self.networks]
        return torch.stack(shares).mean(dim=0)


class EnsembleLogits(nn.Module):
    """The mean of members' probabilities as logits, so that a bundle's inferer and postprocessing serve it unchanged.

    The softmax of the logarithm of probabilities gives them back, and likewise the sigmoid of their logit.

    Args:
        members: networks of one output; see `Ensemble`.
        activation: `softmax` or `sigmoid`, what the postprocessing applies.

    Raises:
        ConfigError: members that differ in sizes or halo.
    """

    def __init__(self, members: Sequence[nn.Module], *, activation: str = "softmax") -> None:
        super().__init__()
        self.activation = activation
        self.ensemble = Ensemble(list(members), activation=activation)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """`(B, C, *spatial)` to `(B, classes, *spatial)`, float32."""
        return to_logits(self.ensemble(image), self.activation)

    @property
    def members(self) -> list[nn.Module]:
        """The networks; their weights come from one file each, see `load_weights`."""
        return list(self.ensemble.networks)

    @property
    def shapes(self) -> Any:
        """Sizes and halo of the members, for tiling."""
        return self.ensemble.shapes

    @property
    def tileable(self) -> bool:
        """Whether tiles change no voxel."""
        return bool(self.ensemble.tileable)

    @property
    def tileable_reason(self) -> str | None:
        """Why tiles would change voxels."""
        reason: str | None = self.ensemble.tileable_reason
        return reason


def ensemble_of(member: nn.Module, count: int, *, activation: str = "softmax") -> EnsembleLogits:
    """An ensemble of copies of one network, to be filled by `load_weights` with one file a member.

    Args:
        member: the network of a config.
        count: how many.
        activation: as of `EnsembleLogits`.
    """
    return EnsembleLogits([copy.deepcopy(member) for _ in range(count)], activation=activation)
