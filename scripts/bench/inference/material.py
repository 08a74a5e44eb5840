"""Networks and volumes: those of the zoo's spleen bundle and of our unet_3d, trained for a moment.

Two classes, as the zoo's spleen bundle has them; here the foreground is the lungs, which both a real and a synthetic CT
show, so that one training serves all volumes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from monai.networks.layers import Norm
from monai.networks.nets import UNet as MonaiUNet
from monai.transforms import Compose, LoadImaged, ScaleIntensityRanged, Spacingd
from torch import nn

from medunet.datasets import make_phantom, open_dataset
from medunet.inferers import SameSizeShapes
from medunet.io import MedunetReader
from medunet.networks import UNet
from medunet.runtime import autocast, load_weights, save_checkpoint

ZOO_STRIDE = 16
"""Product of the strides of the zoo's spleen network."""

ZOO_HALO = 128
"""Its receptive radius, 122 voxels (down 45, bottom 32, up 45), rounded up to the stride."""

LUNGS_CT = (1, 2)
"""Left and right lung in the labels of CT_Lung1_001; in the phantom the lungs are 1."""

HU_WINDOW = (-1000.0, 400.0)
"""Air to bone in Hounsfield units, mapped to 0..1."""

NOISE_HU = 20.0
"""Noise of the large phantom: repeated voxels would otherwise be more alike than those of any scanner."""

PATCH = 64
"""Edge of the training patches in voxels."""


def zoo_network(classes: int = 2) -> nn.Module:
    """The network of the model zoo's spleen bundle, with what `OverlapTileInferer` asks of a network."""
    network = MonaiUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=classes,
        channels=(16, 32, 64, 128, 256),
        strides=(2, 2, 2, 2),
        num_res_units=2,
        norm=Norm.BATCH,
    )
    described: Any = network
    described.shapes = SameSizeShapes(total_stride=(ZOO_STRIDE,) * 3, halo=(ZOO_HALO,) * 3)
    return network


def plain_network(classes: int = 2) -> UNet:
    """The network of the bundle unet_3d; full resolution in its first level."""
    return UNet(3, 1, classes, channels=[16, 48, 96, 192], norm="batch")


def wide_network(classes: int = 2) -> UNet:
    """32 to 320 channels, as nnU-Net plans a full-resolution network."""
    return UNet(3, 1, classes, channels=[32, 64, 128, 256, 320, 320], norm="batch")


NETWORKS: dict[str, Callable[..., nn.Module]] = {"zoo spleen UNet": zoo_network, "unet_3d": plain_network}
"""By the name that the table shows."""


@dataclass(frozen=True)
class Volume:
    """An image on the network's grid and what is needed to bring labels back from there.

    Args:
        name: for the table.
        image: `(1, *grid)` float32, with the metadata of reading and the operations applied since.
        ref: `(*source)` class indices, or None.
        steps: the transforms that `Invertd` undoes; None where the grid is the source's.
    """

    name: str
    image: MetaTensor
    ref: npt.NDArray[np.integer] | None = None
    steps: Compose | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """Voxels along each axis of the network's grid."""
        return tuple(self.image.shape[1:])

    @property
    def voxels(self) -> int:
        """Voxels that the network has to answer for."""
        return math.prod(self.grid)

    @property
    def source_size(self) -> tuple[int, ...]:
        """Voxels along each axis of the grid that the labels return to."""
        return self.grid if self.steps is None else tuple(int(n) for n in self.image.meta["spatial_shape"])

    @property
    def source_spacing_mm(self) -> tuple[float, ...]:
        """Of the source grid."""
        affine = np.asarray(self.image.meta["original_affine"], dtype=np.float64)
        return tuple(float(n) for n in np.linalg.norm(affine[:3, :3], axis=0))


def read_ct(folder: Path, *, spacing_mm: float | None) -> Volume:
    """CT_Lung1_001 resampled to one spacing, or as it is; the reference holds the lungs."""
    load = LoadImaged(keys=["image", "label"], reader=MedunetReader(), ensure_channel_first=True, image_only=True)
    item = load({"image": str(folder / "ct.nii.gz"), "label": str(folder / "labels.nii.gz")})
    ref = np.isin(np.asarray(item.pop("label")[0]), LUNGS_CT).astype(np.uint8)
    window = ScaleIntensityRanged("image", *HU_WINDOW, 0.0, 1.0, clip=True)
    steps = [window] if spacing_mm is None else [Spacingd("image", pixdim=(spacing_mm,) * 3, mode="bilinear"), window]
    compose = Compose(steps)
    name = "CT_Lung1_001, full size" if spacing_mm is None else f"CT_Lung1_001 at {spacing_mm:g} mm"
    return Volume(name, compose(item)["image"], ref, None if spacing_mm is None else compose)


def made_arrays(size: Sequence[int], cache: Path) -> tuple[Path, Path]:
    """Files of a synthetic CT in Hounsfield units (int16) and its organs (uint8), drawn at half size and enlarged."""
    stem = "made_" + "x".join(map(str, size))
    image, label = cache / f"{stem}.npy", cache / f"{stem}_label.npy"
    if not (image.is_file() and label.is_file()):
        cache.mkdir(parents=True, exist_ok=True)
        phantom = make_phantom("ct", seed=(4, *size), size=[max(16, n // 2) for n in size])
        # sizes of phantoms vary by a tenth: the nearest voxel, by index
        index = np.ix_(*(np.arange(n) * old // n for n, old in zip(size, phantom.image.shape, strict=True)))
        np.save(label, phantom.label[index].astype(np.uint8))
        enlarged = np.rint(phantom.image).astype(np.int16)[index]
        rng = np.random.default_rng(0)
        for x in range(size[0]):  # a plane at a time: the noise of the whole would take eight bytes a voxel
            enlarged[x] += np.rint(rng.normal(0, NOISE_HU, enlarged[x].shape)).astype(np.int16)
        np.save(image, enlarged)
    return image, label


def made_volume(size: Sequence[int], cache: Path) -> Volume:
    """A synthetic CT on its own grid."""
    image, label = made_arrays(size, cache)
    return Volume(
        "made " + "x".join(map(str, size)),
        as_image(window_hu(np.load(image))),
        (np.load(label) == LUNGS_CT[0]).astype(np.uint8),
    )


def window_hu(hounsfield: npt.NDArray[np.integer]) -> torch.Tensor:
    """`(1, *spatial)` float32 from 0 to 1, without a second copy."""
    low, high = HU_WINDOW
    image = torch.from_numpy(np.asarray(hounsfield, dtype=np.float32))
    return image.sub_(low).div_(high - low).clamp_(0, 1)[None]


def as_image(image: torch.Tensor) -> MetaTensor:
    """A MetaTensor whose grid is its source's."""
    affine = torch.eye(image.ndim, dtype=torch.float64)
    meta = {"original_affine": affine.numpy(), "spatial_shape": np.asarray(image.shape[1:])}
    return MetaTensor(image, affine=affine, meta=meta)


def run_network(run: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Network of a trained run with its weights, and its inference config."""
    parser = _parser(run)
    network = parser.get_parsed_content("network_def")
    load_weights(network, run / "models" / "model.pt")
    return network.eval(), json.loads((run / "configs" / "inference.json").read_text())


def run_volumes(run: Path, data: Path, count: int) -> list[Volume]:
    """The first `count` validation cases of fold 0 (every fifth case), preprocessed as the run does."""
    parser = _parser(run)
    preprocessing = parser.get_parsed_content("preprocessing")
    values = parser.get_parsed_content("label_values")
    load = LoadImaged(keys="label", reader=MedunetReader(), ensure_channel_first=True, image_only=True)
    volumes = []
    for case in open_dataset(data).cases[::5][:count]:
        item = preprocessing({"image": str(case.images[0])})
        label = np.asarray(load({"label": str(case.label)})["label"][0])
        ref = sum((label == value) * index for index, value in enumerate(values)).astype(np.uint8)
        volumes.append(Volume(case.name, item["image"], ref, preprocessing))
    return volumes


def _parser(run: Path) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(run / "configs" / "inference.json"))
    parser.update({"bundle_root": str(run), "device": torch.device("cpu")})
    return parser


def trained(name: str, volumes: Sequence[Callable[[], Volume]], work: Path, *, steps: int) -> nn.Module:
    """A network by name, trained on patches of `volumes` and of phantoms for `steps` steps; kept under `work`."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    path = work / f"{name.replace(' ', '_')}_{'real' if volumes else 'made'}_{steps}.pt"
    if path.is_file():
        load_weights(network, path)
        return network.eval()
    pairs = [(volume.image.as_tensor()[0], _on_grid(volume)) for volume in (load() for load in volumes)]
    for seed in range(6):
        phantom = make_phantom("ct", seed=seed, size=(112, 112, 96))
        noisy = phantom.image + np.random.default_rng(seed).normal(0, NOISE_HU, phantom.image.shape)
        pairs.append((window_hu(noisy)[0], torch.from_numpy((phantom.label == LUNGS_CT[0]).astype(np.uint8))))
    rng = np.random.default_rng(0)
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=max(steps, 2))
    network.train()
    for _ in range(steps):
        patches = [_patch(*pairs[rng.integers(len(pairs))], rng) for _ in range(4)]
        image, label = (torch.stack(part)[:, None] for part in zip(*patches, strict=True))
        with autocast(torch.device("cpu"), "auto"):
            logits = network(image)
        optimizer.zero_grad()
        loss(logits.float(), label).backward()
        optimizer.step()
        schedule.step()
    save_checkpoint({"model": network.state_dict()}, path)
    return network.eval()


def _on_grid(volume: Volume) -> torch.Tensor:
    """The reference on the network's grid, nearest."""
    if volume.ref is None:
        raise ValueError(f"{volume.name} has no labels to train with")
    ratio = [n / m for n, m in zip(volume.source_size, volume.grid, strict=True)]
    index = [
        np.minimum(np.rint(np.arange(m) * r).astype(int), n - 1)
        for m, r, n in zip(volume.grid, ratio, volume.source_size, strict=True)
    ]
    return torch.from_numpy(volume.ref[np.ix_(*index)])


def _patch(image: torch.Tensor, label: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    start = [int(rng.integers(0, n - PATCH + 1)) for n in image.shape]
    window = tuple(slice(s, s + PATCH) for s in start)
    return image[window], label[window]


def with_classes(network: UNet, classes: int) -> UNet:
    """The same network with a wider head: the further classes answer a little less than a trained one, everywhere.

    Labels stay as smooth as those of the trained network, while every class is computed, compared and interpolated.
    """
    head = network.head
    wide = type(head)(head.in_channels, classes, head.kernel_size, padding=head.padding)
    with torch.no_grad():
        for index in range(classes):
            source = index % network.out_channels
            wide.weight[index].copy_(head.weight[source])
            wide.bias[index].copy_(head.bias[source] - (0.5 if index >= network.out_channels else 0.0))
    network.head, network.out_channels = wide, classes
    return network
