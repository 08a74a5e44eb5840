"""Labels, results, scores and uncertainty of a served bundle, and its further training."""

import json
import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from small import untrained_run

from medunet.config import read_json
from medunet.datasets import open_dataset
from medunet.deploy.monailabel.results import (
    describe_result,
    score_labels,
    uncertainty,
    write_result,
)
from medunet.deploy.monailabel.served import LoadedBundle, ServedBundle, serve
from medunet.deploy.monailabel.training import read_options, train_further, write_dataset
from medunet.errors import ConfigError, DataError, DeviceError
from medunet.io import label_names, read_volume, write_volume
from medunet.planning.adapt import instance_values
from medunet.prediction import Predictor
from medunet.prediction.review import measure_agreement
from medunet.trust import judge, record_weights


def test_a_broken_gpu_ends_the_server_after_its_answer(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals: list[int] = []
    monkeypatch.setattr("os.kill", lambda process, number: signals.append(number))
    loaded = LoadedBundle(serve([bundle])[0], "cpu")

    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(DataError):
        loaded.compute(lambda _: fail(DataError("unreadable")))
    assert signals == []
    with pytest.raises(DeviceError):
        loaded.compute(lambda _: fail(DeviceError("broken")))
    assert signals == [signal.SIGTERM]


def test_a_bundle_without_weights_is_rejected(bundle: Path, tmp_path: Path) -> None:
    served, again = serve([bundle, bundle])
    assert (served.name, again.name, served.spatial_dims) == ("run", "run_2", 3)
    with pytest.raises(ConfigError, match="no bundle"):
        serve([])
    shutil.copytree(bundle / "configs", tmp_path / "configs")
    with pytest.raises(DataError, match="no weights"):
        serve([tmp_path])


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".seg.nrrd", ".mha"])
def test_a_result_is_on_the_grid_of_its_image_in_each_format(bundle: Path, tmp_path: Path, suffix: str) -> None:
    labels = torch.zeros(1, 5, 4, 3, dtype=torch.uint8)
    labels[0, 1:3, 2, 1] = 2
    affine = torch.diag(torch.tensor([0.5, 2.0, 3.0, 1.0], dtype=torch.float64))
    segments = ServedBundle("run", bundle).segments
    path = write_result(MetaTensor(labels, affine=affine), tmp_path, suffix, segments=segments)
    image = read_volume(path).image
    assert np.array_equal(image[0].numpy(), labels[0].numpy())
    assert torch.allclose(image.affine, affine)
    answer = describe_result(MetaTensor(labels, affine=affine), segments)
    assert answer["label_names"] == {"anterior": 1, "posterior": 2}
    assert answer["label_colors"]["posterior"] == [1, 2, 3]
    assert answer["volume_ml"] == {"anterior": 0.0, "posterior": 0.006}  # 2 voxels of 3 mm³


def test_submitted_labels_become_a_data_set_with_the_bundles_names(
    bundle: Path, volume: Path, label: Path, tmp_path: Path
) -> None:
    served = ServedBundle("run", bundle)
    assert write_dataset([(volume, label)], tmp_path / "data", served) == ["case"]
    manifest = json.loads((tmp_path / "data" / "dataset.json").read_text(encoding="utf-8"))
    assert manifest["labels"] == {"0": "background", "1": "anterior", "2": "posterior"}
    assert (tmp_path / "data" / manifest["training"][0]["image"]).samefile(volume)
    sevens, affine = np.full((17, 19, 16), 7, np.uint8), read_volume(volume).image.affine
    other = write_volume(sevens, tmp_path / "7.nii.gz", affine=affine)
    for pairs, words in (([(volume, other)], "does not define"), ([], "no labels were submitted")):
        with pytest.raises(DataError, match=words):
            write_dataset(pairs, tmp_path / "none", served)
    for wrong in ({"max_epochs": "many"}, {"learning_rate": -1}):
        with pytest.raises(ConfigError, match="above 0"):
            read_options(wrong)


@pytest.mark.filterwarnings("ignore")  # of MLflow and MONAI
def test_one_corrected_case_trains_the_working_copy_and_not_the_bundle(
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
    assert uncertainty(predictor, volume) == 1 - np.mean([*measure_agreement(predictor, image).values()]) > 0


def test_scores_are_by_label_and_uncertainty_is_that_of_a_review(
    bundle: Path, volume: Path, label: Path, tmp_path: Path
) -> None:
    scores = score_labels(label, label, {"anterior": 1, "posterior": 2, "other": 3}, image=volume)
    assert (scores["anterior"], scores["posterior"], math.isnan(scores["other"])) == (1.0, 1.0, True)
    predictor = Predictor(bundle, output_dir=tmp_path, device="cpu", review=True)
    expected = 1 - predictor.decide(volume)["review"].score
    assert uncertainty(predictor, volume) == expected > 0
    assert "review" not in predictor.decide(volume)  # requests for a label map need no views


@pytest.mark.filterwarnings("ignore")  # of MLflow and MONAI
def test_an_ensemble_is_served_with_its_uncertainty_but_not_trained(
    folds_2d: Path, cells: Path, tmp_path: Path
) -> None:
    (served,) = serve([folds_2d])
    assert (served.is_ensemble, len(served.weights)) == (True, 2)
    copy = served.working_copy(tmp_path / "bundles")
    predictor = Predictor(copy.folder, output_dir=tmp_path / "out", device="cpu")
    image = next(cells.glob("imagesTr/cells_000*"))
    assert uncertainty(predictor, image) > 0
    with pytest.raises(ConfigError, match="cannot be trained"):
        train_further(copy, [(image, image)], tmp_path / "trainings")


def objects_run(folder: Path, *classes: str) -> Path:
    values = {"in_channels": 1, "label_names": ["background", *classes], "label_values": [*range(len(classes) + 1)]}
    return untrained_run(folder, bundle="unet_2d", **(values | instance_values("distance")))


@pytest.fixture
def nuclei(tmp_path: Path) -> tuple[Path, Path]:
    """A picture, and its label of 399 numbered objects."""
    numbers = np.kron(np.arange(400, dtype=np.int32).reshape(20, 20), np.ones((4, 4), np.int32))
    image = write_volume((numbers % 251).astype(np.uint8), tmp_path / "cell.png")
    return image, write_volume(numbers, tmp_path / "label.tif")


def test_objects_are_served_with_all_their_numbers(nuclei: tuple[Path, Path], tmp_path: Path) -> None:
    image, label = nuclei
    (served,) = serve([objects_run(tmp_path / "run", "nucleus")])
    assert served.instances
    numbers = read_volume(label, spatial_dims=2).image[0].numpy().astype(np.int32)
    mask = MetaTensor(torch.from_numpy(numbers)[None], affine=torch.eye(4, dtype=torch.float64))
    options = {"segments": served.segments, "instances": True}
    picture = write_result(mask, tmp_path, ".png", **options)
    assert np.array_equal(read_volume(picture, spatial_dims=2).image[0].numpy(), numbers)
    path = write_result(mask[..., None], tmp_path, ".seg.nrrd", **options)
    assert np.array_equal(read_volume(path).image[0, ..., 0].numpy(), numbers)
    names = {"background": 0, **{f"nucleus {number}": number for number in range(1, 400)}}
    assert label_names(path) == names
    with pytest.raises(DataError, match="uint8"):
        write_result(mask, tmp_path, ".png", dtype="uint8", **options)
    answer = describe_result(mask, served.segments, np.repeat([0, 1], [1, 399]))
    assert (answer["objects"], answer["area_mm2"]) == ({"nucleus": 399}, {"nucleus": 399 * 16})
    assert score_labels(label, label, None, image=image) == {"object": 1.0}
    predictor = Predictor(served.folder, device="cpu")
    assert 0 <= uncertainty(predictor, image) <= 1
    write_dataset([nuclei], tmp_path / "data", served)
    dataset = open_dataset(tmp_path / "data")
    assert (dataset.instances, dataset.labels) == (True, {"background": 0, "nucleus": 1})
    with pytest.raises(ConfigError, match="do not have their classes"):
        train_further(ServedBundle("two", objects_run(tmp_path / "two", "a", "b")), [nuclei], tmp_path / "trainings")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of MLflow and MONAI
def test_a_bundle_of_objects_is_trained_further(nuclei: tuple[Path, Path], tmp_path: Path) -> None:
    copy = ServedBundle("run", objects_run(tmp_path / "run", "nucleus")).working_copy(tmp_path / "bundles")
    options = {"max_epochs": 1, "steps_per_epoch": 2, "device": "cpu"}
    done = train_further(copy, [nuclei], tmp_path / "trainings", **options)
    config = read_json(Path(done["run"]) / "configs" / "train.json")
    assert (config["instances"], config["label_names"]) == (True, ["background", "nucleus"])
    assert Predictor(copy.folder, device="cpu").decide(nuclei[0])["pred"].dtype == torch.int32
