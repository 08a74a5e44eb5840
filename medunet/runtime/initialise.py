"""Initial weights from another network."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch

from medunet.errors import DataError

from .weights import load_checkpoint

SHOWN_NAMES = 12  # names in a message; the report has all


@dataclass(frozen=True)
class TransferReport:
    """Which weights of another network were copied.

    Args:
        taken: names of tensors whose shape fits.
        reshaped: tensors with the same name and another shape, ``(here, there)``; the network keeps its own.
        new: names that only the network has; it keeps its own.
        unused: names that only the file has.
    """

    taken: tuple[str, ...]
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether all weights were copied."""
        return not (self.reshaped or self.new or self.unused)

    def left_out(self) -> list[str]:
        """Return one phrase per tensor that was not copied.

        Example:
            >>> TransferReport(("a",), {"head.weight": ((3, 8), (2, 8))}, new=("b",)).left_out()
            ['head.weight: shape (3, 8) here, (2, 8) there', 'b: only here']
        """
        shapes = [f"{name}: shape {here} here, {there} there" for name, (here, there) in self.reshaped.items()]
        return shapes + [f"{name}: only here" for name in self.new] + [f"{name}: only there" for name in self.unused]

    def __str__(self) -> str:
        left = self.left_out()
        text = f"{len(self.taken)} of {len(self.taken) + len(self.reshaped) + len(self.new)} tensors taken over"
        if left:
            more = f"; and {len(left) - SHOWN_NAMES} more" if len(left) > SHOWN_NAMES else ""
            text += f"; not taken over: {'; '.join(left[:SHOWN_NAMES])}{more}"
        return text


def transfer_weights(network: torch.nn.Module, path: str | os.PathLike[str]) -> TransferReport:
    """Load the weights of a checkpoint whose name and shape are the network's; the others keep their values.

    Args:
        network: network to initialise; changed.
        path: a checkpoint with the key ``model``, or a bare state dictionary.

    Raises:
        DataError: an unreadable file, or no weight that fits.
    """
    content = load_checkpoint(path)
    theirs, ours = content.get("model", content), network.state_dict()
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
