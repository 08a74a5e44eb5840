"""Values of a bundle for a data set."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from monai.bundle import ConfigParser

from medunet.bundle import find_bundle
from medunet.config import apply, read_json
from medunet.datasets import open_dataset, write_phantom_dataset
from medunet.errors import ConfigError, DataError
from medunet.io import write_volume
from medunet.networks import UNet
from medunet.planning import Plan, choices, fingerprint, plan
from medunet.planning.plan import choose_grid
from medunet.planning.probe import OUT_OF_MEMORY_RC, PROCESS_BYTES, StepCost, measure_step, training_bytes
from medunet.planning.schedule import START_SECONDS, fit_schedule
from medunet.planning.topology import choose_budget

from .conftest import DataMaker, declare

GB = 1 << 30
FLIPS = "augment::deform::flip_axes"


def plan_for(data: Path, *, measure: bool = False, **options: Any) -> Plan:
    dataset = open_dataset(data)
    config = read_json(find_bundle(f"unet_{dataset.spatial_dims}d") / "configs" / "train.json")
    options = {"device": "cpu", "memory": 8 * GB, **options}
    return plan(dataset, config, fingerprint=fingerprint(dataset), measure=measure, **options)


@pytest.mark.data
def test_hippocampus_plan_matches_the_benchmark(test_data: Path) -> None:
    values = plan_for(test_data / "Task04_Hippocampus").values
    assert (values["patch_size"], values["batch_size"]) == ([40, 56, 40], 4)
    assert values["network_def::channels"] == [16, 48, 96, 192]
    assert (values["network_def::strides"], values["network_def::kernel_sizes"]) == (2, 3)
    assert values["spacing_mm"] == [1.0, 1.0, 1.0]
    assert values[FLIPS] == values["tta_axes"] == []  # anterior and posterior
    assert "mirror_axes" not in values
    assert values["view_scales"] == [1.0, 1.15, 1.3]  # two voxels thick
    assert 0.6 < values["augment::deform::elastic_sigma"] < 0.8  # so bent little
    assert values["steps::normalize"]["_target_"] == "NormalizeIntensityd"


@pytest.mark.data
def test_cells_plan_matches_the_benchmark(test_data: Path) -> None:
    values = plan_for(test_data / "ISBI2012_EM").values
    assert (values["patch_size"], values["batch_size"]) == ([256, 256], 4)
    assert values["network_def::channels"] == [32, 64, 128, 256, 512]
    assert values[FLIPS] == values["tta_axes"] == values["mirror_axes"] == [0, 1]
    assert not {"view_scales", "spacing_mm"} & values.keys()  # in volumes only
    assert values["loss"]["include_background"] is True  # membranes are thin


@pytest.mark.data
def test_sarcoma_ct_is_resampled_to_a_coarser_grid(test_data: Path) -> None:
    values = plan_for(test_data / "STS_GTV_CT").values
    normalise = values["steps::normalize"]
    assert normalise["_target_"] == "ScaleIntensityRanged"
    assert -200 < normalise["a_min"] < 0 < normalise["a_max"] < 1000
    assert values["spacing_mm"] == pytest.approx([2.03, 2.03, 3.27])
    assert values["network_def::strides"][0] == [2, 2, 2]
    assert values[FLIPS] == values["tta_axes"] == [0, 1, 2]
    assert not {"mirror_axes", "view_scales"} & values.keys()  # large images: views would be slow


@pytest.mark.parametrize("channel", ["CT", "MR"])
def test_images_are_planned_with_the_size_after_cropping(channel: str, make_data: DataMaker) -> None:
    # CT is cropped to the body, MR to what is not 0, with 8 voxels on each side
    data = fingerprint(open_dataset(make_data(channels=[channel], low=-1000, high=400)))
    box, whole = [(edges,) * 3 for edges in ((60, 50, 60), (200, 200, 60))]
    data = replace(data, shapes=whole, body_shapes=box, crop_shapes=whole if channel == "CT" else box)
    assert choose_grid(data, choose_budget(3, cuda=False), flat=False).size == (76, 66, 60)
    config = read_json(find_bundle("unet_3d") / "configs" / "train.json")
    assert config["steps"]["crop_body"]["margin"] == choices.BODY_MARGIN


def test_the_limits_of_a_step_follow_the_memory(make_data: DataMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def spy(*args: Any, **options: Any) -> Any:
        given.append(options)
        return choose_budget(*args, **options)

    monkeypatch.setattr(sys.modules["medunet.planning.plan"], "choose_budget", spy)
    plan_for(make_data(channels=["MR"]), memory=5 * GB)
    assert given == [{"cuda": False, "seconds": None, "memory": 5 * GB}]


def test_ct_is_clipped_and_scaled_by_the_foreground(make_data: DataMaker) -> None:
    chosen = plan_for(make_data(channels=["CT"], low=-1000, high=400))
    channel, normalise = chosen.fingerprint.channels[0], chosen.values["steps::normalize"]
    assert (normalise["a_min"], normalise["a_max"], normalise["clip"]) == (channel.low, channel.high, True)
    assert normalise["b_min"] == pytest.approx((channel.low - channel.mean) / channel.std, abs=1e-5)


def test_contrast_and_shading_change_in_long_training_runs_on_mr_but_not_on_ct(make_data: DataMaker) -> None:
    recipe = read_json(find_bundle("unet_3d") / "configs" / "train.json")
    assert recipe["contrast_steps"] == []
    steps = choices.CONTRAST_STEPS
    for channels, count, changes in ((["MR"], steps, 3), (["MR"], steps - 1, 0), (["CT", "PET"], steps, 0)):
        data = fingerprint(open_dataset(make_data(channels=channels, low=-1000, high=400)))
        config = apply(recipe, {one.id: one.value for one in choices.intensity(data, recipe, count)})
        assert len(config["contrast_steps"]) == changes
        assert (config["augment"]["noise"]["std"][1] > 0.1) is bool(changes)
        assert ConfigParser(config).get_parsed_content("contrast_steps", lazy=False) is not None


def test_each_channel_is_normalised_by_the_rule_of_its_kind(make_data: DataMaker) -> None:
    normalise = plan_for(make_data(channels=["CT", "PET"], low=-1000, high=400)).values["steps::normalize"]
    assert normalise["_target_"] == "medunet.transforms.NormalizeChannelsd"
    assert normalise["channels"][0].keys() == {"low", "high", "mean", "std"}
    assert normalise["channels"][1] is None


def test_zeros_around_the_image_are_ignored(tmp_path: Path) -> None:
    label = np.zeros((20, 20, 20), np.uint8)
    label[8:12, 8:12, 8:12] = 1
    image = np.pad(np.arange(1, 1001, dtype=np.float32).reshape(10, 10, 10), 5)
    for name in "ab":
        write_volume(image, tmp_path / "images" / f"{name}.nii.gz", affine=np.eye(4))
        write_volume(label, tmp_path / "labels" / f"{name}.nii.gz", affine=np.eye(4))
    values = plan_for(tmp_path).values
    assert values["steps::normalize"]["nonzero"] is True
    assert (values["crop_steps"], values["body_threshold"]) == (["@steps#crop_body"], 0.0)


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
def test_mirroring_is_enabled_only_if_all_labels_stay_correct(
    make_data: DataMaker, names: list[str], axes: list[int]
) -> None:
    labels = {name: value for value, name in enumerate(["background", *names])}
    (decision, *_) = choices.mirroring(fingerprint(open_dataset(make_data(labels=labels, cases=1))))
    assert (decision.id, decision.value) == (FLIPS, axes)


def test_left_and_right_labels_are_swapped(make_data: DataMaker) -> None:
    labels = {"background": 0, "heart": 4, "lungR": 5, "lungL": 7}
    values = plan_for(make_data(labels=labels)).values
    assert values[FLIPS] == [0]
    # class indices, not values
    assert values["augment::deform::swap_labels"] == values["mirror_swaps"] == [[3, 2]]
    flat = plan_for(make_data(labels=labels, shape=(12, 40, 40), spacing=(4, 1, 1)), dims=2).values
    assert flat[FLIPS] == []  # the planes are sagittal
    assert "mirror_swaps" not in flat


def write_pictures(root: Path, label: np.ndarray, image: np.ndarray, labels: dict[str, int]) -> Path:
    for folder, name, picture in (("images", "c{}.png", image), ("labels", "c{}.png", label)):
        (root / folder).mkdir()
        for case in range(2):
            PIL.Image.fromarray(picture).save(root / folder / name.format(case))
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    return root


def test_pictures_with_left_and_right_labels_are_not_mirrored(tmp_path: Path) -> None:
    label = np.zeros((48, 48), np.uint8)
    label[10:12, 10:12], label[10:12, 30:32] = 1, 2
    data = write_pictures(tmp_path, label, label * 100, {"background": 0, "left lung": 1, "right lung": 2})
    (decision,) = (d for d in plan_for(data).decisions if d.id == FLIPS)
    assert decision.value == []
    assert "which axis" in decision.reason


def test_colour_images_have_three_channels_and_rare_foreground_centres_patches(tmp_path: Path) -> None:
    label = np.zeros((48, 48), np.uint8)
    label[10:12, 10:12] = 1
    image = np.random.default_rng(0).integers(0, 255, (48, 48, 3)).astype(np.uint8)
    chosen = plan_for(write_pictures(tmp_path, label, image, {"background": 0, "cell": 1}))
    assert chosen.values["in_channels"] == 3
    assert chosen.fingerprint.channels[0].kind == "colour"
    assert chosen.values["augment::deform::foreground_key"] == "label"  # 4 pixels of 48 x 48


def test_ignored_voxels_are_excluded_from_labels_and_loss(make_data: DataMaker) -> None:
    values = plan_for(make_data(labels={"background": 0, "organ": 1, "ignore": 2})).values
    assert values["steps::encode::ignore_value"] == 2
    assert values["loss"]["ignore_index"] == 255
    assert values["label_values"] == [0, 1]


def test_regions_are_channels_of_their_own(make_data: DataMaker) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    root = make_data(labels={"background": 0, "left rim": 1, "core": 2, "ignore": 3})
    values = plan_for(declare(root, labels=labels, regions_class_order=[1, 2])).values
    assert values["region_names"] == ["whole", "core"]
    assert (values["region_values"], values["regions_class_order"]) == ([[1, 2], [2]], [1, 2])
    assert values["loss"]["_target_"] == "medunet.losses.RegionDiceCELoss"
    assert values["loss"]["ignore_index"] == 255
    assert values["label_values"] == [0, 1, 2]
    assert values[FLIPS] == [0, 1, 2]  # the names of the regions count


def test_volumes_can_have_a_2d_network_but_pictures_no_3d_network(make_data: DataMaker, tmp_path: Path) -> None:
    values = plan_for(make_data(shape=(40, 40, 12), spacing=(1, 1, 4)), dims=2).values
    assert values["patch_size"][2] == 1
    assert {row[2] for row in values["network_def::strides"]} == {1}
    assert values[FLIPS] == [0, 1]
    write_phantom_dataset(tmp_path / "cells", kind="cells", cases=2, size=(64, 64))
    with pytest.raises(ConfigError, match="2-D"):
        plan_for(tmp_path / "cells", dims=3)


def test_less_memory_makes_the_patch_smaller(make_data: DataMaker) -> None:
    data = make_data(shape=(96, 96, 96))
    large, small = plan_for(data), plan_for(data, memory=PROCESS_BYTES + (120 << 20))
    assert np.prod(small.values["patch_size"]) < np.prod(large.values["patch_size"])
    assert small.values["batch_size"] == 2
    with pytest.raises(ConfigError, match="memory is too small"):
        plan_for(data, memory=100 << 20)


def test_the_memory_estimate_grows_with_the_tensors_of_a_step() -> None:
    network = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [8, 16], "norm": "batch"}
    small = training_bytes(network, (2, 1, 64, 64), itemsize=4, cpu=False)
    large = training_bytes(network, (2, 1, 128, 128), itemsize=4, cpu=False)
    weights = 16 * sum(parameter.numel() for parameter in UNet(**network).parameters())
    assert large - weights == pytest.approx(4 * (small - weights), rel=0.01)
    assert training_bytes(network, (2, 1, 128, 128), itemsize=2, cpu=False) < large
    # at least two convolutions, two norms and two activations of 8 channels at the finest level, twice
    assert large > 8 * 8 * 2 * 128 * 128 * 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("separate", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_is_measured_by_a_program(
    separate: bool, make_data: DataMaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], *, input: str, **_: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "stdin", io.StringIO(input))
        exec(command[-1], {})  # the program, in this process
        return SimpleNamespace(returncode=0, stdout=capsys.readouterr().out)

    if not separate:
        monkeypatch.setattr("medunet.planning.probe.subprocess.run", run)
    chosen = plan_for(make_data(), measure=True, seconds=120)
    assert chosen.cost is not None and chosen.seconds is not None
    assert chosen.cost.step_seconds > 0 and chosen.cost.data_seconds > 0
    assert 50 << 20 < chosen.cost.peak_bytes < 8 * GB
    assert chosen.values["epochs"] % chosen.values["val_interval"] == 0
    assert chosen.seconds <= 125
    assert {note.id for note in chosen.notes} == {"memory", "time"}


def test_a_short_time_gets_fewer_channels_and_more_steps(make_data: DataMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def cost(config: dict[str, Any], **_: Any) -> StepCost:
        seen.append(config["network_def"]["channels"][0])
        return StepCost(True, step_seconds=0.1 * (seen[-1] / 16) ** 2)

    monkeypatch.setattr(sys.modules["medunet.planning.plan"], "measure_step", cost)
    for seconds, channels in ((None, [16]), (100, [16]), (50, [16, 8]), (12, [16, 8])):
        seen.clear()
        chosen = plan_for(make_data(), measure=True, seconds=seconds)
        assert seen == channels
        assert chosen.values["network_def::channels"][0] == seen[-1]
        assert ("contrast_steps" in chosen.values) is (seconds is None)  # without a time, there are many steps
    assert "times 0.25" in next(d.reason for d in chosen.decisions if d.id == "network_def::channels")
    assert "with the usual channels" in next(note.reason for note in chosen.notes if note.id == "time")


def test_a_killed_process_means_out_of_memory_and_a_failed_one_reports_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = SimpleNamespace(returncode=OUT_OF_MEMORY_RC, stdout="", stderr="Traceback\nValueError: no channels\n")
    monkeypatch.setattr("medunet.planning.probe.subprocess.run", lambda *_, **__: done)
    assert measure_step({}, image_size=[64, 64], device="cpu") == StepCost(fits=False)
    done.returncode = 1
    with pytest.raises(ConfigError, match=r"a training step failed.*ValueError: no channels"):
        measure_step({}, image_size=[64, 64], device="cpu")


@pytest.mark.parametrize("seconds", [60, 600, 1800, 36_000])
@pytest.mark.parametrize("image_seconds", [0.001, 0.2, 5.0])
def test_the_schedule_fits_the_time_budget(seconds: float, image_seconds: float) -> None:
    cost = StepCost(True, step_seconds=0.3, data_seconds=0.05, image_seconds=image_seconds)
    schedule = fit_schedule(cost, steps_per_epoch=40, validation_cases=10, seconds=seconds, device="cpu")
    validations = schedule.epochs // schedule.val_interval
    assert schedule.epochs == validations * schedule.val_interval
    total = START_SECONDS + schedule.epochs * schedule.steps_per_epoch * 0.35 + validations * 10 * image_seconds
    assert total <= seconds * 1.01 or 10 * image_seconds > seconds / 3
    assert schedule.seconds == pytest.approx(total)
    if seconds >= 600:
        assert total > 0.7 * seconds  # and uses it


def test_a_validation_longer_than_the_budget_does_not_lengthen_training() -> None:
    cost = StepCost(True, step_seconds=0.3, image_seconds=10.0)
    schedule = fit_schedule(cost, steps_per_epoch=20, validation_cases=400, seconds=600, device="cpu")
    assert schedule.epochs * schedule.steps_per_epoch * 0.3 <= 300
    assert schedule.seconds <= 300 + 4000 + START_SECONDS
    assert "longer than the other half" in schedule.reason


def test_one_case_is_rejected_and_a_time_needs_a_measured_step(make_data: DataMaker) -> None:
    with pytest.raises(DataError, match=r"second case.*cut this one in two"):
        plan_for(make_data(cases=1))
    chosen = plan_for(make_data(cases=2))
    assert chosen.values["folds"] == 2
    assert len(chosen.values) == len(chosen.decisions)
    assert all(decision.reason for decision in chosen.decisions)
    with pytest.raises(ConfigError, match="without measuring"):
        plan_for(make_data(), seconds=60)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_is_measured_on_cuda(make_data: DataMaker) -> None:
    chosen = plan_for(make_data(), measure=True, device="cuda")
    assert chosen.cost is not None
    assert 0 < chosen.cost.peak_bytes < 8 * GB
