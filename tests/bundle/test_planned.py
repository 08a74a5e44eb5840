"""A planned bundle is an ordinary bundle, and trains with no edit."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run_monai_bundle
from small import narrow

from medunet.bundle import plan_bundle, verify_bundle
from medunet.bundle.render import write_bundle
from medunet.config import read_json
from medunet.datasets import open_dataset, write_phantom_dataset
from medunet.errors import DataError
from medunet.io import read_volume, write_volume
from medunet.prediction import Predictor
from medunet.runs import evaluate_bundle, train_bundle

pytestmark = pytest.mark.filterwarnings("ignore")


def make(tmp_path: Path, kind: str, **options: Any) -> tuple[Path, Path]:
    """Write a data set and plan a bundle for it."""
    data = tmp_path / "data"
    if kind == "ct":
        write_phantom_dataset(data, kind="ct", cases=3, size=(32, 32, 24))
    elif kind == "cells":
        write_phantom_dataset(data, kind="cells", cases=3, size=(64, 64))
    else:
        write_volumes(data, kind)
    return data, plan_bundle(data, tmp_path / "bundle", device="cpu", measure=False, **options).folder


def write_volumes(root: Path, kind: str) -> None:
    """Write three volumes with two organs: 'ignore' has a slab without annotation, 'two channels' a second image."""
    rng = np.random.default_rng(0)
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    channels = {"two channels": ["CT", "PET"], "air": ["CT"]}.get(kind, ["MR"])
    for case in range(3):
        label = np.zeros((32, 32, 12), np.uint8)
        label[4:14, 4:14, 2:8] = 1
        label[18:28, 18:28, 4:10] = 2
        image = label * 100 + rng.normal(0, 10, label.shape)
        if kind == "ignore":
            label[:, :, :3] = 3
        if kind == "air":
            label = np.pad(label, ((8, 24), (20, 12), (0, 0)))
            image = np.pad(image, ((8, 24), (20, 12), (0, 0)), constant_values=-1000.0)
        write_volume(label, root / "labelsTr" / f"c_{case}.nii.gz", affine=affine)
        for channel in range(len(channels)):
            name = f"c_{case}_{channel:04d}.nii.gz"
            write_volume(image.astype(np.float32), root / "imagesTr" / name, affine=affine)
    labels = {"background": 0, "liver": 1, "spleen": 2, **({"ignore": 3} if kind == "ignore" else {})}
    manifest = {"channel_names": dict(enumerate(channels)), "labels": labels, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(manifest))


# other tests of this file train planned bundles of volumes
@pytest.mark.parametrize("kind", [pytest.param("ct", marks=pytest.mark.slow), "cells"])
def test_a_planned_bundle_passes_its_checks_gives_reasons_and_trains_with_monai(tmp_path: Path, kind: str) -> None:
    data, bundle = make(tmp_path, kind)
    assert {check: fault for check, fault in verify_bundle(bundle).items() if fault} == {}
    docs = (bundle / "docs" / "README.md").read_text()
    assert "## Why these values" in docs
    for id_ in ("patch_size", "network_def::channels", "augment::deform::flip_axes", "memory"):
        assert f"| `{id_}` | `" in docs
    assert "bundle render" not in docs
    assert len(read_json(bundle / "docs" / "fingerprint.json")["cases"]) == 3
    metadata = read_json(bundle / "configs" / "metadata.json")
    assert metadata["data_source"] == open_dataset(data).name
    assert metadata["network_data_format"]["inputs"]["image"]["modality"] == {"ct": "CT", "cells": "unknown"}[kind]
    options = {"config_file": bundle / "configs" / "train.json", "bundle_root": bundle, "dataset_dir": data}
    run_monai_bundle("run", "training", **options, **narrow(bundle, tracking_uri=""))
    assert torch.load(bundle / "models" / "model.pt", weights_only=True).keys() == {"model"}


@pytest.mark.parametrize(
    ("kind", "options"),
    [("anisotropic", {"dims": 2}), ("two channels", {"memory": 8 << 30}), ("air", {})],
)
def test_a_planned_bundle_trains_and_predicts_unedited(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    data, bundle = make(tmp_path, kind, **options)
    result = train_bundle(bundle, data, tmp_path / "run", changes=narrow(bundle, tracking_uri=""), device="cpu")
    planned, trained = (read_json(folder / "configs" / "train.json") for folder in (bundle, tmp_path / "run"))
    for id_ in ("patch_size", "steps", "augment", "loss", "label_values"):
        assert trained[id_] == planned[id_]
    assert trained["network_def"]["strides"] == planned["network_def"]["strides"]
    assert (tmp_path / "run" / "docs" / "fingerprint.json").is_file()
    assert result.epochs == 1
    case = open_dataset(data).cases[0]
    predictor = Predictor(tmp_path / "run", output_dir=tmp_path / "out", device="cpu")
    written = read_volume(predictor.predict_case(list(case.images) if len(case.images) > 1 else case.images[0]))
    assert written.record.geometry.is_close(read_volume(case.images[0]).record.geometry)
    assert set(np.unique(written.image)) <= set(open_dataset(data).labels.values())
    if kind == "air":
        assert planned["crop_steps"] == ["@steps#crop_body"]
        assert not written.image[0, 52:].any()  # the box and its margin of 8 voxels end before


def test_ignored_voxels_are_left_out_of_training_and_evaluation(tmp_path: Path) -> None:
    data, bundle = make(tmp_path, "ignore")
    run = train_bundle(bundle, data, tmp_path / "run", changes=narrow(bundle, tracking_uri=""), device="cpu").run
    run_monai_bundle("run", "evaluating", config_file=run / "configs" / "evaluate.json", bundle_root=run)
    assert (run / "eval" / "val_mean_dice_raw.csv").is_file()
    summary = evaluate_bundle(run, data, tmp_path / "measured", device="cpu")
    assert set(summary["classes"]) == {"liver", "spleen"}


def test_force_replaces_a_plan_but_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, bundle = make(tmp_path, "cells")
    edited = bundle / "configs" / "train.json"
    edited.write_text(edited.read_text().replace('"planned": true', '"planned": true, "mine": 1'))
    with pytest.raises(DataError, match="contains a planned bundle, which may have been edited"):
        plan_bundle(data, bundle, device="cpu", measure=False)

    def full(files: dict[str, str], folder: Path) -> None:
        write_bundle(dict(list(files.items())[:3]), folder)
        raise DataError("disk is full", file=folder)

    before = {path: path.read_bytes() for path in bundle.rglob("*.json")}
    with monkeypatch.context() as patch, pytest.raises(DataError, match="disk is full"):
        patch.setattr("medunet.bundle.planned.write_bundle", full)
        plan_bundle(data, bundle, device="cpu", measure=False, force=True)
    assert {path: path.read_bytes() for path in bundle.rglob("*.json")} == before
    plan_bundle(data, bundle, device="cpu", measure=False, force=True)
    assert '"mine"' not in edited.read_text()
    # a run, the ensemble of a cross-validation, and one that is not yet joined
    for weights in ("models/last.pt", "models/fold_0.pt", "fold_1/models/last.pt"):
        (bundle / weights).parent.mkdir(parents=True)
        (bundle / weights).write_bytes(b"")
        with pytest.raises(DataError, match="trained run"):
            plan_bundle(data, bundle, device="cpu", measure=False, force=True)
        shutil.rmtree((bundle / weights).parent)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    with pytest.raises(DataError, match="contains other files"):
        plan_bundle(data, tmp_path / "other", device="cpu", measure=False)
    assert not list(tmp_path.glob(".plan_*"))


def test_the_preset_for_few_images_does_not_mix_distant_planes(tmp_path: Path) -> None:
    _, bundle = make(tmp_path, "anisotropic")
    few = read_json(bundle / "configs" / "few.json")
    assert few["augment::deform::rotate_range"] == [0.0, 0.0, 0.5]
    x, y, across = few["augment::deform::elastic_sigma"]
    assert 1.5 < x == y <= 3.0
    assert across == 0.0


@pytest.mark.parametrize("regions", [False, True])
def test_few_images_with_regions_or_ignored_pixels_are_trained_on(tmp_path: Path, regions: bool) -> None:
    data = tmp_path / "data"
    rng = np.random.default_rng(0)
    for case in range(2):
        label = np.zeros((64, 64), np.uint8)
        label[8:40, 8:40], label[16:30, 16:30], label[50:, :] = 1, 2, 3
        image = (label * 50 + rng.normal(0, 5, label.shape)).astype(np.float32)
        write_volume(image, data / "imagesTr" / f"c_{case}_0000.nii.gz", affine=np.eye(4))
        write_volume(label, data / "labelsTr" / f"c_{case}.nii.gz", affine=np.eye(4))
    labels: dict[str, Any] = {"background": 0, "whole": [1, 2] if regions else 1, "core": 2, "ignore": 3}
    manifest = {"channel_names": {"0": "EM"}, "labels": labels, "file_ending": ".nii.gz"}
    manifest |= {"regions_class_order": [1, 2]} if regions else {}
    (data / "dataset.json").write_text(json.dumps(manifest))
    bundle = plan_bundle(data, tmp_path / "bundle", device="cpu", measure=False).folder
    result = train_bundle(
        bundle, data, tmp_path / "run", changes=narrow(bundle, tracking_uri=""), presets=["few"], device="cpu"
    )
    assert np.isfinite(result.history[0]["loss"])
    loss = read_json(tmp_path / "run" / "configs" / "train.json")["loss"]
    assert loss["ignore_index"] == 255
    assert loss["_target_"].rpartition(".")[2] == ("RegionDiceCELoss" if regions else "BorderWeightedCELoss")
