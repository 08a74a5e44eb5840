"""The systems that `scripts.bench.inference` compares: a preprocessed image in, labels on the source grid out."""

from __future__ import annotations

import copy
import ctypes
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Activations, AsDiscrete, Invertd
from torch import nn

from medunet.inferers import LabelInferer, OverlapTileInferer
from medunet.runtime import FastNetwork, keep_freed_memory
from scripts.bench import nnunet
from scripts.bench.measure import synchronise

from .material import Volume

ZOO_ROI = (96, 96, 96)
NNUNET_PATCH = (128, 128, 128)
"""What nnU-Net plans for a CT of this spacing."""

WARM_UP = 96
"""Edge of the crop on which a system runs once, untimed, so that kernels are chosen and libraries loaded."""


MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -4, -3, -1
"""Options of glibc's mallopt."""


def as_programs_have_it() -> None:
    """Undo medunet's `keep_freed_memory` for the others: as glibc stands after a while in a process of its own."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((MMAP_MAX, 65536), (MMAP_THRESHOLD, 32 << 20), (TRIM_THRESHOLD, 64 << 20)):
            libc.mallopt(option, value)
        libc.malloc_trim(0)


class Clock:
    """Adds up the time that a module spends in its forward pass."""

    def __init__(self, module: nn.Module) -> None:
        self.seconds = 0.0
        self.calls = 0
        self._begun = 0.0
        self._hooks = [module.register_forward_pre_hook(self._start), module.register_forward_hook(self._stop)]

    def reset(self) -> None:
        self.seconds, self.calls = 0.0, 0

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _start(self, *_: Any) -> None:
        synchronise()
        self._begun = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        synchronise()
        self.seconds += time.perf_counter() - self._begun
        self.calls += 1


@dataclass
class Answer:
    """What a system said of one volume, and how long it took: `restore` from logits on the network's grid to labels."""

    labels: torch.Tensor
    restore: float | None = None


class System(ABC):
    """One way to run a network over a volume.

    Args:
        name: for the table.
        network: trained, in evaluation mode; each system has a copy of its own.
        device: where it runs.
    """

    full_warm_up = False
    """Whether the first call on a volume chooses a backend, so that it is timed apart."""

    def __init__(self, name: str, network: nn.Module, device: torch.device) -> None:
        self.name = name
        self.device = device
        self.network = copy.deepcopy(network).eval().to(device)

    @abstractmethod
    def labels(self, volume: Volume) -> Answer:
        """Labels on the volume's source grid."""

    def clocked(self) -> nn.Module:
        """The module whose forward pass counts as the network."""
        return self.network

    def facts(self, volume: Volume) -> dict[str, Any]:
        """What the system decided for this volume."""
        return {}


class Zoo(System):
    """MONAI's sliding window as the zoo's spleen bundle sets it, and that bundle's postprocessing."""

    def __init__(self, name: str, network: nn.Module, device: torch.device, *, roi: Sequence[int] = ZOO_ROI) -> None:
        super().__init__(name, network, device)
        self.inferer = SlidingWindowInferer(roi_size=tuple(roi), sw_batch_size=4, overlap=0.5, mode="constant")

    def labels(self, volume: Volume) -> Answer:
        logits = self.inferer(volume.image[None].to(self.device), self.network)[0]
        synchronise()
        begun = time.perf_counter()
        pred = MetaTensor(logits).copy_meta_from(volume.image) if volume.steps is not None else logits
        pred = Activations(softmax=True)(pred)
        if volume.steps is not None:
            invert = Invertd("pred", volume.steps, orig_keys="image", nearest_interp=False, to_tensor=True)
            pred = invert({"image": volume.image, "pred": pred})["pred"]
        labels = AsDiscrete(argmax=True)(pred)[0]
        return Answer(labels.cpu(), time.perf_counter() - begun)


class Medunet(System):
    """medunet: whole volume or fewest exact tiles, labels brought back without logits there."""

    full_warm_up = True

    def __init__(
        self,
        name: str,
        network: nn.Module,
        device: torch.device,
        *,
        dtype: str = "auto",
        backend: str = "eager",
        tiles: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(name, network, device)
        self.fast = FastNetwork(self.network, dtype=dtype, backend=backend)
        self.fast.eval()
        self.tiles = OverlapTileInferer(**{"tile_size": "auto", **(tiles or {})})
        self.inferer = LabelInferer(self.tiles)

    def labels(self, volume: Volume) -> Answer:
        return Answer(self.inferer(volume.image[None].to(self.device), self.fast)[0, 0].cpu())

    def clocked(self) -> nn.Module:
        return self.fast

    def facts(self, volume: Volume) -> dict[str, Any]:
        return {"choice": None if self.fast.form is None else asdict(self.fast.form)}


class NNUNetSystem(System):
    """nnU-Net's predictor and export."""

    def __init__(
        self,
        name: str,
        network: nn.Module,
        device: torch.device,
        *,
        classes: int,
        mirroring: bool,
        patch_size: tuple[int, ...] = NNUNET_PATCH,
        spacing_mm: tuple[float, ...] = (1.5, 1.5, 1.5),
    ) -> None:
        super().__init__(name, network, device)
        self.nnunet = nnunet.NNUNet(
            self.network, classes=classes, patch_size=patch_size, spacing_mm=spacing_mm, mirroring=mirroring
        )

    def labels(self, volume: Volume) -> Answer:
        labels, seconds = self.nnunet.labels(
            volume.image.as_tensor(), source_size=volume.source_size, source_spacing_mm=volume.source_spacing_mm
        )
        return Answer(torch.from_numpy(np.ascontiguousarray(labels)), seconds)


@dataclass
class Row:
    """Measurements of one system on one volume (or on several small ones, added up)."""

    system: str
    network: str
    volume: str
    voxels: int
    seconds: list[float] = field(default_factory=list)
    network_seconds: list[float] = field(default_factory=list)
    restore_seconds: list[float] = field(default_factory=list)
    first_seconds: float | None = None
    calls: int = 0
    dice: list[float] = field(default_factory=list)
    disagreement: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    skipped: str | None = None
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Lists of seconds and what follows from them."""
        document = {key: value for key, value in asdict(self).items() if value not in (None, [], {})}
        if self.seconds:
            total = statistics.median(self.seconds)
            document["median_seconds"] = total
            document["voxels_per_second"] = self.voxels / total
            inside = statistics.median(self.network_seconds)
            document["share_outside_network"] = 1 - inside / total
        return document


@torch.inference_mode()
def compare(
    systems: Sequence[System],
    volumes: Sequence[Volume],
    *,
    title: str,
    network: str,
    repeats: int,
    longest: float,
    enough: float,
    rates: dict[str, float],
    report: Callable[[Row], None],
) -> list[Row]:
    """Time systems in turns on the same volumes, so that a busy machine slows all alike.

    Args:
        systems: in the order of the turns; the second is what the labels of the others are compared with.
        volumes: one volume, or several small ones that count as one.
        title: name of the volumes in the table.
        network: name of the network in the table.
        repeats: rounds.
        longest: a system that would need more seconds for a round, by its rate on earlier volumes, is skipped.
        enough: a system that has been timed for so many seconds is not timed again.
        rates: seconds a voxel of each system, read and updated.
        report: called with every row that is complete.
    """
    voxels = sum(volume.voxels for volume in volumes)
    rows = {system.name: Row(system.name, network, title, voxels) for system in systems}
    answers: dict[str, list[torch.Tensor]] = {}
    for round_number in range(repeats):
        for system in systems:
            row = rows[system.name]
            expected = rates.get(system.name, 0.0) * voxels
            if row.error or sum(row.seconds) > enough:
                continue
            if expected > longest:
                row.skipped = f"about {expected:.0f} s expected from the rate on the volume before"
                continue
            try:
                if round_number == 0:
                    _warm_up(system, volumes, row)
                answers[system.name] = _timed(system, volumes, row)
            except (RuntimeError, MemoryError, ValueError, TypeError, AttributeError) as failure:
                row.error = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"[:300]
                continue
            rates[system.name] = statistics.median(row.seconds) / voxels
    reference = next((answers[system.name] for system in systems[1:] if system.name in answers), None)
    for system in systems:
        row = rows[system.name]
        if system.name in answers:
            row.facts = system.facts(volumes[0])
            row.dice = _mean_dice(answers[system.name], volumes)
            if reference is not None:
                pairs = list(zip(answers[system.name], reference, strict=True))
                row.disagreement = sum(int((a != b).sum()) for a, b in pairs) / sum(b.numel() for _, b in pairs)
        report(row)
    return list(rows.values())


def _warm_up(system: System, volumes: Sequence[Volume], row: Row) -> None:
    begun = time.perf_counter()
    if system.full_warm_up:
        for volume in volumes:
            system.labels(volume)
        row.first_seconds = time.perf_counter() - begun
    else:
        window = (slice(None), *(slice(0, WARM_UP) for _ in volumes[0].grid))
        crop = volumes[0].image.as_tensor()[window].contiguous()
        whole = volumes[0].image
        affine = np.asarray(whole.meta["original_affine"])
        meta = {"original_affine": affine, "spatial_shape": np.asarray(crop.shape[1:])}
        system.labels(Volume("crop", MetaTensor(crop, affine=torch.as_tensor(whole.affine), meta=meta)))


def _timed(system: System, volumes: Sequence[Volume], row: Row) -> list[torch.Tensor]:
    clock = Clock(system.clocked())
    restore = None
    labels = []
    if isinstance(system, Medunet):
        keep_freed_memory()
    else:
        as_programs_have_it()
    try:
        synchronise()
        begun = time.perf_counter()
        for volume in volumes:
            answer = system.labels(volume)
            labels.append(answer.labels.to(torch.uint8))
            if answer.restore is not None:
                restore = (restore or 0.0) + answer.restore
        row.seconds.append(time.perf_counter() - begun)
    finally:
        clock.close()
    row.network_seconds.append(clock.seconds)
    row.calls = clock.calls
    if restore is not None:
        row.restore_seconds.append(restore)
    return labels


def _mean_dice(labels: list[torch.Tensor], volumes: Sequence[Volume]) -> list[float]:
    """Dice of each class over all volumes, averaged over the volumes that hold it."""
    sums: Counter[int] = Counter()
    counts: Counter[int] = Counter()
    for pred, volume in zip(labels, volumes, strict=True):
        if volume.ref is None:
            continue
        ref = torch.from_numpy(volume.ref)
        for value in range(1, int(max(ref.max(), pred.max())) + 1):
            found, wanted = pred == value, ref == value
            both, total = int((found & wanted).sum()), int(found.sum() + wanted.sum())
            if total:
                sums[value] += 2 * both / total
                counts[value] += 1
    return [sums[value] / counts[value] for value in sorted(sums)]
