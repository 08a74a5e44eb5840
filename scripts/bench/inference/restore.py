"""Section `restore`: labels of 14 classes back on the source grid, by three ways."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.nn import functional as F

from medunet.datasets import make_phantom
from medunet.inferers import GridMap, restore_labels
from scripts.bench import nnunet
from scripts.bench.measure import synchronise

from .options import Options, Put

CLASSES = 14
"""As in the figures that nnU-Net's users report."""

WAYS = ("medunet, boundary only", "torch, every logit", "nnU-Net's export")
"""Of bringing labels back to the source grid."""

CASES: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {
    "CT 512x512x134 at 0.98x0.98x3 mm": ((512, 512, 134), (0.9766, 0.9766, 3.0)),
    "CT 512x512x300 at 0.8x0.8x1 mm": ((512, 512, 300), (0.8, 0.8, 1.0)),
}
"""Size and spacing of the source."""

GRID_MM = 1.5
"""Spacing of the network's grid."""


def restore(options: Options, put: Put) -> None:
    """Logits of 14 classes at 1.5 mm, on the device, back to the source grid: labels on the CPU, by three ways."""
    for name, (size, spacing) in CASES.items():
        if not options.wants(*(f"{name} | {way}" for way in WAYS)):
            continue
        source = tuple(n // 8 for n in size) if options.quick else size
        grid = tuple(round(n * s / GRID_MM) for n, s in zip(source, spacing, strict=True))
        logits = organ_logits(grid).to(options.device)
        fits = [g / n for g, n in zip(grid, source, strict=True)]
        # nnU-Net and torch's align_corners=False align the outer faces of both grids
        to_grid = np.diag([*fits, 1.0])
        to_grid[:3, 3] = [(f - 1) / 2 for f in fits]
        spacing_grid = tuple(s / f for s, f in zip(spacing, fits, strict=True))
        ways: dict[str, Callable[[], torch.Tensor]] = {
            WAYS[0]: partial(_restored, logits, GridMap(to_grid, source, grid)),
            WAYS[1]: partial(_interpolated, logits, source),
        }
        if nnunet.available():
            ways[WAYS[2]] = _nnunet_export(logits.half(), source, spacing, spacing_grid)
        answers: dict[str, torch.Tensor] = {}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way, work in ways.items():
                if sum(seconds[way]) < options.enough:
                    synchronise()
                    begun = time.perf_counter()
                    answers[way] = torch.as_tensor(np.asarray(work()))
                    seconds[way].append(time.perf_counter() - begun)
        reference = answers[WAYS[1]]
        for way, answer in answers.items():
            row = {
                "case": name,
                "device": options.device.type if way != WAYS[2] else "cpu",
                "way": way,
                "grid": grid,
                "source": source,
                "classes": CLASSES,
                "seconds": seconds[way],
                "median_seconds": statistics.median(seconds[way]),
                "voxels_unlike_torch": int((answer.long() != reference.long()).sum()),
            }
            put(f"{name} | {way}", row)


def organ_logits(grid: tuple[int, ...]) -> torch.Tensor:
    """`(14, *grid)` float32: the phantom's organs, left and right and by height, blurred as a network's answer is."""
    phantom = make_phantom("ct", seed=14, size=[max(16, n // 2) for n in grid])
    index = np.ix_(*(np.arange(n) * old // n for n, old in zip(grid, phantom.label.shape, strict=True)))
    organ = phantom.label[index].astype(np.int16)
    side = (np.arange(grid[0]) >= grid[0] // 2)[:, None, None]
    height = (np.arange(grid[2]) * 6 // grid[2])[None, None, :]
    numbers = {"lungs": 1 + side, "kidneys": 3 + side, "liver": 5 + side, "spleen": 7, "spine": 8 + height}
    label = np.zeros(grid, dtype=np.int16)
    for name, number in numbers.items():
        label = np.where(organ == phantom.labels[name], number, label)
    # a network's logits change over a voxel or two at a border and keep their distance elsewhere
    planes = [gaussian_filter((label == value).astype(np.float32), 1.0) for value in range(CLASSES)]
    return torch.from_numpy(np.stack(planes)).mul_(16).sub_(8)


def _restored(logits: torch.Tensor, grid: GridMap) -> torch.Tensor:
    """As `LabelInferer` does: decided where the logits are, part by part into labels on the CPU."""
    return restore_labels(logits, grid, out=torch.zeros(grid.source_size, dtype=torch.uint8))


def _interpolated(logits: torch.Tensor, source: tuple[int, ...]) -> torch.Tensor:
    full = F.interpolate(logits[None], size=source, mode="trilinear", align_corners=False)[0]
    return full.argmax(dim=0).cpu()


def _nnunet_export(
    logits: torch.Tensor, source: tuple[int, ...], spacing: tuple[float, ...], spacing_grid: tuple[float, ...]
) -> Callable[[], Any]:
    system = nnunet.NNUNet(
        nn.Conv3d(1, CLASSES, 1),
        classes=CLASSES,
        patch_size=(128, 128, 128),
        spacing_mm=spacing_grid,
        mirroring=False,
    )
    # nnU-Net resamples on the CPU, wherever its network ran
    return lambda: system.export(logits.cpu(), source_size=source, source_spacing_mm=spacing)
