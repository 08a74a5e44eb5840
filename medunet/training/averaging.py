"""The moving average of a network's weights, which is validated and stored instead of the newest weights."""

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.optim.swa_utils import get_ema_multi_avg_fn

from medunet.errors import ConfigError


class WeightAverage:
    """Exponential moving average of weights (Polyak averaging), with a warm-up for short training runs.

    After step n the average moves towards the weights by ``1 - min(decay, (1 + n) / (10 + n))``, so a run of 1,000
    steps does not keep its first weights in the average. Running statistics of batch norm are averaged like the
    weights; integer buffers are copied. While the validator runs, the network has the averaged weights.

    Args:
        network: the bare network (not wrapped for distributed training).
        decay: upper limit of the share that is retained, such as 0.999; 0 turns averaging off.
        validator: evaluator of the same network, or None.

    Raises:
        ConfigError: The decay is not in [0, 1).
    """

    def __init__(self, network: torch.nn.Module, *, decay: float, validator: Any = None) -> None:
        if isinstance(decay, bool) or not 0 <= decay < 1:
            raise ConfigError("ema_decay must be in [0, 1)", received=decay)
        self.network = network
        self.decay = decay
        self.validator = validator
        self.steps = 0
        self._average: dict[str, torch.Tensor] = {}

    def attach(self, engine: Engine) -> None:
        """Register with the trainer; the checkpoint handler that gets the average calls this."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        if self.validator is not None:
            self.validator.add_event_handler(Events.STARTED, self.swap)
            self.validator.add_event_handler(Events.COMPLETED, self.swap)

    @torch.no_grad()
    def update(self, engine: Any = None) -> None:
        """Add the weights of the completed step; those of the first step are the first average."""
        newest = self._tensors()
        if not self._average:
            self._average = {name: tensor.detach().clone() for name, tensor in newest.items()}
        else:
            average = [self._average[name] for name in newest]
            decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
            get_ema_multi_avg_fn(decay)(average, list(newest.values()), self.steps)  # one fused call for all tensors
        self.steps += 1

    @torch.no_grad()
    def swap(self, engine: Any = None) -> None:
        """Exchange the network's weights and the average without copying; does nothing before the first step."""
        for name, tensor in self._tensors().items() if self._average else ():
            tensor.data, self._average[name] = self._average[name], tensor.data

    def weights(self) -> dict[str, Any]:
        """Return the network's state dictionary with the averaged weights, or before the first step with the newest."""
        return {**self.network.state_dict(), **self._average}

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from."""
        return {"steps": self.steps, "average": dict(self._average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of another average."""
        known = self._tensors()
        self.steps = state["steps"]
        # in the memory layout of the network's tensors, else sums would round differently
        self._average = {
            name: torch.empty_like(known[name]).detach().copy_(value) for name, value in state["average"].items()
        }

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return weights and statistics by name, looked up each time: moving a network replaces its buffers."""
        buffers = {name: buffer for name, buffer in self.network.named_buffers() if buffer.is_floating_point()}
        return {**dict(self.network.named_parameters()), **buffers}
