"""Left and right trade places in a mirror, and so must their labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medunet.errors import ConfigError


class SwapLabels:
    """Exchange class indices pair by pair.

    ::

        image   [ L  .  R ]    mirrored   [ R' .  L']    R' looks like a left one, so it is labelled as one
        label   [ 1  0  2 ]               [ 2  0  1 ]    swapped   [ 1  0  2 ]

    Args:
        pairs: of class indices that differ in left and right only.

    Raises:
        ConfigError: something else than pairs, or an index in two of them.

    Example:
        >>> SwapLabels([[1, 2]])(torch.tensor([[0, 1, 2, 3]])).tolist()
        [[0, 2, 1, 3]]
    """

    def __init__(self, pairs: Sequence[Sequence[int]]) -> None:
        self.pairs = check_pairs(pairs)

    def __call__(self, labels: torch.Tensor) -> torch.Tensor:
        """A new map of the same shape and type; the same one where there are no pairs."""
        swapped = labels
        for left, right in self.pairs:
            if swapped is labels:
                swapped = labels.clone()
            swapped.masked_fill_(labels == left, right).masked_fill_(labels == right, left)
        return swapped


def swapped_channels(pairs: Sequence[Sequence[int]], count: int) -> list[int]:
    """The order of channels in which those of each pair have traded places.

    Raises:
        ConfigError: a channel that is not there.

    Example:
        >>> swapped_channels([[1, 3]], 4)
        [0, 3, 2, 1]
    """
    order = list(range(count))
    for left, right in check_pairs(pairs):
        if max(left, right) >= count:
            raise ConfigError("no such channel to swap", received=[left, right], expected=f"0 to {count - 1}")
        order[left], order[right] = right, left
    return order


def check_pairs(pairs: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """Pairs of different class indices; raises ConfigError for anything else."""
    known = [int(index) for pair in pairs for index in pair]
    if any(len(pair) != 2 for pair in pairs) or len(set(known)) != len(known) or min(known, default=0) < 0:
        raise ConfigError("labels to swap are no pairs", received=[list(pair) for pair in pairs], expected="[[1, 2]]")
    return tuple((int(left), int(right)) for left, right in pairs)
