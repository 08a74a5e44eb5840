"""Labels of left and right, which trade places in a mirrored image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medunet.errors import ConfigError


class SwapLabels:
    """Exchanges class indices pair by pair.

    ::

        image   [ L  .  R ]    mirrored   [ R' .  L']    R' looks like a left one, so it is labelled as one
        label   [ 1  0  2 ]               [ 2  0  1 ]    swapped   [ 1  0  2 ]

    Args:
        pairs: class indices that differ in left and right only.

    Raises:
        ConfigError: not pairs, or an index in two of them.

    Example:
        >>> SwapLabels([[1, 2]])(torch.tensor([[0, 1, 2, 3]])).tolist()
        [[0, 2, 1, 3]]
    """

    def __init__(self, pairs: Sequence[Sequence[int]]) -> None:
        self.pairs = check_pairs(pairs)

    def __call__(self, labels: torch.Tensor) -> torch.Tensor:
        """Return a new map of the same shape and type; `labels` itself without pairs."""
        swapped = labels.clone() if self.pairs else labels
        for left, right in self.pairs:
            swapped.masked_fill_(labels == left, right).masked_fill_(labels == right, left)
        return swapped


def swapped_channels(pairs: Sequence[Sequence[int]], count: int) -> list[int]:
    """Return the order of channels in which those of each pair have traded places.

    Raises:
        ConfigError: a channel that does not exist.

    Example:
        >>> swapped_channels([[1, 3]], 4)
        [0, 3, 2, 1]
    """
    order = list(range(count))
    for left, right in check_pairs(pairs):
        if max(left, right) >= count:
            raise ConfigError("unknown channel to swap", received=[left, right], expected=f"0 to {count - 1}")
        order[left], order[right] = right, left
    return order


def check_pairs(pairs: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """Return pairs of different class indices; anything else is a ConfigError."""
    known = [int(index) for pair in pairs for index in pair]
    if any(len(pair) != 2 for pair in pairs) or len(set(known)) != len(known) or min(known, default=0) < 0:
        raise ConfigError(
            "labels to swap must be pairs", received=[list(pair) for pair in pairs], expected="such as [[1, 2]]"
        )
    return tuple((int(left), int(right)) for left, right in pairs)
