"""medunet on a simulated CUDA device: no mixed devices, and a budget of host synchronisations.

The simulation (tests/support/simulated_cuda.py) cannot see kernels, races, memory, numerics or NCCL.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DiceCELoss as MonaiDiceCELoss
from monai.transforms import (
    Compose,
    CropForegroundd,
    NormalizeIntensityd,
    Orientationd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    Spacingd,
)
from simulated_cuda import SimulatedCuda, counted

from medunet import transforms
from medunet.bundle import find_bundle
from medunet.inferers import GridMap, MirrorInferer, OverlapTileInferer, ScaleInferer, restore_labels
from medunet.inferers.restore import restore_probabilities
from medunet.losses import BorderWeightedCELoss, DeepSupervisionLoss, DiceCELoss, RegionDiceCELoss
from medunet.networks import UNet
from medunet.prediction import Predictor
from medunet.runs import train_bundle
from medunet.runtime import EnsembleLogits, FastNetwork, resolve_device

CUDA = torch.device("cuda", 0)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedCuda]:
    monkeypatch.setattr("medunet.inferers.memory.MEASURED_VOXELS", 16**3)
    with SimulatedCuda() as simulation:
        yield simulation


def network(**options: Any) -> UNet:
    layout = torch.channels_last_3d
    return UNet(3, 1, 3, **{"channels": [4, 8, 8], "norm": "batch", **options}).to(device="cuda", memory_format=layout)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 24),
        ({"norm": "instance", "upsample": "linear", "block": "residual", "downsample": "conv"}, 17),
        ({"padding": "valid"}, 44),
    ],
)
def test_networks_run_without_host_synchronisation(cuda: SimulatedCuda, options: dict[str, Any], size: int) -> None:
    model = network(**options).eval()
    image = torch.rand(1, 1, size, size, size, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16), counted(cuda) as waits:
        assert model(image).device == CUDA
    assert not waits


MONAI_LOSS: dict[str, Any] = {"to_onehot_y": True, "softmax": True, "include_background": False, "batch": True}


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: MonaiDiceCELoss(**MONAI_LOSS), {}),
        (lambda: DiceCELoss(class_weights=[1, 2, 3], ignore_index=255), {}),
        (lambda: RegionDiceCELoss([[1, 2], [2], [1]]), {}),
        (lambda: BorderWeightedCELoss(reduction="weighted_mean"), {"weights": True}),
        (lambda: DeepSupervisionLoss(MonaiDiceCELoss(**MONAI_LOSS)), {"deep_supervision": 1}),
    ],
    ids=["MONAI", "DiceCELoss", "RegionDiceCELoss", "BorderWeightedCELoss", "DeepSupervisionLoss"],
)
def test_losses_have_gradients_on_the_device(
    cuda: SimulatedCuda, make: Callable[[], Any], options: dict[str, Any]
) -> None:
    weights = [torch.rand(2, 1, 16, 16, 16, device="cuda")] if options.pop("weights", False) else []
    model = network(**options).train()
    target = torch.randint(0, 3, (2, 1, 16, 16, 16), device="cuda").to(torch.uint8)
    output = model(torch.rand(2, 1, 16, 16, 16, device="cuda"))
    make().to("cuda")(output, target, *weights).backward()
    gradient = next(model.parameters()).grad
    assert gradient is not None
    assert gradient.device == CUDA


@torch.inference_mode()
def test_inferers_keep_the_image_on_the_device(cuda: SimulatedCuda) -> None:
    image = torch.rand(1, 1, 40, 36, 32, device="cuda")
    fast = FastNetwork(network().eval()).eval()
    assert fast(image).device == CUDA
    with counted(cuda) as waits:
        assert fast(image).device == CUDA
    assert not waits
    runs: list[tuple[Any, Any]] = [
        (OverlapTileInferer(24, halo=4), fast),
        (OverlapTileInferer(24, halo=8), network(norm="instance").eval()),
        (MirrorInferer(OverlapTileInferer("auto"), axes=[0, 1, 2], batch_size=4), fast),
        (ScaleInferer(OverlapTileInferer("auto"), scales=[0.75, 1.0]), fast),
        (OverlapTileInferer("auto"), EnsembleLogits([fast, FastNetwork(network().eval(), dtype="bfloat16").eval()])),
    ]
    for inferer, model in runs:
        assert inferer(image, model).device == CUDA
    assert OverlapTileInferer(24, halo=4, sw_device="cuda")(image.cpu(), fast).device.type == "cpu"
    assert OverlapTileInferer(24, halo=4, device="cpu")(image, fast).device.type == "cpu"


@pytest.mark.parametrize("grid", ["identity", "parallel", "oblique"])
@torch.inference_mode()
def test_labels_and_probabilities_are_restored_on_the_device(cuda: SimulatedCuda, grid: str) -> None:
    turned = np.eye(4)
    turned[:2, :2] = [[0.9, 0.1], [-0.1, 0.9]]
    matrix = {"identity": np.eye(4), "parallel": np.diag([0.5, 0.5, 0.8, 1]), "oblique": turned}[grid]
    mapping = GridMap(matrix, (40, 36, 32), (40, 36, 32))
    logits = torch.randn(5, 40, 36, 32, device="cuda")
    restored = restore_labels(logits, mapping, out=torch.zeros(40, 36, 32, dtype=torch.uint8))
    assert torch.equal(restore_labels(logits, mapping).cpu(), restored)
    probabilities = torch.zeros(5, 40, 36, 32)
    restore_probabilities(logits, mapping, activation="softmax", out=probabilities)
    assert probabilities.sum(0).mean() > 0


def test_transforms_keep_tensors_on_the_device(cuda: SimulatedCuda) -> None:
    image, label = torch.rand(1, 40, 36, 32, device="cuda"), torch.randint(0, 3, (1, 40, 36, 32), device="cuda")
    item = {"image": image, "label": label.to(torch.uint8)}
    options: dict[str, Any] = {"spatial_size": (16, 16, 16), "rotate_range": 0.3, "elastic_sigma": 1.0}
    options |= {"foreground_key": "label", "foreground_prob": 1.0}
    for modes, padding in ((("bilinear", "nearest"), "border"), (("bilinear", "onehot"), "reflection")):
        deform = transforms.RandDeformd(["image", "label"], mode=modes, padding_mode=padding, **options)
        assert deform.set_random_state(0)(item)["image"].device == CUDA
    steps = [
        RandScaleIntensityd("image", factors=0.2, prob=1.0),
        RandShiftIntensityd("image", offsets=0.2, prob=1.0),
        transforms.RandNoised("image", prob=1.0),
    ]
    batch = torch.rand(2, 1, 16, 16, 16, device="cuda")
    with counted(cuda) as waits:
        assert transforms.BatchIntensity(steps)(batch, seed=1).device == CUDA
    assert sum(waits.values()) <= 3
    assert transforms.EncodeLabelsd("label", [0, 1, 2])(dict(item))["label"].device == CUDA
    assert transforms.RegionMasksd("label", [[1, 2], [2]])(dict(item))["label"].device == CUDA
    chain = Compose(
        [
            Orientationd("image", axcodes="RAS", labels=None),
            CropForegroundd("image", select_fn=transforms.AboveThreshold(0.5), source_key="image", allow_smaller=True),
            Spacingd("image", pixdim=(1.3, 1.3, 1.3), mode="bilinear", padding_mode="border"),
            NormalizeIntensityd("image", channel_wise=True),
        ]
    )
    item["image"] = MetaTensor(image, affine=torch.diag(torch.tensor([-1.0, -1, 1, 1])))
    assert chain(item)["image"].device == CUDA


SYNCHRONISATIONS_PER_CASE = 5  # of the network's stream; copies from memory that is not pinned count as well
SYNCHRONISATIONS_OF_A_READER = 20  # of its own stream, for which the network does not wait
SYNCHRONISATIONS_PER_STEP = 1  # for the loss of the step before, which is complete by then


def test_a_predictor_stays_within_its_synchronisation_budget(
    run_3d: Path, volumes: Path, tmp_path: Path, cuda: SimulatedCuda
) -> None:
    sources = sorted((volumes / "imagesTr").glob("*.nii.gz"))[:2]
    predictor = Predictor(run_3d, output_dir=tmp_path, device="cuda")
    assert all(result.error is None for result in predictor.predict(sources[:1]))
    with counted(cuda) as waits:
        [result] = predictor.predict(sources[1:])
    assert result.error is None
    assert 0 < sum(waits.values()) <= SYNCHRONISATIONS_PER_CASE, waits.most_common(20)
    assert 0 < sum(cuda.side_waits.values()) <= SYNCHRONISATIONS_OF_A_READER, cuda.side_waits.most_common(20)


def train(cells: Path, run: Path, *, epochs: int = 1, resume: bool = False, **changes: Any) -> None:
    small = {"network_def::channels": [4, 8], "patch_size": [32, 32], "batch_size": 2, "steps_per_epoch": 4, "folds": 2}
    quick = {"num_workers": 0, "val_interval": 10, "store_dir": str(run.parent / "store")}
    changes = {**small, **quick, "epochs": epochs, **changes}
    done = train_bundle(
        find_bundle("unet_2d"), cells, run, changes=changes, resume=resume, device="cuda", tracking_uri=""
    )
    assert done.epochs == epochs


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_training_stays_within_its_synchronisation_budget(
    cells: Path, tmp_path: Path, cuda: SimulatedCuda, dtype: str
) -> None:
    totals = []
    for steps in (4, 12):
        with counted(cuda) as waits:
            train(cells, tmp_path / f"run_{steps}", steps_per_epoch=steps, autocast_dtype=dtype)
        totals.append(sum(waits.values()))
    assert (totals[1] - totals[0]) / 8 <= SYNCHRONISATIONS_PER_STEP, waits.most_common(20)


def test_resumed_steps_do_not_wait_for_the_optimizer(cells: Path, tmp_path: Path, cuda: SimulatedCuda) -> None:
    train(cells, tmp_path / "run")
    with counted(cuda) as waits:
        train(cells, tmp_path / "run", epochs=2, resume=True)
    weights = 10  # every weight has a step counter
    assert not {key: count for key, count in waits.items() if key[0] == "item" and count >= weights}


def test_the_simulation_detects_mixed_devices_and_counts_synchronisations(cuda: SimulatedCuda) -> None:
    labelled = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        DiceCELoss()(torch.rand(1, 3, 8, 8, 8, device="cuda"), torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(TypeError, match="numpy"):
        labelled.numpy()
    with counted(cuda) as waits:
        assert bool(labelled.sum() == 3)
        labelled[labelled > 0].cpu()
    assert {kind for kind, _ in waits} >= {"item", "boolean mask", "device to host"}


def test_devices_are_selected_by_index() -> None:
    with SimulatedCuda(devices=2):
        assert resolve_device("auto").type == "cuda"
        assert resolve_device("cuda:1") == torch.device("cuda", 1)
        with pytest.raises(Exception, match="cuda:2"):
            resolve_device("cuda:2")
