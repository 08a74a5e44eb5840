"""medunet's networks: equal to a CPU in float64, and their speed beside MONAI's sliding window."""

import copy
import math
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from torch import nn

from medunet.inferers import GridMap, LabelInferer, OverlapTileInferer, restore_labels
from medunet.networks import UNet, presets
from medunet.runtime import FastNetwork, autocast
from scripts.gpu.measure import Job

GIB = float(1 << 30)
CT = (512, 512, 600)
HIPPOCAMPUS = (40, 56, 40)
NARROW, WIDE = [16, 48, 96, 192], [32, 64, 128, 256, 320, 320]
LONGEST = 20.0  # seconds for which one setting is timed


def network(job: Job, channels: list[int], **options: Any) -> UNet:
    """Return a network with random weights and statistics."""
    made = UNet(3, 1, 2, channels=job.size(channels, [4, 8]), **{"norm": "batch", **options})
    for module in made.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return made.eval()


def _relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    difference = value.detach().double().cpu() - expected
    return float(difference.norm() / expected.norm())


def numerics(job: Job) -> None:
    """Relative errors of forward and backward passes, of tiles and of restored labels, against a CPU in float64."""
    for norm in job.size(("batch", "instance"), ("batch",)):
        plain = network(job, NARROW, norm=norm)
        image = torch.randn(1, 1, *job.size((64, 64, 64), (16, 16, 16)))
        with torch.inference_mode():
            expected = copy.deepcopy(plain).double()(image.double())
        for dtype in ("float32", "bfloat16", "float16"):
            for last in (False, True):
                name = f"{norm} norm, {dtype}, channels {'last' if last else 'first'}"
                options = {"dtype": dtype, "channels_last": last}
                job.attempt(name, partial(_forward, job, name, plain, image, expected=expected, **options))
        for dtype in ("float32", "bfloat16"):
            name = f"gradients, {norm} norm, {dtype}"
            job.attempt(name, partial(_gradients, job, name, plain, image, dtype=dtype))
    job.attempt("tiles", lambda: _tiles(job))
    job.attempt("labels", lambda: _labels(job))


@torch.inference_mode()
def _forward(job: Job, name: str, plain: UNet, image: torch.Tensor, *, expected: torch.Tensor, **options: Any) -> None:
    fast = FastNetwork(copy.deepcopy(plain).to(job.device), **options).eval()
    logits = fast(image.to(job.device))
    job.emit(name, _relative(logits, expected), "relative error", form=str(fast.form))


def _gradients(job: Job, name: str, plain: UNet, image: torch.Tensor, *, dtype: str) -> None:
    def gradient(module: nn.Module, image: torch.Tensor) -> torch.Tensor:
        logits = module.train()(image)
        (logits.float() if dtype != "float64" else logits).square().mean().backward()
        return torch.cat([p.grad.flatten().double().cpu() for p in module.parameters() if p.grad is not None])

    expected = gradient(copy.deepcopy(plain).double(), image.double())
    with autocast(job.device, dtype):
        found = gradient(copy.deepcopy(plain).to(job.device), image.to(job.device))
    job.emit(name, _relative(found, expected), "relative error")


@torch.inference_mode()
def _tiles(job: Job) -> None:
    fast = FastNetwork(network(job, NARROW).to(job.device), dtype="float32").eval()
    image = torch.randn(1, 1, *job.size((160, 160, 160), (40, 36, 32)), device=job.device)
    whole = OverlapTileInferer(None)(image, fast)
    tiled = OverlapTileInferer(job.size(128, 24))(image, fast)
    job.emit("tiles against the whole image", float((whole - tiled).abs().max() / whole.std()), "standard deviations")


@torch.inference_mode()
def _labels(job: Job) -> None:
    grid = job.size((160, 160, 100), (20, 18, 16))
    mapping = GridMap(np.diag([0.5, 0.5, 0.8, 1.0]), tuple(2 * n for n in grid), grid)
    logits = torch.randn(5, *grid)
    expected = restore_labels(logits, mapping)
    found = restore_labels(logits.to(job.device), mapping).cpu()
    job.emit("labels that differ from a CPU's", float((found != expected).float().mean()), "of all voxels")


def inference(job: Job) -> None:
    """A large CT and small images: medunet, MONAI's zoo setting, compiled code and CUDA graphs."""
    for name, channels in (("16-192", NARROW), ("32-320", WIDE)):
        job.attempt(name, lambda n=name, c=channels: _volume(job, n, network(job, c).to(job.device)))
    job.attempt("instance norm", lambda: _medunet(job, "32-320, instance norm", _wide_instance(job), _ct(job)))
    job.attempt("small images", lambda: _small(job))
    job.attempt("unet_2015", lambda: _paper(job))


def _wide_instance(job: Job) -> nn.Module:
    return network(job, WIDE, norm="instance").to(job.device)


def _ct(job: Job) -> torch.Tensor:
    return torch.randn(1, 1, *job.size(CT, (32, 32, 24)), device=job.device)


def _volume(job: Job, name: str, plain: nn.Module) -> None:
    image = _ct(job)
    _medunet(job, name, plain, image)
    zoo = SlidingWindowInferer(job.size((96, 96, 96), (16, 16, 16)), sw_batch_size=4, overlap=0.5, mode="constant")
    with torch.inference_mode(), autocast(job.device, "auto"):
        seconds = job.seconds(lambda: zoo(image, plain).argmax(dim=1), repeats=3, warm=1, longest=LONGEST)
    job.emit(f"{name}: MONAI's zoo setting with autocast", seconds, "s")


@torch.inference_mode()
def _medunet(job: Job, name: str, plain: nn.Module, image: torch.Tensor) -> None:
    fast = FastNetwork(plain).eval()
    inferer = LabelInferer(OverlapTileInferer("auto"))
    windows: list[int] = []
    fast.register_forward_pre_hook(lambda _, args: windows.append(math.prod(args[0].shape)))
    affine = torch.eye(4, dtype=torch.float64)
    meta = {"original_affine": affine.numpy(), "spatial_shape": np.asarray(image.shape[2:])}
    if not job.pretend:
        torch.cuda.reset_peak_memory_stats()

    def on_device() -> torch.Tensor:
        return inferer(MetaTensor(image[0], affine=affine, meta=meta)[None], fast)  # type: ignore[no-any-return]

    job.emit(f"{name}: first call", job.seconds(on_device, repeats=1, warm=0), "s")
    windows.clear()
    on_device()
    job.emit(f"{name}: passes, voxels", f"{len(windows)}, {sum(windows) / image.numel():.3f} of the image's")
    seconds = job.seconds(on_device, warm=0, longest=LONGEST)
    job.emit(f"{name}: on the device", seconds, "s")
    job.emit(f"{name}: peak memory", torch.cuda.max_memory_allocated() / GIB, "GiB")
    host = image[0].mul(100).to(torch.int16).cpu().pin_memory()

    def from_memory() -> torch.Tensor:
        moved = host.to(job.device, non_blocking=True).float()
        return inferer(MetaTensor(moved, affine=affine, meta=meta)[None], fast).to(torch.uint8).cpu()  # type: ignore[no-any-return]

    job.emit(f"{name}: from memory to labels in memory", job.seconds(from_memory, longest=LONGEST), "s")


@torch.inference_mode()
def _small(job: Job) -> None:
    plain = network(job, NARROW).to(job.device)
    image = torch.randn(1, 1, *job.size(HIPPOCAMPUS, (16, 16, 16)), device=job.device)
    with autocast(job.device, "auto"):
        job.emit("small image: MONAI, autocast", 1e3 * job.seconds(lambda: plain(image), repeats=100), "ms")
    fast = FastNetwork(plain).eval()
    job.emit("small image: eager", 1e3 * job.seconds(lambda: fast(image), repeats=100), "ms")
    if job.pretend:  # neither can be simulated
        return
    for backend in ("compile", "graphs"):
        compiled = FastNetwork(plain, backend=backend).eval()
        first = job.seconds(lambda compiled=compiled: compiled(image), repeats=1, warm=0)
        job.emit(f"small image: first call, {backend}", first, "s")
        milliseconds = 1e3 * job.seconds(lambda compiled=compiled: compiled(image), repeats=100)
        job.emit(f"small image: {backend}", milliseconds, "ms")


@torch.inference_mode()
def _paper(job: Job) -> None:
    plain = presets.unet_2015().eval() if not job.pretend else UNet(2, 1, 2, channels=[4, 8], padding="valid").eval()
    fast = FastNetwork(plain.to(job.device)).eval()
    image = torch.randn(1, 1, *job.size((512, 512), (44, 44)), device=job.device)
    inferer = OverlapTileInferer("auto")
    seconds = job.seconds(lambda: inferer(image, fast).argmax(dim=1).cpu(), repeats=50)
    job.emit("unet_2015, 512 x 512 (the paper: under a second)", 1e3 * seconds, "ms")
