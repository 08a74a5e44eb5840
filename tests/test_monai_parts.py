"""Each part works alone in a plain MONAI script: pickled, in workers, seeded, lazy, inside DDP and compiled."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, from_engine
from monai.losses import DiceCELoss as MonaiDiceCELoss
from monai.networks.nets import BasicUNet
from monai.networks.nets import UNet as MonaiUNet
from monai.transforms import AsDiscreted, Compose, EnsureTyped, Invertd, LoadImaged, Orientationd, Spacingd
from monai.utils import set_determinism
from torch.nn.parallel import DistributedDataParallel

from medunet.inferers import LabelInferer, MirrorInferer, OverlapTileInferer, ScaleInferer
from medunet.io import LoadLabeld, MedunetReader, write_volume
from medunet.losses import BorderWeightedCELoss, DeepSupervisionLoss, DiceCELoss, DistanceLoss, RegionDiceCELoss
from medunet.networks import UNet
from medunet.runtime import FastNetwork
from medunet.training import CheckpointHandler, EarlyStop, HistoryHandler, ValidationHandler
from medunet.transforms import (
    BorderWeightMapd,
    EncodeLabelsd,
    InstanceTargetsd,
    NormalizeChannelsd,
    ObjectsFromMapsd,
    RandDeformd,
    RandNoised,
)

KEYS = ("image", "label")
PARTS: dict[str, Callable[[], Any]] = {
    "reader": MedunetReader,
    "label reader": lambda: LoadLabeld("label"),
    "deformation": lambda: RandDeformd(KEYS, mode=["bilinear", "nearest"], elastic_sigma=2.0),
    "border weights": lambda: BorderWeightMapd("label", "weight"),
    "encoding": lambda: EncodeLabelsd("label", values=[0, 1]),
    "normalisation": lambda: NormalizeChannelsd("image", channels=[None]),
    "noise": lambda: RandNoised("image", std=(0.0, 0.1)),
    "tiles": OverlapTileInferer,
    "labels": lambda: LabelInferer(OverlapTileInferer()),
    "mirrored views": lambda: MirrorInferer(OverlapTileInferer(), axes=[0]),
    "scaled views": lambda: ScaleInferer(OverlapTileInferer(), scales=[1.0, 1.2]),
    "weighted cross entropy": BorderWeightedCELoss,
    "Dice and cross entropy": DiceCELoss,
    "regions": lambda: RegionDiceCELoss([[1, 2], [2]]),
    "distance": DistanceLoss,
    "targets of objects": InstanceTargetsd,
    "objects": ObjectsFromMapsd,
    "deep supervision": lambda: DeepSupervisionLoss(DiceCELoss()),
    "network": lambda: UNet(2, 1, 2, channels=(4, 8), norm="batch"),
    "fast network": lambda: FastNetwork(UNet(2, 1, 2, channels=(4, 8), norm="batch").eval()),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_can_be_pickled_and_copied(part: str) -> None:
    made = PARTS[part]()
    for copied in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert type(copied) is type(made)


@pytest.fixture
def cases(tmp_path: Path) -> list[dict[str, str]]:
    generator = np.random.default_rng(0)
    items = []
    for number in range(4):
        affine = np.diag([-1.5, 1.0, 2.0, 1.0])
        item = {key: str(tmp_path / f"{key}_{number}.nii.gz") for key in KEYS}
        write_volume(generator.normal(size=(20, 24, 12)).astype(np.float32), item["image"], affine=affine)
        write_volume(generator.integers(0, 2, (20, 24, 12)).astype(np.uint8), item["label"], affine=affine)
        items.append(item)
    return items


def pipeline(*, lazy: bool = False, random: bool = True) -> Compose:
    return Compose(
        [
            LoadImaged(KEYS, reader=MedunetReader(), ensure_channel_first=True),
            EncodeLabelsd("label", values=[0, 1]),
            Orientationd(KEYS, "RAS", labels=None),
            Spacingd(KEYS, (1.0, 1.0, 1.0), mode=("bilinear", "nearest")),
            *([RandDeformd(KEYS, spatial_size=(16, 16, 16), mode=["bilinear", "nearest"], elastic_sigma=1.0)] * random),
            *([RandNoised("image", std=(0.0, 0.1), prob=1.0)] * random),
        ],
        lazy=lazy,
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("workers", [0, 2])
def test_seeded_loaders_repeat_their_batches(cases: list[dict[str, str]], workers: int) -> None:
    def load() -> list[torch.Tensor]:
        set_determinism(seed=7)
        data = CacheDataset(cases, pipeline(), progress=False) if workers == 0 else Dataset(cases, pipeline())
        return [
            batch["image"].as_tensor() for batch in DataLoader(data, batch_size=2, shuffle=True, num_workers=workers)
        ]

    first, second = load(), load()
    set_determinism(seed=None)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0][0], first[0][1])


def test_pending_resampling_is_applied_before_a_deformation(cases: list[dict[str, str]]) -> None:
    images = []
    for lazy in (False, True):
        transform = pipeline(lazy=lazy)
        transform.set_random_state(seed=3)
        images.append(transform(cases[0])["image"])
    torch.testing.assert_close(images[0].as_tensor(), images[1].as_tensor(), atol=0.05, rtol=0)


def test_preprocessing_can_be_inverted(cases: list[dict[str, str]]) -> None:
    transform = pipeline(random=False)
    item = transform(cases[0])
    item["pred"] = item["label"].clone()
    inverted = Invertd("pred", transform, orig_keys="label", nearest_interp=True)(item)["pred"]
    original = LoadImaged("label", reader=MedunetReader(), ensure_channel_first=True)(cases[0])["label"]
    assert torch.equal(inverted.as_tensor(), original.as_tensor().to(inverted.dtype))
    torch.testing.assert_close(inverted.affine, original.affine)


@pytest.mark.parametrize("wrap", [DistributedDataParallel, torch.compile, FastNetwork])
def test_tiles_are_exact_on_a_wrapped_network(wrap: Callable[..., Any]) -> None:
    network, image = UNet(2, 1, 2, channels=(4, 8), norm="batch").eval(), torch.rand(1, 1, 50, 44)
    options = {torch.compile: {"backend": "eager"}, FastNetwork: {"dtype": "float32"}}.get(wrap, {})
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with torch.inference_mode():
        tiled = OverlapTileInferer(32)(image, wrap(network, **options))
        torch.testing.assert_close(tiled, network(image), atol=1e-5, rtol=1e-5)
    torch.distributed.destroy_process_group()


def test_the_fast_engine_runs_networks_of_monai() -> None:
    network = BasicUNet(2, 1, 2, features=(4, 4, 8, 8, 8, 4), norm="batch").eval()  # receptive radius 94
    image = torch.rand(1, 1, 320, 80)
    with torch.inference_mode():
        logits = OverlapTileInferer((256, 80))(image, FastNetwork(network, dtype="float32"))
        torch.testing.assert_close(logits, network(image), atol=1e-5, rtol=1e-5)


def test_handlers_work_on_engines_of_monai(tmp_path: Path) -> None:
    network = MonaiUNet(2, 1, 2, channels=(4, 8), strides=(2,))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    items = [{"image": torch.rand(1, 16, 16), "label": torch.ones(1, 16, 16)} for _ in range(2)]
    discrete = AsDiscreted(("pred", "label"), argmax=(True, False), to_onehot=2)
    metric = {"dice": MeanDice(output_transform=from_engine(["pred", "label"]))}
    validator = SupervisedEvaluator(
        torch.device("cpu"), DataLoader(Dataset(items)), network, postprocessing=discrete, key_val_metric=metric
    )
    handlers = [
        ValidationHandler(1, validator),
        HistoryHandler(str(tmp_path), optimizer=optimizer, validator=validator),
        EarlyStop(2, validator=validator),
        CheckpointHandler(str(tmp_path), network, optimizer=optimizer, validator=validator),
    ]
    loss, loader = MonaiDiceCELoss(to_onehot_y=True, softmax=True), DataLoader(Dataset(items))
    trainer = SupervisedTrainer(torch.device("cpu"), 2, loader, network, optimizer, loss, train_handlers=handlers)
    trainer.run()
    assert [entry["epoch"] for entry in trainer.state.history] == [1, 2]
    weights = torch.load(tmp_path / "model.pt", weights_only=True)["model"]
    assert weights.keys() == network.state_dict().keys()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 2


def test_a_loss_trains_a_network_of_monai_under_autocast() -> None:
    network = MonaiUNet(2, 1, 2, channels=(4, 8), strides=(2,))
    item = {"label": torch.zeros(1, 16, 16, dtype=torch.int64)}
    item["label"][0, 4:8, 4:12] = 1
    weight = BorderWeightMapd("label", "weight")(EnsureTyped("label")(item))["weight"][None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = BorderWeightedCELoss()(network(torch.rand(1, 1, 16, 16)), item["label"][None], weight)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
