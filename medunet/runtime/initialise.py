"""Weights of another network, taken over where they fit; what is left out is listed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch

from medunet.errors import DataError

from .weights import load_checkpoint

SHOWN_NAMES = 12
"""So many names stand in a message; the report has them all."""


@dataclass(frozen=True)
class TransferReport:
    """What was taken over from other weights and what was not.

    Args:
        taken: names of tensors whose shape fits.
        reshaped: tensors of one name and two shapes, ``(here, there)``; the network keeps its own.
        new: names that only the network has; it keeps its own.
        unused: names that only the file has.
    """

    taken: tuple[str, ...]
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether everything fitted."""
        return not (self.reshaped or self.new or self.unused)

    def left_out(self) -> list[str]:
        """One phrase a tensor that was not taken over.

        Example:
            >>> TransferReport(("a",), {"head.weight": ((3, 8), (2, 8))}, new=("b",)).left_out()
            ['head.weight: shape (3, 8) here, (2, 8) there', 'b: only here']
        """
        shapes = [f"{name}: shape {here} here, {there} there" for name, (here, there) in self.reshaped.items()]
        return shapes + [f"{name}: only here" for name in self.new] + [f"{name}: only there" for name in self.unused]

    def __str__(self) -> str:
        total = len(self.taken) + len(self.reshaped) + len(self.new)
        text = f"{len(self.taken)} of {total} tensors taken over"
        left = self.left_out()
        if left:
            more = f"; and {len(left) - SHOWN_NAMES} more" if len(left) > SHOWN_NAMES else ""
            text += f"; not taken over: {'; '.join(left[:SHOWN_NAMES])}{more}"
        return text


def transfer_weights(network: torch.nn.Module, path: str | os.PathLike[str]) -> TransferReport:
    """Load those weights of a checkpoint whose name and shape are the network's; the others keep their values.

    Args:
        network: what to start.
        path: a checkpoint with the key ``model``, or a bare state dictionary.

    Raises:
        DataError: unreadable, or nothing fits.
    """
    content = load_checkpoint(path)
    theirs = content.get("model", content)
    ours = network.state_dict()
    fitting = {n: t for n, t in theirs.items() if n in ours and getattr(t, "shape", None) == ours[n].shape}
    if not any(tensor.is_floating_point() for tensor in fitting.values()):
        raise DataError(
            "no weights of this checkpoint fit the network",
            file=path,
            expected="a run of the same kind of network",
            remedy="give another --init-from, or the network_def of that run",
        )
    network.load_state_dict(fitting, strict=False)
    return TransferReport(
        taken=tuple(fitting),
        reshaped={
            name: (tuple(ours[name].shape), tuple(getattr(tensor, "shape", ())))
            for name, tensor in theirs.items()
            if name in ours and name not in fitting
        },
        new=tuple(name for name in ours if name not in theirs),
        unused=tuple(name for name in theirs if name not in ours),
    )
