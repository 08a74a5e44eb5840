"""An ensemble in the place of a bundle's network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from medunet import networks


class EnsembleLogits(torch.nn.Module):
    """The mean of members' probabilities as logits, so that a bundle's inferer and postprocessing serve it unchanged.

    The softmax of the logarithm of probabilities gives them back, and likewise the sigmoid of their logit.

    Args:
        members: networks of one output; see :class:`medunet.networks.Ensemble`.
        activation: ``softmax`` or ``sigmoid``, what the postprocessing applies.

    Raises:
        ConfigError: members that differ in sizes or halo.
    """

    def __init__(self, members: Sequence[torch.nn.Module], *, activation: str = "softmax") -> None:
        super().__init__()
        self.activation = activation
        self.ensemble = networks.Ensemble(list(members), activation=activation)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``(B, C, *spatial)`` to ``(B, classes, *spatial)``, float32."""
        return networks.to_logits(self.ensemble(image), self.activation)

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
