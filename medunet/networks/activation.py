"""From logits to probabilities and back, so that a mean of probabilities can stand where logits are expected."""

from __future__ import annotations

from typing import Any

import torch

from medunet.errors import ConfigError

ACTIVATIONS = ("softmax", "sigmoid")

PROBABILITY_FLOOR = 1e-12
"""Below this a probability counts as zero, so that its logarithm stays finite."""

SIGMOID_FLOOR = 1e-6
"""The same for a sigmoid's, which is also kept this far from one: float32 cannot say 1 - 1e-12."""


def check_activation(activation: str) -> str:
    """Give an activation back.

    Raises:
        ConfigError: an unknown one.
    """
    if activation not in ACTIVATIONS:
        raise ConfigError("unknown activation", received=activation, expected=list(ACTIVATIONS))
    return activation


def to_probabilities(output: Any, activation: str = "softmax") -> torch.Tensor:
    """Probabilities of a network's answer, float32.

    Args:
        output: logits `(B, classes, *spatial)`, or a sequence of which the first counts (deep supervision).
        activation: `softmax` over the classes, or `sigmoid` of each channel.
    """
    logits: torch.Tensor = (output[0] if isinstance(output, list | tuple) else output).float()
    return torch.softmax(logits, dim=1) if activation == "softmax" else torch.sigmoid(logits)


def to_logits(probabilities: torch.Tensor, activation: str = "softmax") -> torch.Tensor:
    """Logits whose activation gives the probabilities back.

    Example:
        >>> mean = torch.tensor([[0.25, 0.75]])
        >>> torch.softmax(to_logits(mean), dim=1).round(decimals=4).tolist()
        [[0.25, 0.75]]
    """
    if activation == "sigmoid":
        return torch.logit(probabilities, eps=SIGMOID_FLOOR)
    return probabilities.clamp_min(PROBABILITY_FLOOR).log()
