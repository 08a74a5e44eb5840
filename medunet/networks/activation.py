"""Conversion between logits and probabilities, so that a mean of probabilities can replace logits."""

from typing import Any

import torch

from .arguments import choose

PROBABILITY_FLOOR = 1e-12  # of a softmax, so that its logarithm stays finite
SIGMOID_FLOOR = 1e-6  # distance of a sigmoid from 0 and 1: float32 cannot represent 1 - 1e-12


def check_activation(activation: str, *, mean: bool = False) -> str:
    """Return `softmax` or `sigmoid`, or `none` for a mean of logits; raise ConfigError for another name."""
    choose("activation", activation, ("softmax", "sigmoid", "none") if mean else ("softmax", "sigmoid"))
    return activation


def to_probabilities(output: Any, activation: str = "softmax") -> torch.Tensor:
    """Return the probabilities of logits `(B, classes, *spatial)`, float32; of several outputs the first is used."""
    logits: torch.Tensor = (output[0] if isinstance(output, list | tuple) else output).float()
    if activation == "none":
        return logits
    return torch.softmax(logits, dim=1) if activation == "softmax" else torch.sigmoid(logits)


def to_logits(probabilities: torch.Tensor, activation: str = "softmax") -> torch.Tensor:
    """Return logits whose activation equals the probabilities.

    Examples:
        >>> mean = torch.tensor([[0.25, 0.75]])
        >>> torch.softmax(to_logits(mean), dim=1).round(decimals=4).tolist()
        [[0.25, 0.75]]
    """
    if activation == "none":
        return probabilities
    if activation == "sigmoid":
        return torch.logit(probabilities, eps=SIGMOID_FLOOR)
    return probabilities.clamp_min(PROBABILITY_FLOOR).log()
