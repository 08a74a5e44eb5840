"""Starting from the weights of another run."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from medunet.runtime import TransferReport, transfer_weights

from .checkpoint import BEST_NAME

logger = logging.getLogger(__name__)


class WeightsTransfer:
    """Fine-tuning: before the first step the network takes over what fits of another run's weights.

    With other classes or channels the first or last layers do not fit; what is not taken over is logged as a warning
    and lies in ``engine.state.transfer``. A resumed training keeps the weights that it has.

    Args:
        source: a run's folder (its ``models/model.pt``) or a checkpoint; None or ``""`` starts from chance.
        network: the bare network.
    """

    def __init__(self, source: str | os.PathLike[str] | None, network: torch.nn.Module) -> None:
        self.source = source
        self.network = network
        self.report: TransferReport | None = None

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, after its checkpoint handler."""
        if self.source:
            engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Any) -> None:
        """Take over the weights; raises as :func:`medunet.runtime.transfer_weights`."""
        if engine.state.epoch > 0 or not self.source:  # the checkpoint handler has resumed
            return
        path = weights_of(self.source)
        self.report = engine.state.transfer = transfer_weights(self.network, path)
        logger.log(logging.INFO if self.report.is_whole else logging.WARNING, "%s: %s", path, self.report)


def weights_of(source: str | os.PathLike[str]) -> Path:
    """The checkpoint that a run's folder or a file stands for.

    Example:
        >>> weights_of("weights.pt").as_posix()
        'weights.pt'
    """
    path = Path(source)
    return path / "models" / BEST_NAME if path.is_dir() else path
