"""PyTorch's operations alone: the device and its ceilings, tensors of more than 2^31 elements, convolutions."""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import functional as F

from scripts.gpu.measure import Job, simulated

GIB = float(1 << 30)
LAST = torch.channels_last_3d
PART_SECONDS = 25.0  # limit of each operation of `limit`, in a process of its own


def facts(job: Job) -> None:
    """What the machine is, and the ceilings that other numbers are compared with."""
    job.emit("device", torch.cuda.get_device_name())
    job.emit("compute capability", ".".join(map(str, torch.cuda.get_device_capability())))
    job.emit("free memory", torch.cuda.mem_get_info()[0] / GIB, "GiB")
    versions = {"torch": torch.__version__, "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    job.emit("versions", " ".join(f"{name} {value}" for name, value in versions.items()))
    job.emit("host", f"{platform.python_version()}, {os.cpu_count()} cores")
    job.emit("Triton, C++ compiler", f"{bool(find_spec('triton'))}, {shutil.which('g++')}")
    size = job.size(1 << 30, 1 << 12)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=job.device)
    target = torch.empty_like(source)
    job.emit("copy on the device", 2 * size / job.seconds(lambda: target.copy_(source)) / 1e9, "GB/s")
    host = torch.zeros(size, dtype=torch.uint8)
    for name, memory in (("pageable", host), ("pinned", host.pin_memory())):
        up = job.seconds(lambda memory=memory: target.copy_(memory, non_blocking=True), repeats=5)
        down = job.seconds(lambda memory=memory: memory.copy_(target, non_blocking=True), repeats=5)
        job.emit(f"to the device, {name}", size / up / 1e9, "GB/s")
        job.emit(f"from the device, {name}", size / down / 1e9, "GB/s")
    edge = job.size(8192, 16)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        a, b = (torch.randn(edge, edge, device=job.device).to(dtype) for _ in range(2))
        job.emit(f"matrix product {dtype}", 2 * edge**3 / job.seconds(lambda a=a, b=b: a @ b) / 1e12, "TFLOP/s")
    one = torch.zeros(1, device=job.device)
    count = job.size(1000, 2)
    seconds = job.seconds(lambda: [one.add_(1) for _ in range(count)])
    job.emit("launch of a kernel", seconds / count * 1e6, "us")


def _noise(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return noise whose last planes differ from the others, in bfloat16, channels-last."""
    image = torch.randn(shape, dtype=torch.bfloat16, device=device).contiguous(memory_format=LAST)
    image[:, :, -2:] += 4
    return image


def _conv(image: torch.Tensor) -> torch.Tensor:
    weight = torch.ones(image.shape[1], image.shape[1], 3, 3, 3, dtype=image.dtype, device=image.device)
    return F.conv3d(image, weight.div_(27 * image.shape[1]).contiguous(memory_format=LAST), padding=1)


def _transposed(image: torch.Tensor) -> torch.Tensor:
    weight = torch.ones(image.shape[1], image.shape[1] // 8, 2, 2, 2, dtype=image.dtype, device=image.device)
    return F.conv_transpose3d(image, weight, stride=2)


OPERATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "max_pool3d": lambda image: F.max_pool3d(image, 2),
    "conv3d": _conv,
    "conv_transpose3d": _transposed,
    "instance_norm": F.instance_norm,
    "relu": F.relu,
    "cat": lambda image: torch.cat([image, image], dim=1),
    "argmax": lambda image: image.argmax(dim=1, keepdim=True),
    "interpolate": lambda image: F.interpolate(image, scale_factor=0.5, mode="trilinear", align_corners=False),
}


def limit(job: Job) -> None:
    """Which operations are wrong on tensors of more than 2^31 elements, each in a process of its own."""
    for name in OPERATIONS:
        if job.pretend and name != "relu":  # one process shows that it can be started
            job.emit(f"{name} beyond 2^31", probe(name, job.device, pretend=True))
            continue
        code = f"from scripts.gpu.kernels import print_probe; print_probe({name!r}, {job.pretend})"
        try:
            limits = job.size(PART_SECONDS, 300.0)
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=limits, check=False
            )
            last = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"])[-1]
        except subprocess.TimeoutExpired:
            last = "out of time"
        job.emit(f"{name} beyond 2^31", last)


def print_probe(name: str, pretend: bool) -> None:
    """Print the result of `probe`; a simulated device starts in this process."""
    with simulated() if pretend else contextlib.nullcontext():
        print(probe(name, torch.device("cuda", 0), pretend=pretend))


@torch.inference_mode()
def probe(name: str, device: torch.device, *, pretend: bool) -> str:
    """Return whether an operation on one large tensor equals the same on a crop of its end."""
    # 32 x 264 x 512 x 512: 2.2e9 elements, 4.4 GB
    shape, planes = ((1, 8, 24, 8, 8), 8) if pretend else ((1, 32, 264, 512, 512), 32)
    return _compare(OPERATIONS[name], _noise(shape, device), planes)


def _compare(work: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, planes: int) -> str:
    result = work(image)
    if work is F.instance_norm:  # of whole channels
        std, mean = torch.std_mean(image[:, :1].double(), dim=(2, 3, 4), correction=0, keepdim=True)
        crop = ((image[:, :1, -planes:].double() - mean) / std).to(image.dtype)
        result = result[:, :1]
    else:
        crop = work(image[:, :, -planes:].contiguous(memory_format=LAST))
    inner = crop.shape[2] // 2  # away from the cut
    difference = (result[:, :, -inner:].float() - crop[:, :, -inner:].float()).abs().max()
    torch.cuda.synchronize()
    return "ok" if float(difference) < 0.1 else f"WRONG: differs by {float(difference):.3g}"


def conv(job: Job) -> None:
    """Convolutions of a U-Net by level, number format, memory layout and cuDNN's benchmark mode."""
    levels = job.size([(32, 128), (64, 64), (128, 32), (256, 16), (320, 8)], [(4, 8)])
    for channels, edge in levels:
        flops = 2 * 2 * 27 * channels**2 * edge**3
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for layout in (torch.contiguous_format, LAST):
                for benchmark in (False, True):
                    words = f"{channels} channels, {edge}^3, {str(dtype)[6:]}, {'last' if layout is LAST else 'first'}"
                    torch.backends.cudnn.benchmark = benchmark
                    seconds = _conv_seconds(job, channels, edge, dtype, layout)
                    job.emit(f"{words}{', benchmark' if benchmark else ''}", flops / seconds / 1e12, "TFLOP/s")


def _conv_seconds(job: Job, channels: int, edge: int, dtype: torch.dtype, layout: Any) -> float:
    options: dict[str, Any] = {"device": job.device, "dtype": dtype}
    image = torch.randn(2, channels, edge, edge, edge, **options).contiguous(memory_format=layout)
    weight = torch.randn(channels, channels, 3, 3, 3, **options).contiguous(memory_format=layout)
    with torch.inference_mode():
        return job.seconds(lambda: F.conv3d(image, weight, padding=1), longest=0.5)
