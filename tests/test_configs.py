"""What a config can name: every preset, loss and norm; each loss learns from the shipped train.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from medunet.bundle import find_bundle, specialise
from medunet.networks import presets

SMALL = {"network_def::channels": [4, 8, 16], "patch_size": [32, 32], "device": torch.device("cpu")}

LOSSES: dict[str, dict[str, Any]] = {
    "dice": {"_target_": "DiceLoss", "to_onehot_y": True, "softmax": True},
    "generalised dice": {"_target_": "GeneralizedDiceLoss", "to_onehot_y": True, "softmax": True},
    "dice and cross entropy, MONAI": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
    "dice and cross entropy with ignored voxels": {"_target_": "medunet.losses.DiceCELoss", "ignore_index": 255},
    "border-weighted": {"_target_": "medunet.losses.BorderWeightedCELoss", "class_weights": [2.0, 1.0]},
    "deep supervision": {
        "_target_": "medunet.losses.DeepSupervisionLoss",
        "loss": {"_target_": "medunet.losses.DiceCELoss"},
    },
}


def parse(**changes: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(find_bundle("unet_2d") / "configs" / "train.json"))
    parser.update({**SMALL, **changes})
    return parser


def train_step(parser: ConfigParser, size: int = 32) -> tuple[float, float]:
    """The loss before and after some steps on one patch that can be learned by heart."""
    torch.manual_seed(0)
    network = parser.get_parsed_content("network").train()
    loss = parser.get_parsed_content("loss")
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    image = torch.rand(2, 1, size, size)
    label = (image > 0.5).long()
    values = []
    for _ in range(8):
        optimizer.zero_grad()
        value = loss(network(image), label)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    return values[0], values[-1]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_reachable_from_a_config_and_learns(name: str) -> None:
    changes: dict[str, Any] = {"loss": LOSSES[name]}
    if name == "deep supervision":
        changes["network_def::deep_supervision"] = 1
    first, last = train_step(parse(**changes))
    assert last < first


def test_deep_supervision_is_one_change() -> None:
    parser = parse(**{"network_def::deep_supervision": 1})
    network, loss = (parser.get_parsed_content(id_) for id_ in ("network", "train::trainer::loss_function"))
    image, label = torch.rand(2, 1, 32, 32), torch.randint(0, 2, (2, 1, 32, 32))
    outputs = network.train()(image)
    assert [tuple(output.shape[2:]) for output in outputs] == [(32, 32), (16, 16)]
    loss(outputs, label).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_without_deep_supervision_the_loss_is_the_plain_one() -> None:
    parser = parse()
    plain, used = (parser.get_parsed_content(id_) for id_ in ("loss", "train::trainer::loss_function"))
    logits, label = torch.randn(2, 2, 16, 16), torch.randint(0, 2, (2, 1, 16, 16))
    assert torch.equal(used(logits, label), plain(logits, label))


OVERLAYS = [(name, overlay) for name in ("unet_2d", "unet_3d") for overlay in ("few", "sgd_poly")]


@pytest.mark.parametrize(("name", "overlay"), OVERLAYS)
def test_a_preset_gives_one_config_by_monai_and_by_medunet(name: str, overlay: str, tmp_path: Path) -> None:
    bundle = find_bundle(name)
    by_monai = ConfigParser()
    by_monai.read_config([str(bundle / "configs" / f"{file}.json") for file in ("train", overlay)])
    run = specialise(bundle, tmp_path / "run", {}, presets=[overlay])
    by_medunet, plain = ConfigParser(), ConfigParser()
    by_medunet.read_config(str(run / "configs" / "train.json"))
    plain.read_config(str(bundle / "configs" / "train.json"))
    assert by_medunet.get() == by_monai.get() != plain.get()


def test_sgd_poly_ends_at_a_rate_of_nothing() -> None:
    bundle = find_bundle("unet_2d") / "configs"
    parser = ConfigParser()
    parser.read_config([str(bundle / "train.json"), str(bundle / "sgd_poly.json")])
    parser.update({**SMALL, "epochs": 2, "steps_per_epoch": 3})
    optimizer, scheduler = (parser.get_parsed_content(id_) for id_ in ("optimizer", "lr_scheduler"))
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.01 * (1 - step / 6) ** 0.9 for step in range(6)])


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_every_preset_is_reachable_from_a_config(name: str) -> None:
    config = {"_target_": f"medunet.networks.presets.{name}", "in_channels": 1, "out_channels": 2}
    with torch.device("meta"):
        network = parse(network_def=config).get_parsed_content("network_def")
    assert network.in_channels == 1
    assert network.out_channels == 2


@pytest.mark.parametrize("norm", [None, "batch", "instance", ["group", {"num_groups": 2}]])
def test_every_norm_is_reachable_from_a_config(norm: Any) -> None:
    first, last = train_step(parse(**{"network_def::norm": norm}))
    assert last < first


def test_the_optimiser_holds_the_weights_that_are_trained() -> None:
    parser = parse()
    network, optimizer = (parser.get_parsed_content(id_) for id_ in ("network", "optimizer"))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in network.parameters()}


def test_the_schedule_lasts_as_long_as_the_training() -> None:
    parser = parse(epochs=3, steps_per_epoch=4)
    optimizer, scheduler = (parser.get_parsed_content(id_) for id_ in ("optimizer", "lr_scheduler"))
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(0.003, rel=0.1)
    assert rates[-1] < 0.05 * max(rates)


def test_the_paper_is_in_the_bundle_of_2015() -> None:
    parser = ConfigParser()
    parser.read_config(str(find_bundle("unet_2015") / "configs" / "train.json"))
    assert parser["optimizer"]["momentum"] == 0.99
    assert parser["lr_scheduler"]["cycle_momentum"] is False
    assert parser["augment"]["deform"]["elastic_sigma"] == 10.0
    assert (parser["steps"]["weight"]["w0"], parser["steps"]["weight"]["sigma"]) == (10.0, 5.0)
    assert parser["network_def"]["padding"] == "valid"
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    assert network.shapes.output_size((572, 572)) == (388, 388)
