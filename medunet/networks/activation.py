"""Conversion between logits and probabilities, so that a mean of probabilities can replace logits."""

from __future__ import annotations

from typing import Any

import torch

from medunet.errors import ConfigError

ACTIVATIONS = ("softmax", "sigmoid")

PROBABILITY_FLOOR = 1e-12
"""Lowest probability of a softmax, so that its logarithm stays finite."""

SIGMOID_FLOOR = 1e-6
"""Least distance of a sigmoid's probability from zero and one: float32 cannot represent 1 - 1e-12."""


def check_activation(activation: str) -> str:
    """Return an activation.

    Raises:
        ConfigError: an unknown one.
    """
    if activation not in ACTIVATIONS:
        raise ConfigError("unknown activation", received=activation, expected=list(ACTIVATIONS))
    return activation


def to_probabilities(output: Any, activation: str = "softmax") -> torch.Tensor:
    """Return the probabilities of a network's output, float32.

    Args:
        output: logits `(B, classes, *spatial)`, or a sequence whose first entry is used (deep supervision).
        activation: `softmax` over the classes, or `sigmoid` of each channel.
    """
    logits: torch.Tensor = (output[0] if isinstance(output, list | tuple) else output).float()
    return torch.softmax(logits, dim=1) if activation == "softmax" else torch.sigmoid(logits)


def to_logits(probabilities: torch.Tensor, activation: str = "softmax") -> torch.Tensor:
    """Return logits whose activation gives the probabilities back.

    Example:
        >>> mean = torch.tensor([[0.25, 0.75]])
        >>> torch.softmax(to_logits(mean), dim=1).round(decimals=4).tolist()
        [[0.25, 0.75]]
    """
    if activation == "sigmoid":
        return torch.logit(probabilities, eps=SIGMOID_FLOOR)
    return probabilities.clamp_min(PROBABILITY_FLOOR).log()
