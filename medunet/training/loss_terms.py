"""What a loss is the sum of."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events


class LossTerms:
    """Leaves the mean of every term of the loss over an epoch in ``engine.state.loss_terms``, by name.

    The terms are the modules that a loss consists of, such as ``dice`` and ``cross_entropy`` of MONAI's ``DiceCELoss``,
    before their factors. Of deep supervision the finest level counts. A loss without parts has no terms.

    Values stay on the device until the epoch ends, so that no step waits for them.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[torch.Tensor]] = {}
        self._seen: set[str] = set()
        self._hooks: list[Any] = []

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, before its history handler."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_STARTED, self.iteration_started)
        engine.add_event_handler(Events.EPOCH_STARTED, self.epoch_started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def start(self, engine: Any) -> None:
        """Listen to the parts of the loss."""
        for hook in self._hooks:
            hook.remove()
        terms = terms_of(getattr(engine, "loss_function", None))
        self._hooks = [part.register_forward_hook(self._listener(name)) for name, part in terms.items()]

    def iteration_started(self, engine: Any) -> None:
        """A new step: the first call of each term counts."""
        self._seen.clear()

    def epoch_started(self, engine: Any) -> None:
        """Forget the epoch before."""
        self._values = {}

    def epoch_completed(self, engine: Any) -> None:
        """Leave the means."""
        engine.state.loss_terms = {
            name: float(torch.stack(values).double().mean()) for name, values in self._values.items()
        }

    def _listener(self, name: str) -> Any:
        def listen(module: torch.nn.Module, args: Any, output: Any) -> None:
            if name not in self._seen and isinstance(output, torch.Tensor) and output.numel() == 1:
                self._seen.add(name)
                self._values.setdefault(name, []).append(output.detach().reshape(()))

        return listen


def terms_of(loss: Any) -> dict[str, torch.nn.Module]:
    """The parts of a loss by name, through any wrapper that has a single part.

    Example:
        >>> from monai.losses import DiceCELoss
        >>> sorted(terms_of(DiceCELoss()))
        ['binary_cross_entropy', 'cross_entropy', 'dice']
        >>> terms_of(torch.nn.L1Loss())
        {}
    """
    while isinstance(loss, torch.nn.Module):
        parts = dict(loss.named_children())
        if len(parts) != 1:
            return parts
        (loss,) = parts.values()
    return {}
