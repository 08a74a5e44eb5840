"""From a data set to the values of a bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medunet.bundle import find_bundle
from medunet.datasets import open_dataset, write_phantom_dataset
from medunet.errors import ConfigError, DataError
from medunet.io import write_volume
from medunet.networks import UNet
from medunet.planning import Plan, adapt, choices, fingerprint, parse_time, plan
from medunet.planning.plan import choose_grid
from medunet.planning.probe import PROCESS_BYTES, StepCost, measure_step, training_bytes
from medunet.planning.schedule import START_SECONDS, fit_schedule
from medunet.planning.topology import choose_budget

from .conftest import DataMaker

GB = 1 << 30


def plan_for(data: Path, *, measure: bool = False, **options: Any) -> Plan:
    dataset = open_dataset(data)
    config = json.loads((find_bundle(f"unet_{dataset.spatial_dims}d") / "configs" / "train.json").read_text())
    options = {"device": "cpu", "memory": 8 * GB, **options}
    return plan(dataset, config, fingerprint=fingerprint(dataset), measure=measure, **options)


@pytest.mark.data
def test_hippocampus_is_planned_as_it_was_measured(test_data: Path) -> None:
    values = plan_for(test_data / "Task04_Hippocampus").values
    assert values["patch_size"] == [40, 56, 40]
    assert values["batch_size"] == 4
    assert values["network_def::channels"] == [16, 48, 96, 192]
    assert (values["network_def::strides"], values["network_def::kernel_sizes"]) == (2, 3)
    assert values["spacing_mm"] == [1.0, 1.0, 1.0]
    assert values["augment::deform::flip_axes"] == []  # anterior and posterior
    assert "mirror_axes" not in values
    assert values["view_scales"] == [1.0, 1.15, 1.3]  # two voxels thick
    assert 0.6 < values["augment::deform::elastic_sigma"] < 0.8  # so bent little
    assert values["steps::normalize"]["_target_"] == "NormalizeIntensityd"


@pytest.mark.data
def test_cells_are_planned_as_they_were_measured(test_data: Path) -> None:
    values = plan_for(test_data / "ISBI2012_EM").values
    assert (values["patch_size"], values["batch_size"]) == ([256, 256], 4)
    assert values["network_def::channels"] == [32, 64, 128, 256, 512]
    assert values["augment::deform::flip_axes"] == values["mirror_axes"] == [0, 1]
    assert "view_scales" not in values  # in volumes only
    assert values["loss"]["include_background"] is True  # membranes are thin
    assert "spacing_mm" not in values


@pytest.mark.data
def test_sarcomas_are_ct_made_coarser_so_that_a_patch_shows_much(test_data: Path) -> None:
    values = plan_for(test_data / "STS_GTV_CT").values
    normalise = values["steps::normalize"]
    assert normalise["_target_"] == "ScaleIntensityRanged"
    assert -200 < normalise["a_min"] < 0 < normalise["a_max"] < 1000
    assert values["spacing_mm"] == pytest.approx([2.03, 2.03, 3.27])
    assert values["network_def::strides"][0] == [2, 2, 2]
    assert values["augment::deform::flip_axes"] == [0, 1, 2]
    assert not {"mirror_axes", "view_scales"} & values.keys()  # large images: views would cost


@pytest.mark.parametrize("channel", ["CT", "MR"])
def test_images_are_planned_as_the_network_gets_them(channel: str, make_data: DataMaker) -> None:
    # CT is cropped to the body, MR to what is not 0, with 8 voxels on each side
    found = fingerprint(open_dataset(make_data(channels=[channel], low=-1000, high=400)))
    box, whole = [(edges,) * 3 for edges in ((60, 50, 60), (200, 200, 60))]
    found = replace(found, shapes=whole, body_shapes=box, crop_shapes=whole if channel == "CT" else box)
    assert choose_grid(found, choose_budget(3, cuda=False, seconds=None), flat=False).size == (76, 66, 60)
    config = json.loads((find_bundle("unet_3d") / "configs" / "train.json").read_text())
    assert config["steps"]["crop_body"]["margin"] == choices.BODY_MARGIN


def test_ct_is_clipped_and_scaled_by_the_foreground(make_data: DataMaker) -> None:
    data = make_data(channels=["CT"], low=-1000, high=400)
    channel = fingerprint(open_dataset(data)).channels[0]
    normalise = plan_for(data).values["steps::normalize"]
    assert (normalise["a_min"], normalise["a_max"]) == (channel.low, channel.high)
    assert normalise["b_min"] == pytest.approx((channel.low - channel.mean) / channel.std, abs=1e-5)
    assert normalise["clip"] is True


def test_channels_of_two_kinds_are_normalised_each_by_its_rule(make_data: DataMaker) -> None:
    normalise = plan_for(make_data(channels=["CT", "PET"], low=-1000, high=400)).values["steps::normalize"]
    assert normalise["_target_"] == "medunet.transforms.NormalizeChannelsd"
    assert normalise["channels"][0].keys() == {"low", "high", "mean", "std"}
    assert normalise["channels"][1] is None


def test_zeros_around_a_small_image_do_not_count(tmp_path: Path) -> None:
    image, label = np.zeros((20, 20, 20), np.float32), np.zeros((20, 20, 20), np.uint8)
    image[5:15, 5:15, 5:15] = np.arange(1, 1001).reshape(10, 10, 10)
    label[8:12, 8:12, 8:12] = 1
    for name in "ab":
        write_volume(image, tmp_path / "images" / f"{name}.nii.gz", affine=np.eye(4))
        write_volume(label, tmp_path / "labels" / f"{name}.nii.gz", affine=np.eye(4))
    assert plan_for(tmp_path).values["steps::normalize"]["nonzero"] is True


@pytest.mark.parametrize(
    ("names", "axes"),
    [
        (["liver", "spleen"], [0, 1, 2]),
        (["kidney_left", "kidney_right"], [0]),
        (["kidney_left", "kidney_right", "left ventricle"], []),  # without its partner
        (["left upper lobe", "right upper lobe", "heart"], [0]),  # up stays up
        (["Anterior", "Posterior"], []),
        (["upper_lobe"], []),
        (["label_1"], [0, 1, 2]),
        (["label_1", "label_2"], []),
    ],
)
def test_mirroring_is_on_only_where_no_label_can_become_wrong(
    make_data: DataMaker, names: list[str], axes: list[int]
) -> None:
    labels = {name: value for value, name in enumerate(["background", *names])}
    assert plan_for(make_data(labels=labels)).values["augment::deform::flip_axes"] == axes


def test_left_and_right_trade_places(make_data: DataMaker) -> None:
    labels = {"background": 0, "heart": 4, "lungR": 5, "lungL": 7}
    values = plan_for(make_data(labels=labels)).values
    assert values["augment::deform::flip_axes"] == [0]
    assert values["augment::deform::swap_labels"] == [[3, 2]]  # class indices, not values
    assert values["mirror_swaps"] == [[3, 2]]
    flat = plan_for(make_data(labels=labels, shape=(12, 40, 40), spacing=(4, 1, 1)), dims=2).values
    assert flat["augment::deform::flip_axes"] == []  # the planes are sagittal
    assert "mirror_swaps" not in flat


def test_pictures_with_sides_are_not_mirrored(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for case in range(2):
        label = np.zeros((48, 48), np.uint8)
        label[10:12, 10:12], label[10:12, 30:32] = 1, 2
        for folder, name in (("imagesTr", f"c{case}_0000.png"), ("labelsTr", f"c{case}.png")):
            (tmp_path / folder).mkdir(exist_ok=True)
            pillow.fromarray(label * (100 if folder == "imagesTr" else 1)).save(tmp_path / folder / name)
    labels = {"background": 0, "left lung": 1, "right lung": 2}
    manifest = {"channel_names": {"0": "X-ray"}, "labels": labels, "file_ending": ".png"}
    (tmp_path / "dataset.json").write_text(json.dumps(manifest))
    (decision,) = [d for d in plan_for(tmp_path).decisions if d.id == "augment::deform::flip_axes"]
    assert decision.value == []
    assert "which axis" in decision.reason


def test_colour_images_have_three_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for case in range(3):
        image = rng.integers(0, 255, (3, 48, 48)).astype(np.uint8)
        label = np.zeros((48, 48), np.uint8)
        label[10:12, 10:12] = 1
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "labels").mkdir(exist_ok=True)
        pillow = pytest.importorskip("PIL.Image")
        pillow.fromarray(np.moveaxis(image, 0, -1)).save(tmp_path / "images" / f"c{case}.png")
        pillow.fromarray(label).save(tmp_path / "labels" / f"c{case}.png")
    chosen = plan_for(tmp_path)
    assert chosen.values["in_channels"] == 3
    assert chosen.fingerprint.channels[0].kind == "colour"
    assert chosen.values["augment::deform::foreground_key"] == "label"  # 4 pixels of 48 x 48


def test_ignored_voxels_count_nowhere(make_data: DataMaker) -> None:
    chosen = plan_for(make_data(labels={"background": 0, "organ": 1, "ignore": 2}))
    assert chosen.values["steps::encode::ignore_value"] == 2
    assert chosen.values["loss"]["ignore_index"] == 255
    assert chosen.values["label_values"] == [0, 1]


def test_regions_are_channels_of_their_own(make_data: DataMaker) -> None:
    root = make_data(labels={"background": 0, "left rim": 1, "core": 2, "ignore": 3})
    manifest = json.loads((root / "dataset.json").read_text())
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    (root / "dataset.json").write_text(json.dumps({**manifest, "labels": labels, "regions_class_order": [1, 2]}))
    values = plan_for(root).values
    assert values["region_names"] == ["whole", "core"]
    assert (values["region_values"], values["regions_class_order"]) == ([[1, 2], [2]], [1, 2])
    assert values["loss"]["_target_"] == "medunet.losses.RegionDiceCELoss"
    assert values["loss"]["ignore_index"] == 255
    assert values["label_values"] == [0, 1, 2]
    assert values["augment::deform::flip_axes"] == [0, 1, 2]  # the names that count are the regions'


def test_volumes_can_have_a_network_in_the_plane(make_data: DataMaker) -> None:
    values = plan_for(make_data(shape=(40, 40, 12), spacing=(1, 1, 4)), dims=2).values
    assert values["patch_size"][2] == 1
    assert {row[2] for row in values["network_def::strides"]} == {1}
    assert values["augment::deform::flip_axes"] == [0, 1]


def test_pictures_cannot_have_a_network_of_three_dimensions(tmp_path: Path) -> None:
    write_phantom_dataset(tmp_path, kind="cells", cases=2, size=(64, 64))
    with pytest.raises(ConfigError, match="2-D"):
        plan_for(tmp_path, dims=3)


def test_less_memory_makes_the_patch_smaller(make_data: DataMaker) -> None:
    data = make_data(shape=(96, 96, 96))
    large, small = plan_for(data), plan_for(data, memory=PROCESS_BYTES + (120 << 20))
    assert np.prod(small.values["patch_size"]) < np.prod(large.values["patch_size"])
    assert small.values["batch_size"] == 2
    with pytest.raises(ConfigError, match="memory is too small"):
        plan_for(data, memory=100 << 20)


def test_every_decision_has_a_reason_and_names_a_value_of_the_bundle(make_data: DataMaker) -> None:
    chosen = plan_for(make_data())
    assert all(decision.reason for decision in chosen.decisions)
    ids = [decision.id for decision in chosen.decisions]
    assert len(set(ids)) == len(ids)
    json.dumps(chosen.values)


def test_a_planned_bundle_keeps_its_values_and_refuses_other_data(make_data: DataMaker) -> None:
    dataset = open_dataset(make_data())
    config = {
        "spatial_dims": 3,
        "planned": True,
        "in_channels": 1,
        "label_values": [0, 1],
        "label_names": ["background", "my name for it"],
        "patch_size": [8, 8, 8],
        "spacing_mm": [3.0, 3.0, 3.0],
        "folds": 5,
        "network_def": {"channels": [4, 8], "padding": "same"},
    }
    assert adapt(dataset, config) == {"folds": 3}
    with pytest.raises(ConfigError, match="plan again"):
        adapt(dataset, {**config, "label_values": [0, 1, 2]})


def test_the_estimate_of_memory_grows_with_what_a_step_keeps() -> None:
    network = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [8, 16], "norm": "batch"}
    small = training_bytes(network, (2, 1, 64, 64), itemsize=4, cpu=False)
    large = training_bytes(network, (2, 1, 128, 128), itemsize=4, cpu=False)
    half = training_bytes(network, (2, 1, 128, 128), itemsize=2, cpu=False)
    weights = 16 * sum(parameter.numel() for parameter in UNet(**network).parameters())
    assert large - weights == pytest.approx(4 * (small - weights), rel=0.01)
    assert half < large
    # two convolutions, two norms and two activations of 8 channels at the finest level, twice, are kept at least
    assert large > 8 * 8 * 2 * 128 * 128 * 4


@pytest.mark.filterwarnings("ignore")
def test_a_step_is_measured_in_a_process_of_its_own(make_data: DataMaker) -> None:
    chosen = plan_for(make_data(), measure=True, seconds=120)
    assert chosen.cost is not None
    assert chosen.cost.step_seconds > 0
    assert chosen.cost.data_seconds > 0
    assert 50 << 20 < chosen.cost.peak_bytes < 8 * GB
    assert chosen.values["epochs"] % chosen.values["val_interval"] == 0
    assert chosen.seconds is not None
    assert chosen.seconds <= 125
    assert {note.id for note in chosen.notes} == {"memory", "time"}


def test_a_config_that_cannot_be_trained_with_says_so() -> None:
    config = json.loads((find_bundle("unet_2d") / "configs" / "train.json").read_text())
    config["network_def"]["channels"] = [0, 1]
    with pytest.raises(ConfigError, match="a training step failed"):
        measure_step(config, image_size=[64, 64], device="cpu", steps=1)


def test_a_time_needs_a_measurement(make_data: DataMaker) -> None:
    with pytest.raises(ConfigError, match="without measuring"):
        plan_for(make_data(), seconds=60)


@pytest.mark.parametrize("seconds", [60, 600, 1800, 36_000])
@pytest.mark.parametrize("image_seconds", [0.001, 0.2, 5.0])
def test_the_schedule_fits_the_time(seconds: float, image_seconds: float) -> None:
    cost = StepCost(True, step_seconds=0.3, data_seconds=0.05, image_seconds=image_seconds)
    found = fit_schedule(cost, steps_per_epoch=40, validation_cases=10, seconds=seconds, device="cpu")
    validations = found.epochs // found.val_interval
    assert found.epochs == validations * found.val_interval
    total = START_SECONDS + found.epochs * found.steps_per_epoch * 0.35 + validations * 10 * image_seconds
    assert total <= seconds * 1.01 or 10 * image_seconds > seconds / 3
    assert found.seconds == pytest.approx(total)
    if seconds >= 600:
        assert total > 0.7 * seconds  # and uses it


def test_a_validation_longer_than_the_time_does_not_lengthen_the_training() -> None:
    cost = StepCost(True, step_seconds=0.3, image_seconds=10.0)
    found = fit_schedule(cost, steps_per_epoch=20, validation_cases=400, seconds=600, device="cpu")
    assert found.epochs * found.steps_per_epoch * 0.3 <= 300
    assert found.seconds <= 300 + 4000 + START_SECONDS
    assert "longer than the other half" in found.reason


def test_one_case_cannot_be_planned_for(make_data: DataMaker) -> None:
    with pytest.raises(DataError, match=r"second case.*cut this one in two"):
        plan_for(make_data(cases=1))
    assert plan_for(make_data(cases=2)).values["folds"] == 2


def test_validation_measures_and_does_not_choose(make_data: DataMaker) -> None:
    assert plan_for(make_data()).values["keep_epoch"] == "last"


def test_without_a_time_a_gpu_makes_more_steps() -> None:
    cost = StepCost(True, step_seconds=0.3, image_seconds=0.1)
    steps = {}
    for device in ("cpu", "cuda"):
        found = fit_schedule(cost, steps_per_epoch=40, validation_cases=5, seconds=None, device=device)
        steps[device] = found.epochs * found.steps_per_epoch
    assert steps["cpu"] < steps["cuda"]


@pytest.mark.parametrize("text", ["", "30", "min", "-3min", "0min", "3 parsecs"])
def test_impossible_durations_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="duration"):
        parse_time(text)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_is_measured_on_cuda(make_data: DataMaker) -> None:
    chosen = plan_for(make_data(), measure=True, device="cuda")
    assert chosen.cost is not None
    assert 0 < chosen.cost.peak_bytes < 8 * GB
