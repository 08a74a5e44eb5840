"""Cost of a training step: estimated from the network, or measured by a few steps in a separate process.

A separate process has its own peak memory, and the system may kill it if a step does not fit.
"""

import json
import logging
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from medunet.errors import ConfigError
from medunet.networks import UNet
from medunet.runtime import autocast, keep_freed_memory, resolve_device, resolve_dtype
from medunet.runtime.cuda import is_out_of_memory

logger = logging.getLogger(__name__)

STATE_BYTES = 12  # per weight: itself, its gradient and its momentum, in float32
# factor for memory beside what the backward pass needs: gradients, reordered copies, and what the allocator keeps;
# measured as 1.1 to 1.4 on a CPU
WORKSPACE = 1.4
MAX_STEPS, MAX_SECONDS = 8, 8.0  # no further step is timed after these
PROCESS_BYTES = 900 << 20  # of a process that has imported torch and MONAI, on a CPU
WHOLE_IMAGE = 4  # the cost of images of more voxels than this many batches is estimated from one patch
HALO = 1.5  # factor for the voxels that tiles of such images share
OBJECT_EDGE = 24  # voxels of the objects of which targets are made for timing
OUT_OF_MEMORY_RC = -9  # exit code of a process that the system killed, mostly for lack of memory


@dataclass(frozen=True)
class StepCost:
    """Measured cost of a step."""

    fits: bool  # false if memory ran out; the other figures are then 0
    peak_bytes: int = 0  # peak memory: of the whole process on a CPU, of torch's allocator on CUDA
    step_seconds: float = 0.0  # forward pass, backward pass and optimizer
    data_seconds: float = 0.0  # random transforms of a batch, as far as the network waits for them
    image_seconds: float = 0.0  # forward pass over the median image, as in validation


def training_bytes(network_def: Mapping[str, Any], window: Sequence[int], *, itemsize: int, cpu: bool) -> int:
    """Estimate the peak memory of a step on a window `(B, C, *spatial)` from the tensors that autograd would save."""
    saved: dict[int, torch.Tensor] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.device("meta"):
        network = UNet(**network_def).train()
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            output = network(torch.empty(tuple(window)))
    own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    maps = [tensor for key, tensor in saved.items() if key not in own]
    total = sum(t.numel() * (itemsize if t.is_floating_point() else t.element_size()) for t in maps)
    logits = output[0] if isinstance(output, list | tuple) else output
    loss = 8 * logits.numel() * 4  # float32: logits, softmax, one-hot labels, products, and their gradients
    weights = sum(parameter.numel() for parameter in network.parameters()) * STATE_BYTES
    return int(WORKSPACE * total) + loss + weights + (PROCESS_BYTES if cpu else 0)


def measure_step(config: Mapping[str, Any], *, image_size: Sequence[int], device: str) -> StepCost:
    """Run training steps of an unresolved `train.json` on random patches in a separate process."""
    request = {"config": config, "image_size": list(image_size), "device": device}
    # not `-m`, because the package imports this module and Python warns about that
    command = [sys.executable, "-c", "from medunet.planning.probe import main; main()"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode == OUT_OF_MEMORY_RC:
        return StepCost(fits=False)
    try:
        return StepCost(**json.loads(done.stdout.rstrip().rpartition("\n")[2]))
    except ValueError:
        lines = done.stderr.strip().splitlines() or ["no message"]
        logger.debug("%s", done.stderr)
        raise ConfigError("a training step failed", received=lines[-1], remedy="try another --device") from None


def main() -> None:
    """Read a request from standard input, and write the cost as one line of JSON to standard output."""
    request = json.load(sys.stdin)
    try:
        cost = time_steps(**request)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        cost = StepCost(fits=False)
    sys.stdout.write(f"\n{json.dumps(asdict(cost))}\n")


def time_steps(config: dict[str, Any], image_size: Sequence[int], device: str) -> StepCost:
    """Run the steps of :func:`measure_step` in this process; an error ends them if memory runs out."""
    target = resolve_device(device)
    if target.type == "cpu":
        keep_freed_memory()  # as the trainer does
    parser = ConfigParser()
    parser.read_config(config)
    parser.update({"device": target})
    network = parser.get_parsed_content("network").train()
    loss_function = parser.get_parsed_content("loss")
    optimizer = parser.get_parsed_content("optimizer")
    dtype, clip = parser["autocast_dtype"], parser["clip_grad_norm"]
    channels, classes = parser["in_channels"], len(parser["label_values"])
    batch, patch = parser["batch_size"], parser["patch_size"]
    torch.manual_seed(0)
    image = torch.rand(batch, channels, *patch, device=target)
    target_steps = parser.get_parsed_content("target_steps") if parser.get("instances") else []
    item = Compose(target_steps)({"label": _label(parser, classes, patch)})
    label = item["label"].expand(batch, 1, *patch).to(target)
    extra = [item[key].expand(batch, 1, *patch).to(target) for key in parser.get("loss_keys", ()) if key in item]
    scaler = torch.amp.GradScaler(target.type, enabled=resolve_dtype(target, dtype) is torch.float16)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(target, dtype):
            output = network(image)
        output = [part.float() for part in output] if isinstance(output, list | tuple) else output.float()
        scaler.scale(loss_function(output, label, *extra)).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), clip or math.inf)
        scaler.step(optimizer)
        scaler.update()

    step()  # chooses algorithms and fills caches
    durations: list[float] = []
    while len(durations) < MAX_STEPS and sum(durations) < MAX_SECONDS:
        durations.append(_seconds(step, target))
    peak = _peak_bytes(target)

    network.eval()
    window = [math.ceil(n / s) * s for n, s in zip(image_size, network.shapes.total_stride, strict=True)]
    factor = 1.0
    if math.prod(window) > WHOLE_IMAGE * batch * math.prod(patch):
        factor, window = HALO * math.prod(window) / math.prod(patch), list(patch)
    whole = torch.rand(1, channels, *window, device=target)

    def validate() -> None:
        with torch.inference_mode(), autocast(target, dtype):
            network(whole)

    validate()
    step_seconds = sorted(durations)[len(durations) // 4]  # other programs may disturb some steps
    data_seconds = 0.0
    if "augment_steps" in parser:
        transforms = Compose([*parser.get_parsed_content("augment_steps"), *target_steps])
        case = {"image": torch.rand(channels, *window), "label": _label(parser, classes, window)}
        transforms(dict(case))
        cpu = torch.device("cpu")  # where one process runs them
        data_seconds = batch * min(_seconds(lambda: transforms(dict(case)), cpu) for _ in range(3))
        if workers := parser.get_parsed_content("num_workers"):
            data_seconds = max(0.0, data_seconds / workers - step_seconds)  # what the network waits for
    image_seconds = factor * min(_seconds(validate, target) for _ in range(2))
    return StepCost(True, peak, step_seconds, data_seconds, image_seconds)


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))


def _label(parser: ConfigParser, classes: int, size: Sequence[int]) -> torch.Tensor:
    """Return a label of random classes, or of cubes that are objects."""
    if not parser.get("instances"):
        return torch.randint(classes, (1, *size)).to(torch.uint8)
    axes = torch.meshgrid(*(torch.arange(n) // OBJECT_EDGE for n in size), indexing="ij")
    numbers = sum(index * 100**axis for axis, index in enumerate(axes)) + torch.ones(tuple(size), dtype=torch.int32)
    return numbers[None] if classes == 2 else torch.stack([numbers, torch.ones_like(numbers)])
