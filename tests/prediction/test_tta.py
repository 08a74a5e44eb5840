"""Test-time augmentation as an option: its result equals a mean over views that is computed by hand."""

import itertools
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from commands import Capture, Medunet

from medunet.bundle import find_bundle
from medunet.cli.options import Views
from medunet.config import read_json
from medunet.errors import ConfigError
from medunet.planning.choices import FLIP_AXES
from medunet.prediction import PredictOptions, Predictor
from medunet.prediction.options import TTA
from medunet.runs.train import prepare_run
from tests.support.small import untrained_run

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = {"label_names": ["background", "edema", "core"], "label_values": [0, 1, 2]}
REGIONS = {"region_names": ["whole", "core"], "region_values": [[1, 2], [2]], "regions_class_order": [1, 2]}
TIE = 1e-5  # difference of float32 sums in another order
TILE = 24  # voxels per axis; the images are larger along one axis


@pytest.mark.parametrize("kind", ["classes", "regions", "an ensemble", "tiles", "two dimensions"])
def test_the_labels_are_those_of_the_mean_over_all_flips(kind: str, tmp_path: Path) -> None:
    bundle = "unet_2d" if kind == "two dimensions" else "unet_3d"
    values = {**NAMES, **(REGIONS if kind == "regions" else {}), "tta_axes": [0, 1, 2][: 2 + (bundle == "unet_3d")]}
    run, other = (untrained_run(tmp_path / f"run{seed}", seed=seed, bundle=bundle, **values) for seed in (0, 1))
    changes = {"tile_size": [TILE] * 3} if kind == "tiles" else {}
    options = PredictOptions(device="cpu", ensemble=[other] if kind == "an ensemble" else [], overrides=changes)
    image = np.random.default_rng(0).normal(size=(1, 29, 22) if bundle == "unet_2d" else (1, 29, 22, 17))
    axes = range(1, image.ndim)
    flips = [flip for count in range(image.ndim) for flip in itertools.combinations(axes, count)]

    plain = Predictor(run, options, probabilities=True)
    views = [np.flip(plain.decide_array(np.flip(image, flip).copy(), affine=np.eye(4))["prob"], flip) for flip in flips]
    mean = np.mean(np.asarray(views, dtype=np.float64), axis=0)
    if kind == "regions":
        expected = np.where(mean[1] > 0.5, 2, np.where(mean[0] > 0.5, 1, 0))
        is_tie = (np.abs(mean - 0.5) < TIE).any(axis=0)
    else:
        expected, ordered = mean.argmax(axis=0), np.sort(mean, axis=0)
        is_tie = ordered[-1] - ordered[-2] < TIE
    labels = np.asarray(Predictor(run, options, tta="mirror").decide_array(image, affine=np.eye(4))["pred"])[0]
    assert np.array_equal(labels[~is_tie], expected[~is_tie])
    unaveraged = np.asarray(plain.decide_array(image, affine=np.eye(4))["pred"])[0]
    assert len(np.unique(labels)) > 1
    assert not np.array_equal(labels, unaveraged)


def test_the_option_replaces_the_views_of_a_bundle_and_a_set_value_replaces_the_option(tmp_path: Path) -> None:
    run = untrained_run(tmp_path / "run", mirror_axes=[0], view_scales=[1.0, 1.5], tta_axes=[1, 2])

    def axes_and_scales(**options: object) -> tuple[object, object]:
        chain = [Predictor(run, device="cpu", **options).inferer]
        while hasattr(chain[-1], "inferer"):
            chain.append(chain[-1].inferer)
        found = {name: value for one in chain for name, value in vars(one).items() if name in ("axes", "scales")}
        return found.get("axes", ()), found.get("scales", ())

    assert axes_and_scales() == ((0,), (1.0, 1.5))
    assert axes_and_scales(tta="none") == ((), ())
    assert axes_and_scales(tta="mirror") == ((1, 2), ())
    assert axes_and_scales(tta="views") == ((1, 2), (1.0, 1.15, 1.3))
    assert axes_and_scales(tta="views", overrides={"view_scales": []}) == ((1, 2), ())
    with pytest.raises(ConfigError, match="received flips"):
        PredictOptions(tta="flips")


def test_a_network_that_never_saw_a_mirrored_patch_is_not_asked_about_one(tmp_path: Path) -> None:
    run = untrained_run(tmp_path / "run", bundle="unet_3d", **NAMES)
    with pytest.raises(ConfigError, match="trained without mirrored patches"):
        Predictor(run, device="cpu", tta="mirror")
    assert Predictor(run, device="cpu", review=True).view_axes == []
    assert Predictor("hippocampus", device="cpu").view_axes == []


def test_predict_and_evaluate_have_the_option(
    cells: Path, run_2d: Path, tmp_path: Path, medunet: Medunet, capsys: Capture
) -> None:
    assert list(get_args(Views)) == list(TTA)
    words = ["evaluate", run_2d, "--data", cells, "--cases", "all", "--output", tmp_path, "--force", "--tta"]
    dice = []
    for kind in ("none", "mirror"):
        assert medunet(*words, kind) == 0
        dice.append([line for line in capsys.readouterr().out.splitlines() if "mean Dice" in line])
    assert dice[0] != dice[1]
    assert medunet(*words, "flips") == 2


@pytest.mark.parametrize("id_", [FLIP_AXES, FLIP_AXES.replace("::", "#")])
def test_a_run_mirrors_the_axes_that_its_training_mirrored(id_: str, cells: Path, tmp_path: Path) -> None:
    with prepare_run(find_bundle("unet_2d"), cells, tmp_path / "run", changes={id_: [1]}):
        assert read_json(tmp_path / "run" / "configs" / "inference.json")["tta_axes"] == [1]
    with prepare_run(find_bundle("unet_2d"), cells, tmp_path / "own", changes={id_: [1], "tta_axes": [0]}):
        assert read_json(tmp_path / "own" / "configs" / "inference.json")["tta_axes"] == [0]
