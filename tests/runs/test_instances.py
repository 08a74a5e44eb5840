"""From numbered objects to a bundle, and from an image to numbered objects."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run_monai_bundle
from monai.bundle import ConfigParser
from scipy import ndimage
from small import narrow, untrained_run

from medunet import load
from medunet.bundle import find_bundle, plan_bundle
from medunet.config import apply, read_json
from medunet.datasets import datalist, open_dataset
from medunet.errors import ConfigError
from medunet.io import read_volume, write_volume
from medunet.planning import adapt
from medunet.planning.adapt import instance_values
from medunet.planning.instances import object_budget
from medunet.planning.topology import CPU_2D
from medunet.prediction import Predictor
from medunet.runs import evaluate_bundle, fit_bundle, report_runs, train_bundle, train_folds
from medunet.runs.objects import choose_objects
from medunet.training import OBJECT_METRICS
from medunet.training.handlers import read_history
from medunet.transforms import TARGETS

pytestmark = pytest.mark.filterwarnings("ignore")


def write_bars(root: Path, *, shape: tuple[int, ...] = (48, 64), cases: int = 4, classes: int = 1) -> Path:
    """Write images of touching bars, which are darker at their borders; of two classes, one is brighter."""
    rng = np.random.default_rng(0)
    rows = []
    for case in range(cases):
        numbers = np.zeros(shape, np.int32)
        for index in range(9):  # 300 + index does not fit into 8 bits
            numbers[4 + case : 34 + case, 6 * index + 3 : 6 * index + 9] = 300 + index
            rows.append(f"c{case},{300 + index},{'odd' if index % 2 and classes == 2 else 'even'}")
        image = (numbers > 0) * 120 + (numbers % 2) * (60 if classes == 2 else 0) + rng.normal(40, 5, shape)
        image[np.abs(np.diff(numbers, axis=1, prepend=0)) > 0] *= 0.5
        write_volume(np.clip(image, 0, 255).astype(np.uint8), root / f"images/c{case}.png")
        write_volume(numbers, root / f"labels/c{case}.tif")
    if classes == 2:
        (root / "classes.csv").write_text("\n".join(["case,id,class", *rows]))
    (root / "dataset.json").write_text(json.dumps({"instances": True}))
    return root


def write_balls(root: Path) -> Path:
    """Write volumes of touching balls on a grid of anisotropic voxels."""
    rng, voxels = np.random.default_rng(0), np.stack(np.indices((32, 32, 24)), axis=-1)
    affine = np.diag([1, 1, 1.5, 1])
    for case in range(4):
        numbers = np.zeros((32, 32, 24), np.uint16)
        for index, place in enumerate(np.ndindex(3, 3, 2)):
            numbers[((voxels - 9 * np.array(place) - 6 - case) ** 2).sum(axis=-1) <= 25] = 300 + index
        image = (numbers > 0) * 100 + rng.normal(40, 5, numbers.shape)
        write_volume(image.astype(np.float32), root / f"images/c{case}.nii.gz", affine=affine)
        write_volume(numbers, root / f"labels/c{case}.nii.gz", affine=affine)
    (root / "dataset.json").write_text(json.dumps({"instances": True}))
    return root


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_gives_a_loss(tmp_path: Path, target: str, classes: int) -> None:
    data = write_bars(tmp_path, classes=classes)
    dataset = open_dataset(data)
    small = {"network_def::channels": [4, 8], "patch_size": [32, 32], "in_channels": 1}
    names = {"label_names": list(dataset.labels), "label_values": list(dataset.labels.values())}
    train = apply(read_json(find_bundle("unet_2d") / "configs" / "train.json"), instance_values(target) | small | names)
    parser = ConfigParser()
    parser.read_config(train | {"device": "cpu"})
    steps = parser.get_parsed_content("train::preprocessing")
    item = steps(datalist(data, section="all")[0])
    network = parser.get_parsed_content("network_def")
    logits = network(item["image"][None])
    assert logits.shape[1] == classes + 1 + (target == "border")
    assert item["label"].shape == (1, 32, 32)
    assert item["label"].max() <= classes + (target == "border")
    extra = [item[key][None] for key in parser.get_parsed_content("loss_keys")]
    assert len(extra) == {"gap": 1, "border": 0, "distance": 2}[target]
    parser.get_parsed_content("loss")(logits, item["label"][None], *extra).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


def test_the_published_network_separates_by_gaps(tmp_path: Path) -> None:
    dataset = open_dataset(write_bars(tmp_path))
    configs = {name: read_json(find_bundle(name) / "configs" / "train.json") for name in ("unet_2d", "unet_2015")}
    values = {name: adapt(dataset, config) for name, config in configs.items()}
    assert values["unet_2015"]["instance_target"] == "gap"
    assert "instance_target" not in values["unet_2d"]  # as the bundle has it
    class_labels = replace(dataset, instances=False)
    config = apply(configs["unet_2d"], values["unet_2d"])
    with pytest.raises(ConfigError, match="labels that number objects"):
        adapt(class_labels, config)
    values = fit_bundle(find_bundle("unet_2d"), tmp_path, changes={"instance_target": "border"})[1]
    assert "DiceCELoss" in values["loss"]["_target_"]
    assert values["loss_keys"] == []
    with pytest.raises(ConfigError, match=r"unknown target.*flow"):
        fit_bundle(find_bundle("unet_2d"), tmp_path, changes={"instance_target": "flow"})


@pytest.mark.parametrize("classes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_plan_for_objects_trains_and_finds_them(tmp_path: Path, classes: int) -> None:
    data = write_bars(tmp_path / "data", classes=classes)
    (data / "dataset.json").unlink()  # the bundle remembers what the plan was told
    planned = plan_bundle(data, tmp_path / "bundle", device="cpu", measure=False, instances=True)
    assert planned.plan.fingerprint.objects["count"] == 36
    assert planned.plan.values["instance_target"] == "distance"
    reason = next(d for d in planned.plan.decisions if d.id == "instance_target")
    assert "36 objects" in reason.numbers
    assert "100 % touch" in reason.numbers
    changes: dict[str, Any] = narrow(planned.folder, patch_size=[32, 32], batch_size=4, steps_per_epoch=20, epochs=2)
    run = train_bundle(planned.folder, data, tmp_path / "run", changes=changes, device="cpu", tracking_uri="").run
    scores = read_history(run)[-1]["val_metrics"]
    assert all(0 <= scores[name] <= 1 for name in OBJECT_METRICS)
    chosen = [read_json(run / "configs" / f"{name}.json")["objects"] for name in ("train", "evaluate", "inference")]
    assert chosen[0] == chosen[1] == chosen[2]
    predictor = Predictor(run, output_dir=tmp_path / "out", device="cpu")
    path = predictor.predict_case(data / "images" / "c0.png")
    item = predictor.decide(data / "images" / "c0.png")
    numbers = np.asarray(read_volume(path).image[0]).astype(int)
    assert np.array_equal(numbers, item["pred"][0].numpy())
    assert sorted(np.unique(numbers)) == list(range(numbers.max() + 1))
    assert numbers.max() > 0
    assert (tmp_path / "out" / "c0_objects.csv").is_file()
    assert item["prob"].shape[0] == classes + 1
    result = load(run, device="cpu").predict(data / "images" / "c0.png")
    assert np.array_equal(result.labels, numbers)
    assert sum(result.volumes_mm3.values()) == (numbers > 0).sum()
    if classes == 2:
        is_odd = item["object_classes"][numbers] == 1 + ["even", "odd"].index("odd")
        assert result.volumes_mm3["odd"] == is_odd.sum()
    assert result.probabilities is None
    assert result.picture() != replace(result, labels=np.minimum(numbers, 1)).picture()
    assert len(item["object_classes"]) == numbers.max() + 1
    assert set(item["object_classes"][1:]) <= set(range(1, classes + 1))
    assert report_runs([run], tmp_path / "report.html", figures=False).cases == 1


def test_images_with_large_objects_are_made_smaller_for_the_network(tmp_path: Path) -> None:
    for case in range(3):
        numbers = np.zeros((250, 261), np.uint16)
        numbers[10 + case : 130, 5:125], numbers[10:130, 125:245] = 1, 2
        write_volume((numbers > 0).astype(np.uint8) * 200, tmp_path / f"data/images/c{case}.png")
        write_volume(numbers, tmp_path / f"data/labels/c{case}.png")
    (tmp_path / "data/dataset.json").write_text(json.dumps({"instances": True}))
    planned = plan_bundle(tmp_path / "data", tmp_path / "bundle", device="cpu", measure=False)
    assert planned.plan.values["steps::spacing::pixdim"] == pytest.approx(
        [2.25, 2.25], abs=0.02
    )  # a square of 120 is a disc of 135
    changes = narrow(planned.folder, patch_size=[64, 64], batch_size=2, steps_per_epoch=10, epochs=2)
    options: dict[str, Any] = {"changes": changes, "device": "cpu", "tracking_uri": ""}
    run = train_bundle(planned.folder, tmp_path / "data", tmp_path / "run", **options).run
    item = Predictor(run, output_dir=tmp_path / "out", device="cpu").decide(tmp_path / "data/images/c0.png")
    assert item["image"].shape == (1, 111, 116)
    assert item["prob"].shape == (2, 250, 261)
    assert item["prob"][0, 20:120, 15:235].mean() > 0.05 + item["prob"][0, 150:].mean()


def test_patches_of_small_objects_are_small_and_have_as_many_levels(tmp_path: Path) -> None:
    plans = {}
    for side in (12, 36):  # pixels; the images are as large as 12 x 12 objects
        data, rng = tmp_path / f"data_{side}", np.random.default_rng(0)
        numbers = np.kron(np.arange(1, 101).reshape(10, 10), np.ones((side, side), np.uint16)).astype(np.uint16)
        numbers = np.pad(numbers, side)
        for case in range(8):
            image = (numbers > 0) * 100 + rng.integers(0, 50, numbers.shape)
            write_volume(image.astype(np.uint8), data / f"images/c{case}.png")
            write_volume(numbers, data / f"labels/c{case}.png")
        (data / "dataset.json").write_text(json.dumps({"instances": True}))
        planned = plan_bundle(data, tmp_path / f"bundle_{side}", device="cpu", measure=False)
        plans[side] = planned.plan.values
    assert [plans[side]["patch_size"] for side in (12, 36)] == [[128, 128], [240, 240]]
    budget = object_budget(CPU_2D, planned.plan.fingerprint, factor=3.0)
    assert budget.batch_voxels == 8 * budget.patch_voxels == 8 * 128**2
    assert len(plans[12]["network_def::channels"]) == len(plans[36]["network_def::channels"]) == 5


def test_dark_objects_on_a_bright_background_become_bright_if_others_are(tmp_path: Path) -> None:
    data = write_bars(tmp_path / "data", shape=(64, 80))
    pictures = {path: read_volume(path).image[0] for path in sorted((data / "images").iterdir())}

    def steps() -> list[str]:
        planned = plan_bundle(data, tmp_path / "bundle", device="cpu", measure=False, force=True)
        return [name.split("#")[-1] for name in planned.plan.values.get("image_steps", [])]

    assert steps() == []
    path, picture = next(iter(pictures.items()))
    write_volume(255 - picture, path, overwrite=True)
    assert steps() == ["dark_background", "normalize"]
    parser = ConfigParser(read_json(tmp_path / "bundle/configs/inference.json"))
    prepare = parser.get_parsed_content("preprocessing")
    negated = prepare({"image": str(path)})["image"]
    write_volume(picture, path, overwrite=True)
    assert torch.allclose(negated, prepare({"image": str(path)})["image"], atol=1e-5)
    for path, picture in pictures.items():
        write_volume(255 - picture, path, overwrite=True)
    assert steps() == []


def test_training_chooses_the_values_that_find_most_objects() -> None:
    ref = np.zeros((40, 60), np.int32)
    ref[5:35, 5:30], ref[5:35, 30:55] = 1, 2
    foreground = (ref > 0) * 0.9
    foreground[:, 29:31] *= 0.7  # a border that is too weak for the default
    foreground[2, 2] = 0.9  # and a stray
    maps = np.stack([1 - foreground, foreground]).astype(np.float32)
    present = {"threshold": 0.5, "boundary": 0.5, "min_size": 0, "fill_holes": True}
    chosen, before, after = choose_objects([(maps, ref)], "gap", present)
    assert before < 0.1
    assert after > 0.9
    assert chosen["boundary"] < 0.4
    assert 1 < chosen["min_size"] < 750
    dim = np.where(
        ndimage.binary_erosion(ref == 1, iterations=6) | ndimage.binary_erosion(ref == 2, iterations=6), 0.95, 0.57
    )
    cases = [(dim * (ref > 0), ref), (0.55 * (ref > 0), np.zeros_like(ref))]  # no threshold leaves out the second only
    cases = [(np.stack([1 - one, one]).astype(np.float32), objects) for one, objects in cases]
    chosen, _, after = choose_objects(cases, "gap", present)
    assert chosen["min_confidence"] == 0.6
    assert after > 0.9
    empty = np.zeros_like(ref)
    assert choose_objects([(maps, empty)], "gap", present)[0] == present


@pytest.mark.slow
def test_cross_validation_joins_folds_for_objects(tmp_path: Path) -> None:
    data = write_bars(tmp_path / "data")
    planned = plan_bundle(data, tmp_path / "bundle", device="cpu", measure=False)
    changes = narrow(planned.folder, folds=2)
    result = train_folds(planned.folder, data, tmp_path / "cv", changes=changes, device="cpu", tracking_uri="")
    assert result.is_whole
    assert result.summary is not None
    again = train_folds(planned.folder, data, tmp_path / "cv", changes=changes, device="cpu", tracking_uri="")
    assert [fold.status for fold in again.folds] == ["there already"] * 2
    item = Predictor(tmp_path / "cv", device="cpu").decide(data / "images" / "c0.png")
    assert item["pred"].dtype == torch.int32


@pytest.mark.slow
def test_monai_bundle_runs_a_bundle_for_objects(tmp_path: Path) -> None:
    data = write_bars(tmp_path / "data")
    planned = plan_bundle(data, tmp_path / "bundle", device="cpu", measure=False)
    run = train_bundle(planned.folder, data, tmp_path / "run", changes=narrow(planned.folder), device="cpu").run
    options = {"bundle_root": str(run), "dataset_dir": str(data)}
    run_monai_bundle("run", "evaluating", config_file=str(run / "configs" / "evaluate.json"), **options)
    scores = (run / "eval" / "metrics.csv").read_text()
    assert all(name in scores for name in ("val_mean_dice", *OBJECT_METRICS))
    shutil.rmtree(run / "models")
    run_monai_bundle("run", "training", config_file=str(run / "configs" / "train.json"), tracking_uri="", **options)
    out = tmp_path / "out"
    options |= {"dataset_dir": str(data / "images"), "prediction_dir": str(out)}
    run_monai_bundle("run", "inference", config_file=str(run / "configs" / "inference.json"), **options)
    paths = list(Predictor(run, output_dir=tmp_path / "ours", device="cpu").predict([data / "images" / "c1.png"]))
    assert np.array_equal(read_volume(out / "c1.png").image, read_volume(paths[0].path).image)


@pytest.mark.slow
def test_volumes_of_objects_are_planned_trained_predicted_and_evaluated(tmp_path: Path) -> None:
    data = write_balls(tmp_path / "data")
    planned = plan_bundle(data, tmp_path / "bundle", device="cpu", measure=False)
    changes = narrow(planned.folder, patch_size=[16, 16, 16], steps_per_epoch=30, folds=2, learning_rate=0.01)
    options: dict[str, Any] = {"changes": changes, "presets": ["few"], "device": "cpu", "tracking_uri": ""}
    result = train_folds(planned.folder, data, tmp_path / "cv", **options)
    assert result.summary is not None
    assert result.summary["objects"]["object"]["pooled"]["objects_ref"] == 4 * 18
    summary = evaluate_bundle(tmp_path / "cv", data, section="all", device="cpu")
    assert summary["cases"] == 4
    assert 0 <= summary["mean_ap"] <= 1
    numbers = read_volume(tmp_path / "cv" / "evaluation" / "predictions" / "c0.nii.gz").image
    assert numbers.shape == (1, 32, 32, 24)
    assert numbers.max() > 0


@pytest.mark.slow
def test_the_published_network_trains_on_objects(tmp_path: Path) -> None:
    data = write_bars(tmp_path / "data")
    changes = {"network_def::channels": [4, 8, 16, 16, 16], "steps_per_epoch": 2, "epochs": 1, "batch_size": 1}
    run = train_bundle(find_bundle("unet_2015"), data, tmp_path / "run", changes=changes, device="cpu").run
    config = read_json(run / "configs" / "train.json")
    assert (config["instances"], config["instance_target"]) == (True, "gap")
    path = Predictor(run, output_dir=tmp_path / "out", device="cpu").predict_case(data / "images" / "c0.png")
    assert read_volume(path, spatial_dims=2).image.shape == (1, 48, 64)


def test_tiles_cut_no_object(tmp_path: Path) -> None:
    data = write_bars(tmp_path / "data", cases=2)
    values = instance_values("border") | {"network_def::channels": [4, 8], "patch_size": [32, 32]}
    run = untrained_run(tmp_path / "run", bundle="unet_2d", **values, label_values=[0, 1])
    image = data / "images" / "c0.png"
    maps = [
        Predictor(run, device="cpu", overrides={"tile_size": tile, **more}).decide(image)
        for tile, more in (("auto", {}), ([32, 32], {}))
    ]
    assert maps[0]["pred"].max() > 0
    assert torch.equal(maps[0]["pred"], maps[1]["pred"])
