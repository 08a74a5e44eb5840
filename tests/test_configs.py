"""What a config can name: every preset, loss and norm; each loss learns from the shipped train.json."""

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from medunet.bundle import find_bundle, specialise
from medunet.networks import presets

SMALL = {"network_def::channels": [4, 8, 16], "patch_size": [32, 32], "device": torch.device("cpu")}
DICE = {"to_onehot_y": True, "softmax": True}
CHANGES: dict[str, dict[str, Any]] = {
    "dice": {"loss": {"_target_": "DiceLoss", **DICE}},
    "generalised dice": {"loss": {"_target_": "GeneralizedDiceLoss", **DICE}},
    "ignored voxels": {"loss": {"_target_": "medunet.losses.DiceCELoss", "ignore_index": 255}},
    "border weights": {"loss": {"_target_": "medunet.losses.BorderWeightedCELoss", "class_weights": [2.0, 1.0]}},
    "deep supervision": {"network_def::deep_supervision": 1},
    "no norm": {"network_def::norm": None},
    "batch norm": {"network_def::norm": "batch"},
    "instance norm": {"network_def::norm": "instance"},
    "group norm": {"network_def::norm": ["group", {"num_groups": 2}]},
}


def parse(*overlays: str, **changes: Any) -> ConfigParser:
    configs, parser = find_bundle("unet_2d") / "configs", ConfigParser()
    parser.read_config([str(configs / f"{name}.json") for name in ("train", *overlays)])
    parser.update({**SMALL, **changes})
    return parser


@pytest.mark.parametrize("name", CHANGES)
def test_every_loss_and_norm_is_reachable_from_a_config_and_learns(name: str) -> None:
    parser = parse(**CHANGES[name])
    torch.manual_seed(0)
    network, loss = (parser.get_parsed_content(id_) for id_ in ("network", "train::trainer::loss_function"))
    optimizer = torch.optim.Adam(network.train().parameters(), lr=0.01)
    image = torch.rand(2, 1, 32, 32)
    label = (image > 0.5).long()
    values = []
    for _ in range(8):
        optimizer.zero_grad()
        value = loss(network(image), label)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < values[0]
    assert all(parameter.grad is not None for parameter in network.parameters())  # also those of deep supervision


@pytest.mark.parametrize("name", ["unet_2d", "unet_3d"])
@pytest.mark.parametrize("overlay", ["few", "sgd_poly"])
def test_monai_and_medunet_apply_a_preset_equally(name: str, overlay: str, tmp_path: Path) -> None:
    bundle = find_bundle(name)
    run = specialise(bundle, tmp_path / "run", {}, presets=[overlay])
    train, preset = (bundle / "configs" / f"{file}.json" for file in ("train", overlay))
    by_monai, by_medunet, plain = (ConfigParser() for _ in range(3))
    by_monai.read_config([str(train), str(preset)])
    by_medunet.read_config(str(run / "configs" / "train.json"))
    plain.read_config(str(train))
    assert by_medunet.get() == by_monai.get() != plain.get()


def rates_of(parser: ConfigParser, steps: int) -> list[float]:
    optimizer, scheduler = (parser.get_parsed_content(id_) for id_ in ("optimizer", "lr_scheduler"))
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_the_schedules_last_as_long_as_training() -> None:
    rates = rates_of(parse(epochs=3, steps_per_epoch=4), 12)
    assert max(rates) == pytest.approx(0.006, rel=0.1)
    assert rates[-1] < 0.05 * max(rates)
    rates = rates_of(parse("sgd_poly", epochs=2, steps_per_epoch=3), 6)
    assert rates == pytest.approx([0.01 * (1 - step / 6) ** 0.9 for step in range(6)])


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_every_published_variant_is_reachable_from_a_config(name: str) -> None:
    config = {"_target_": f"medunet.networks.presets.{name}", "in_channels": 1, "out_channels": 2}
    with torch.device("meta"):
        network = parse(network_def=config).get_parsed_content("network_def")
    assert (network.in_channels, network.out_channels) == (1, 2)
