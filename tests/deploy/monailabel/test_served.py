"""Labels, results, scores and uncertainty of a served bundle, and its further training."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from small import untrained_run

from medunet.bundle import find_bundle
from medunet.datasets import write_phantom_dataset
from medunet.deploy.monailabel.agreement import disagreement, label_by_fold, label_mirrored, score_labels, uncertainty
from medunet.deploy.monailabel.results import describe_result, write_result
from medunet.deploy.monailabel.served import ServedBundle, order_label_info, serve
from medunet.deploy.monailabel.training import read_options, train_further, write_dataset
from medunet.errors import ConfigError, DataError
from medunet.io import read_volume, write_volume
from medunet.prediction import Predictor
from medunet.runs import train_folds
from medunet.trust import judge, record_weights


def test_names_values_and_colours_are_the_bundles(bundle: Path) -> None:
    (served,) = serve([bundle])
    assert served.labels == {"anterior": 1, "posterior": 2}
    assert served.segments[1].color == (1, 2, 3)
    assert (served.spatial_dims, served.is_ensemble) == (3, False)


def test_a_bundle_without_weights_is_rejected(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no bundle"):
        serve([])
    with pytest.raises(ConfigError, match="twice"):
        serve([bundle, bundle])
    (tmp_path / "configs").mkdir()
    for path in bundle.glob("configs/*"):
        (tmp_path / "configs" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="no weights"):
        serve([tmp_path])


def test_a_missing_organ_does_not_give_its_name_to_the_next(bundle: Path) -> None:
    info = order_label_info([2], ServedBundle("run", bundle).segments, [{"name": "anterior"}, {"name": "posterior"}])
    assert [entry["name"] for entry in info] == ["posterior"]
    assert info[0]["segmentAttribute"]["labelID"] == 2
    assert info[0]["segmentAttribute"]["recommendedDisplayRGBValue"] == [1, 2, 3]


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".seg.nrrd", ".mha"])
def test_a_result_lies_on_the_images_grid_in_each_format(bundle: Path, tmp_path: Path, ending: str) -> None:
    labels = torch.zeros(1, 5, 4, 3, dtype=torch.uint8)
    labels[0, 1:3, 2, 1] = 2
    affine = torch.diag(torch.tensor([0.5, 2.0, 3.0, 1.0], dtype=torch.float64))
    segments = ServedBundle("run", bundle).segments
    path = write_result(MetaTensor(labels, affine=affine), tmp_path, ending, segments=segments)
    found = read_volume(path).image
    assert np.array_equal(found[0].numpy(), labels[0].numpy())
    assert torch.allclose(found.affine, affine)
    assert describe_result(MetaTensor(labels, affine=affine), segments)["volume_ml"] == {
        "anterior": 0.0,
        "posterior": 0.006,  # 2 voxels of 3 mm³
    }


def test_an_unknown_type_of_result_leaves_no_file(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="result_dtype"):
        write_result(MetaTensor(torch.zeros(1, 3, 3, 3)), tmp_path, ".nrrd", segments=(), dtype="of wood")
    assert not list(tmp_path.iterdir())


def test_submitted_labels_become_a_data_set_with_the_bundles_names(
    bundle: Path, volume: Path, label: Path, tmp_path: Path
) -> None:
    assert write_dataset([(volume, label)], tmp_path / "data", ServedBundle("run", bundle)) == ["case"]
    manifest = json.loads((tmp_path / "data" / "dataset.json").read_text(encoding="utf-8"))
    assert manifest["labels"] == {"0": "background", "1": "anterior", "2": "posterior"}
    assert (tmp_path / "data" / manifest["training"][0]["image"]).samefile(volume)


def test_labels_that_the_bundle_does_not_define_are_rejected(bundle: Path, volume: Path, tmp_path: Path) -> None:
    other = write_volume(
        np.full((17, 19, 16), 7, np.uint8), tmp_path / "7.nii.gz", affine=read_volume(volume).image.affine
    )
    with pytest.raises(DataError, match="does not define"):
        write_dataset([(volume, other)], tmp_path / "data", ServedBundle("run", bundle))
    with pytest.raises(DataError, match="no labels were submitted"):
        write_dataset([], tmp_path / "none", ServedBundle("run", bundle))


@pytest.mark.parametrize("wrong", [{"max_epochs": "many"}, {"learning_rate": -1}])
def test_impossible_options_are_rejected(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        read_options(wrong)


@pytest.mark.filterwarnings("ignore")  # of MLflow and MONAI
def test_one_corrected_case_trains_the_working_copy_and_leaves_the_bundle(
    bundle: Path, volume: Path, label: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(bundle, tmp_path / "run"))
    record_weights(bundle, to_text=json.dumps)
    copy = ServedBundle("run", bundle).working_copy(tmp_path / "bundles")
    before, stamp = (bundle / "models" / "model.pt").read_bytes(), copy.stamp
    options = {"max_epochs": 1, "steps_per_epoch": 2, "device": "cpu"}
    done = train_further(copy, [(volume, label)], tmp_path / "trainings", **options)
    assert (done["cases"], done["held_out"]) == (1, 0)
    assert copy.stamp != stamp
    assert (bundle / "models" / "model.pt").read_bytes() == before
    config = json.loads((Path(done["run"]) / "configs" / "train.json").read_text(encoding="utf-8"))
    assert config["spacing_mm"] == [1.0, 1.0, 1.0]  # the network's, not that of the new case
    assert (Path(done["run"]).parent / "mlruns.db").is_file()
    # hashes of the bundle's first weights do not contradict the new ones
    predictor = Predictor(copy.folder, output_dir=tmp_path / "out", device="cpu")
    assert predictor.decide(volume)["pred"].shape == (1, 17, 19, 16)
    again = ServedBundle("run", bundle).working_copy(tmp_path / "bundles")
    assert again.stamp == copy.stamp
    assert judge(again.folder).is_trusted


@pytest.mark.filterwarnings("ignore")  # of MLflow and MONAI
def test_a_bundle_of_regions_is_trained_further_and_has_an_uncertainty(
    volume: Path, label: Path, tmp_path: Path
) -> None:
    regions = {"region_names": ["whole", "core"], "region_values": [[1, 2], [2]], "regions_class_order": [1, 2]}
    loss = {"_target_": "medunet.losses.RegionDiceCELoss", "regions": "@region_indices", "batch": True}
    bundle = untrained_run(tmp_path / "run", **regions, loss=loss)
    copy = ServedBundle("run", bundle).working_copy(tmp_path / "bundles")
    options = {"max_epochs": 1, "steps_per_epoch": 2, "device": "cpu"}
    done = train_further(copy, [(volume, label)], tmp_path / "trainings", **options)
    assert set(done["dice"]) <= {"whole", "core"}
    config = json.loads((Path(done["run"]) / "configs" / "train.json").read_text(encoding="utf-8"))
    assert {key: config[key] for key in regions} == regions
    predictor = Predictor(copy.folder, output_dir=tmp_path / "out", device="cpu")
    image = predictor.preprocessing({"image": str(volume)})["image"]
    same = torch.from_numpy(label_mirrored(predictor, image)[0].astype(np.int64))
    logits = predictor.inferer.inferer(image.as_tensor()[None], predictor.network)[0]
    assert torch.equal(same, torch.where(logits[1] > 0, 2, (logits[0] > 0).long()))


def test_scores_are_by_label(volume: Path, label: Path) -> None:
    found = score_labels(label, label, {"anterior": 1, "posterior": 2, "other": 3}, image=volume)
    assert (found["anterior"], found["posterior"]) == (1.0, 1.0)
    assert math.isnan(found["other"])


def test_disagreement_is_hand_computable() -> None:
    a, b, none = np.array([1, 1, 0, 0]), np.array([0, 1, 1, 0]), np.zeros(4, int)
    assert disagreement([a, b]) == 0.5
    assert disagreement([a, none]) == 1.0
    assert disagreement([none, none]) == 0.0
    with pytest.raises(ConfigError):
        disagreement([a])


def test_uncertainty_comes_from_mirrored_views(bundle: Path, volume: Path, tmp_path: Path) -> None:
    predictor = Predictor(bundle, output_dir=tmp_path, device="cpu")
    image = predictor.preprocessing({"image": str(volume)})["image"]
    maps = label_mirrored(predictor, image)
    assert len(maps) == 4
    assert 0 < uncertainty(predictor, volume, by="mirror") < 1
    with pytest.raises(ConfigError, match="not an ensemble"):
        label_by_fold(predictor, image)
    with pytest.raises(ConfigError, match="unknown measure"):
        uncertainty(predictor, volume, by="guess")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of MLflow and MONAI
def test_folds_that_were_trained_apart_disagree(tmp_path: Path) -> None:
    data = write_phantom_dataset(tmp_path / "cells", kind="cells", cases=4, size=[64, 64], seed=8).parent
    changes = {
        "network_def::channels": [4, 8],
        "autocast_dtype": "float32",
        "patch_size": [32, 32],
        "steps_per_epoch": 4,
        "batch_size": 2,
        "epochs": 1,
        "folds": 2,
        "tracking_uri": "",
    }
    train_folds(find_bundle("unet_2d"), data, tmp_path / "run", changes=changes, device="cpu")
    (served,) = serve([tmp_path / "run"])
    assert served.is_ensemble
    assert len(served.weights) == 2
    copy = served.working_copy(tmp_path / "bundles")
    predictor = Predictor(copy.folder, output_dir=tmp_path / "out", device="cpu")
    image = sorted(data.glob("imagesTr/*"))[0]
    one, other = label_by_fold(predictor, predictor.preprocessing({"image": str(image)})["image"])
    found = uncertainty(predictor, image, by="folds")
    assert found == disagreement([one, other])
    assert 0 < found < 1
    with pytest.raises(ConfigError, match="cannot be trained"):
        train_further(copy, [(image, image)], tmp_path / "trainings")
