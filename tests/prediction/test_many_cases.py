"""Many cases and one network: overlap, failures, existing results, ensembles, seconds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import Compose

from medunet.errors import ConfigError, DataError
from medunet.io import read_volume, write_volume
from medunet.prediction import Predictor, StageSeconds

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of odd sizes, with anisotropic voxels and different axes."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    affines = [np.diag([-1.0, -1.0, 1.0, 1.0]), np.diag([1.5, -1.0, 2.0, 1.0]), np.diag([-0.8, 0.9, -1.0, 1.0])]
    affines += [np.array([[0, 0, 2.0, 5], [0, -1.0, 0, 7], [1.2, 0, 0, -3], [0, 0, 0, 1]])]
    images = [rng.normal(size=size) for size in [(17, 19, 16), (21, 18, 13), (20, 23, 17), (15, 16, 11)]]
    files = [folder / f"case_{index}.nii.gz" for index in range(4)]
    return [write_volume(x.astype(np.float32), f, affine=a) for x, f, a in zip(images, files, affines, strict=True)]


def voxels_of(path: Path | None) -> np.ndarray:
    assert path is not None
    return np.asarray(read_volume(path).image[0])


def test_predicting_many_cases_changes_no_voxel(bundle: Path, volumes: list[Path], tmp_path: Path) -> None:
    alone = Predictor(bundle, output_dir=tmp_path / "alone", device="cpu")
    expected = [voxels_of(alone.predict_case(volume)) for volume in volumes]
    assert all(len(np.unique(label)) > 1 for label in expected)
    together = Predictor(bundle, output_dir=tmp_path / "together", device="cpu")
    results = list(together.predict(volumes))
    assert [result.source for result in results] == volumes
    for result, label in zip(results, expected, strict=True):
        np.testing.assert_array_equal(voxels_of(result.path), label)


def test_a_failed_case_is_reported_and_the_others_continue(
    bundle: Path, volumes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(volumes[0].read_bytes()[:100])
    predictor = Predictor(bundle, output_dir=tmp_path / "out", device="cpu")
    logits = predictor.logits

    def fail_on_one_size(image: torch.Tensor) -> torch.Tensor:
        if "case_2" in image.meta["filename_or_obj"]:
            raise RuntimeError("a bug\nin the network")
        return logits(image)

    monkeypatch.setattr(predictor, "logits", fail_on_one_size)
    results = list(predictor.predict([volumes[0], broken, *volumes[1:]]))
    assert [result.error is None for result in results] == [True, False, True, False, True]
    assert "broken.nii.gz" in str(results[1].error)
    assert isinstance(results[3].error, DataError)
    assert "RuntimeError: a bug in the network" in str(results[3].error)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"case_{index}.nii.gz" for index in (0, 1, 3)]


def test_an_existing_result_is_skipped_or_rejected_before_the_network_runs(
    bundle: Path, volumes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Predictor(bundle, output_dir=tmp_path, device="cpu")
    path = first.predict_case(volumes[1])
    stamp = path.stat().st_mtime_ns
    monkeypatch.setattr(Predictor, "logits", lambda *_: pytest.fail("the network ran"))
    predictor = Predictor(bundle, output_dir=tmp_path, device="cpu", skip_done=True)
    predictor.preprocessing.transforms[0].set_meta = None  # reading would fail
    [skipped] = predictor.predict([volumes[1]])
    assert (skipped.skipped, skipped.path, skipped.stages) == (True, path, StageSeconds())
    assert predictor.predict_case(volumes[1]) == path
    [rejected] = first.predict([volumes[1]])
    assert isinstance(rejected.error, DataError)
    assert "--force" in str(rejected.error)
    monkeypatch.undo()
    assert path.stat().st_mtime_ns == stamp
    assert Predictor(bundle, output_dir=tmp_path, device="cpu", overwrite=True).predict_case(volumes[1]) == path
    assert path.stat().st_mtime_ns > stamp


def test_a_case_without_probabilities_or_in_another_format_is_not_complete(
    bundle: Path, volumes: list[Path], tmp_path: Path
) -> None:
    label = Predictor(bundle, output_dir=tmp_path, device="cpu").predict_case(volumes[0])
    label.write_bytes(b"of an interrupted run")
    more = Predictor(bundle, output_dir=tmp_path, device="cpu", probabilities=True, skip_done=True)
    [result] = more.predict([volumes[0]])
    assert not result.skipped
    assert voxels_of(label).shape == (17, 19, 16)
    assert (tmp_path / "case_0_prob.nii.gz").is_file()
    assert [result.skipped for result in more.predict([volumes[0]])] == [True]
    other = Predictor(bundle, output_dir=tmp_path, device="cpu", result_format="seg.nrrd", skip_done=True)
    assert [result.skipped for result in other.predict([volumes[0]])] == [False]
    assert [result.skipped for result in other.predict([volumes[0]])] == [True]
    with pytest.raises(ConfigError, match="exclude each other"):
        Predictor(bundle, output_dir=tmp_path, device="cpu", overwrite=True, skip_done=True)


class SourceLabels(Inferer):
    """Returns label maps on the source grid, as `LabelInferer` does; the class is a function of the position."""

    def __call__(self, inputs: torch.Tensor, network: object, *args: object, **kwargs: object) -> torch.Tensor:
        assert isinstance(inputs, MetaTensor)
        size = tuple(int(n) for n in np.asarray(inputs.meta["spatial_shape"]).ravel())
        labels = torch.arange(int(np.prod(size))).reshape(1, 1, *size) % 3
        affine = torch.as_tensor(np.asarray(inputs.meta["original_affine"])).reshape(4, 4)
        return MetaTensor(labels.to(torch.uint8), affine=affine)


def test_an_inferer_may_return_label_maps_on_the_source_grid(bundle: Path, volumes: list[Path], tmp_path: Path) -> None:
    predictor = Predictor(bundle, output_dir=tmp_path, device="cpu")
    predictor.inferer = SourceLabels()
    predictor.postprocessing = Compose(predictor.postprocessing.transforms[-2:])  # decode, save
    for result in predictor.predict(volumes):
        assert result.error is None
        label = read_volume(result.path)
        image = read_volume(result.source)
        assert label.record.geometry.is_close(image.record.geometry)
        size = label.record.geometry.shape
        np.testing.assert_array_equal(np.asarray(label.image[0]), np.arange(np.prod(size)).reshape(size) % 3)


def test_an_ensemble_writes_the_mean_of_the_probabilities_and_its_argmax(
    bundle: Path, other_fold: Path, volumes: list[Path], tmp_path: Path
) -> None:
    probabilities = {}
    for name, (first, others) in {"a": (bundle, []), "b": (other_fold, []), "both": (bundle, [other_fold])}.items():
        predictor = Predictor(first, output_dir=tmp_path / name, device="cpu", probabilities=True, ensemble=others)
        # at the bundle's spacing nothing is interpolated, so that the mean can be taken after as well as before
        label = voxels_of(predictor.predict_case(volumes[0]))
        probabilities[name] = np.asarray(read_volume(tmp_path / name / "case_0_prob.nii.gz", channels=3).image)
    assert np.abs(probabilities["a"] - probabilities["b"]).max() > 0.01
    np.testing.assert_allclose(probabilities["both"], (probabilities["a"] + probabilities["b"]) / 2, atol=1e-5)
    np.testing.assert_array_equal(label, probabilities["both"].argmax(0))


def test_members_of_an_ensemble_must_share_preprocessing_and_labels(
    bundle: Path, other_fold: Path, tmp_path: Path
) -> None:
    for key, value in {"spacing_mm": [2, 1, 1], "label_names": ["background", "left", "right"]}.items():
        other = tmp_path / key
        shutil.copytree(other_fold, other)
        config = json.loads((other / "configs" / "inference.json").read_text())
        (other / "configs" / "inference.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(ConfigError, match=f"members of an ensemble differ in `{key}`"):
            Predictor(bundle, output_dir=tmp_path, device="cpu", ensemble=[other])
    # values that do not touch the input may differ
    (other / "configs" / "inference.json").write_text(json.dumps(config | {"tile_size": [64, 64, 64]}))
    Predictor(bundle, output_dir=tmp_path, device="cpu", ensemble=[other])
