"""The mean output of several networks, for instance of the folds of a cross-validation."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from medunet.errors import ConfigError
from medunet.networks import check_activation, to_logits, to_probabilities


class EnsembleLogits(nn.Module):
    """Mean of the class probabilities of networks, as logits, so that a bundle's inferer and postprocessing apply.

    Args:
        members: at least one network; of several outputs (deep supervision) the first is used.
        activation: `softmax` over the classes, or `sigmoid` of each channel, as in the postprocessing; `none` averages
            the logits, as nnU-Net does.

    Raises:
        ConfigError: no network, an unknown activation, or networks of different sizes.

    Examples:
        >>> from medunet.networks import UNet
        >>> members = [UNet(2, 1, 3, channels=(4, 8)).eval() for _ in range(2)]
        >>> EnsembleLogits(members)(torch.rand(1, 1, 16, 16)).exp().sum(dim=1).round(decimals=4).unique().tolist()
        [1.0]
    """

    def __init__(self, members: Sequence[nn.Module], *, activation: str = "softmax") -> None:
        super().__init__()
        shapes = [getattr(network, "shapes", None) for network in members]
        if not shapes or any(other != shapes[0] for other in shapes):
            raise ConfigError("an ensemble needs one or more networks of the same sizes", received=len(shapes))
        self.members = nn.ModuleList(members)
        self.activation = check_activation(activation, mean=True)

    @property
    def shapes(self) -> Any:
        """Sizes and halo of the members."""
        return self.members[0].shapes

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map `(B, C, *spatial)` to `(B, classes, *spatial)`, float32."""
        probabilities = [to_probabilities(network(image), self.activation) for network in self.members]
        return to_logits(torch.stack(probabilities).mean(dim=0), self.activation)


def ensemble_of(member: nn.Module, count: int, *, activation: str = "softmax") -> EnsembleLogits:
    """Return an ensemble of `count` copies of a network, to be filled by `load_weights` with one file per member."""
    return EnsembleLogits([copy.deepcopy(member) for _ in range(count)], activation=activation)
