"""What a training step costs: estimated from the network, and measured by making a few in a process of their own.

A process of its own, because memory that earlier work has left behind would hide the peak, and because a step that does
not fit may end the process.
"""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from medunet.errors import ConfigError
from medunet.inferers.memory import is_out_of_memory
from medunet.networks import UNet
from medunet.runtime import autocast, keep_freed_memory, resolve_device, resolve_dtype

logger = logging.getLogger(__name__)

STATE_BYTES = 16
"""Bytes a weight: itself, its gradient and two moments of AdamW, in float32."""

WORKSPACE = 1.4
"""Memory beside what the backward pass keeps, as a factor: gradients of maps on their way, reordered copies of the
convolution library, what the allocator keeps. Measured 1.1 to 1.4 on CPU."""

PROCESS_BYTES = 900 << 20
"""A process that has imported torch and MONAI, on a CPU."""

WHOLE_IMAGE = 4
"""Images of more voxels than so many batches are reckoned from one patch, for a probe is to take seconds."""

HALO = 1.5
"""Voxels that tiles of such images see twice, as a factor."""

OUT_OF_MEMORY_RC = -9
"""Exit code of a process that the system ended, mostly for lack of memory."""


@dataclass(frozen=True)
class StepCost:
    """What was measured.

    Args:
        fits: False where memory ran out; the other figures are then 0.
        peak_bytes: largest memory: on a CPU of the whole process, on CUDA of torch's allocator.
        step_seconds: forward, backward and optimizer.
        data_seconds: random transforms of one batch, as far as the network waits for them.
        image_seconds: forward pass over the median image, as in validation.
    """

    fits: bool
    peak_bytes: int = 0
    step_seconds: float = 0.0
    data_seconds: float = 0.0
    image_seconds: float = 0.0


def training_bytes(network_def: Mapping[str, Any], window: Sequence[int], *, itemsize: int, cpu: bool) -> int:
    """Estimated peak memory of a training step.

    The forward pass is made on torch's meta device, which knows sizes and computes nothing; what autograd would keep
    for the backward pass is added up.

    Args:
        network_def: arguments of `medunet.networks.UNet`, numbers only.
        window: `(B, C, *spatial)`.
        itemsize: bytes of a number in the forward pass.
        cpu: whether the process itself counts.
    """
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.device("meta"):
        network = UNet(**network_def).train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = network(torch.empty(tuple(window)))
    own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    maps = sum(
        t.numel() * (itemsize if t.is_floating_point() else t.element_size()) for k, t in kept.items() if k not in own
    )
    logits = output[0] if isinstance(output, list | tuple) else output
    # the loss works on float32: logits, softmax, one-hot labels, products, and their gradients
    loss = 8 * logits.numel() * 4
    weights = sum(parameter.numel() for parameter in network.parameters()) * STATE_BYTES
    return int(WORKSPACE * maps) + loss + weights + (PROCESS_BYTES if cpu else 0)


def measure_step(
    config: Mapping[str, Any], *, image_size: Sequence[int], device: str, steps: int = 8, seconds: float = 8.0
) -> StepCost:
    """Make real training steps on random patches, in a process of its own.

    Args:
        config: a bundle's unresolved ``train.json``.
        image_size: of the median image on the target grid.
        device: where.
        steps: how many are timed, at most; the first one is not.
        seconds: no further step is begun after so many.

    Raises:
        ConfigError: the config cannot be trained with.
    """
    request = {
        "config": dict(config),
        "image_size": list(image_size),
        "device": device,
        "steps": steps,
        "seconds": seconds,
    }
    # not `-m`: the package imports this module, which Python then warns of
    command = [sys.executable, "-c", "from medunet.planning.probe import main; main()"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode == OUT_OF_MEMORY_RC:
        return StepCost(fits=False)
    try:
        answer = json.loads(done.stdout.rstrip().rpartition("\n")[2])
    except ValueError:
        lines = done.stderr.strip().splitlines() or ["no message"]
        logger.debug("%s", done.stderr)
        raise ConfigError("a training step failed", received=lines[-1], remedy="try another --device") from None
    return StepCost(**answer)


def main() -> None:
    """Read a request from standard input, write the answer as one line of JSON to standard output."""
    request = json.load(sys.stdin)
    try:
        cost = _measure(**request)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        cost = StepCost(fits=False)
    sys.stdout.write(f"\n{json.dumps(vars(cost))}\n")


def _measure(config: dict[str, Any], image_size: Sequence[int], device: str, steps: int, seconds: float) -> StepCost:
    where = resolve_device(device)
    if where.type == "cpu":
        keep_freed_memory()  # as the trainer does
    parser = ConfigParser()
    parser.read_config(config)
    parser.update({"device": where})
    network = parser.get_parsed_content("network").train()
    loss_function = parser.get_parsed_content("loss")
    optimizer = parser.get_parsed_content("optimizer")
    dtype, clip = parser["autocast_dtype"], parser["clip_grad_norm"]
    channels, classes = parser["in_channels"], len(parser["label_values"])
    batch, patch = parser["batch_size"], parser["patch_size"]
    torch.manual_seed(0)
    image = torch.rand(batch, channels, *patch, device=where)
    label = torch.randint(classes, (batch, 1, *patch), device=where).to(torch.uint8)
    scaler = torch.amp.GradScaler(where.type, enabled=resolve_dtype(where, dtype) is torch.float16)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(where, dtype):
            output = network(image)
        output = [part.float() for part in output] if isinstance(output, list | tuple) else output.float()
        loss = loss_function(output, label)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), clip or math.inf)
        scaler.step(optimizer)
        scaler.update()

    step()  # chooses algorithms and fills caches
    times: list[float] = []
    while len(times) < steps and sum(times) < seconds:
        times.append(_timed(step, where))
    peak = _peak_bytes(where)

    network.eval()
    strides = network.shapes.total_stride
    window = [math.ceil(n / s) * s for n, s in zip(image_size, strides, strict=True)]
    factor = 1.0
    if math.prod(window) > WHOLE_IMAGE * batch * math.prod(patch):
        factor = HALO * math.prod(window) / math.prod(patch)
        window = list(patch)
    whole = torch.rand(1, channels, *window, device=where)

    def validate() -> None:
        with torch.inference_mode(), autocast(where, dtype):
            network(whole)

    validate()
    step_seconds = sorted(times)[len(times) // 4]  # other programs may have disturbed some
    data, workers = _data_seconds(parser, batch, channels, classes, window), parser.get_parsed_content("num_workers")
    if workers:
        data = max(0.0, data / workers - step_seconds)  # what the network waits for
    return StepCost(
        fits=True,
        peak_bytes=peak,
        step_seconds=step_seconds,
        data_seconds=data,
        image_seconds=factor * min(_timed(validate, where) for _ in range(2)),
    )


def _timed(action: Any, device: torch.device) -> float:
    begun = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))


def _data_seconds(parser: ConfigParser, batch: int, channels: int, classes: int, image_size: Sequence[int]) -> float:
    """Time that one process takes for the random transforms of a batch."""
    if "augment_steps" not in parser:
        return 0.0
    transforms = Compose(parser.get_parsed_content("augment_steps"))
    item = {
        "image": torch.rand(channels, *image_size),
        "label": torch.randint(classes, (1, *image_size)).to(torch.uint8),
    }
    transforms(dict(item))
    return batch * min(_timed(lambda: transforms(dict(item)), torch.device("cpu")) for _ in range(3))
