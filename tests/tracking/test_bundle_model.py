"""The MLflow model of a bundle with random weights: geometry of arrays, errors, what a server answers."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from small import untrained_run

from medunet.errors import MedunetError
from medunet.io import read_volume, write_volume
from medunet.prediction import Predictor
from medunet.tracking.bundle_model import UnusableImageError, save_model

pytestmark = pytest.mark.filterwarnings("ignore")
AFFINE = np.array([[0.0, -1.5, 0.0, 7.0], [-1.0, 0.0, 0.0, -3.0], [0.0, 0.0, 2.0, 11.0], [0.0, 0.0, 0.0, 1.0]])
"""Spacing and axes unlike those of the network's grid."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("volume") / "run")


def load(bundle: Path, folder: Path) -> Any:
    save_model(bundle, folder)
    return mlflow.pyfunc.load_model(str(folder))


@pytest.fixture(scope="module")
def model(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDUNET_DEVICE", "cpu")
        patch.delenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", raising=False)
        yield load(bundle, tmp_path_factory.mktemp("mlflow") / "model")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    voxels = np.random.default_rng(0).normal(size=(17, 19, 15)).astype(np.float32)
    return write_volume(voxels, tmp_path_factory.mktemp("image") / "case.nii.gz", affine=AFFINE)


@pytest.fixture(scope="module")
def expected(bundle: Path, image: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    written = Predictor(bundle, output_dir=tmp_path_factory.mktemp("out"), device="cpu").predict_case(image)
    labels = np.asarray(read_volume(written).image.as_tensor())[0]
    assert len(np.unique(labels)) > 1
    return labels


def test_an_array_with_its_affine_is_predicted_as_its_file(model: Any, image: Path, expected: np.ndarray) -> None:
    voxels = np.asarray(read_volume(image).image.as_tensor())[0]
    params = {"affine": AFFINE.ravel().tolist()}
    assert np.array_equal(model.predict(voxels, params=params), expected)
    one, two = model.predict([str(image), voxels[None].tolist()], params=params)
    assert np.array_equal(one, expected)
    assert np.array_equal(two, expected)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (None, "an array needs its affine"),
        ({"spacing_mm": [1.0, 1.5, 2.0]}, "a volume also has an orientation"),
        ({"affine": [1.0, 0.0]}, "16 numbers"),
        ({"affine": np.zeros(16).tolist()}, "affine"),
        ({"affine": np.eye(4).ravel().tolist(), "spacing_mm": [1.0, 1.0]}, "not both"),
    ],
)
def test_the_geometry_of_a_volume_is_never_guessed(model: Any, params: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(UnusableImageError, match=message) as info:
        model.predict(np.zeros((17, 19, 15), np.float32), params=params)
    assert isinstance(info.value.__cause__, MedunetError)


def test_2d_images_need_no_affine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDUNET_DEVICE", "cpu")
    planar = load(untrained_run(tmp_path / "run", bundle="unet_2d"), tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 255, (21, 18)).astype(np.uint8)
    path = write_volume(pixels, tmp_path / "cell.png")
    answers = [planar.predict(given) for given in (str(path), pixels)]
    answers.append(planar.predict(pixels, params={"spacing_mm": [0.5, 0.5]}))
    assert len(np.unique(answers[0])) > 1
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


def ask(model: Any, **content: Any) -> str:
    """What MLflow's scoring server answers."""
    scoring_server = importlib.import_module("mlflow.pyfunc.scoring_server")  # warns when it is imported first
    schema = model.metadata.get_input_schema()
    try:
        return scoring_server.invocations(json.dumps(content), "application/json", model, schema).response
    except MlflowException as error:
        assert error.get_http_status_code() == 400
        return error.serialize_as_json()


def test_a_server_answers_with_labels_or_with_one_line(model: Any, image: Path, expected: np.ndarray) -> None:
    assert np.array_equal(json.loads(ask(model, inputs=[str(image)]))["predictions"][0], expected)
    absent = ask(model, inputs=[str(image.with_name("absent.nii.gz"))])
    assert "absent.nii.gz" in absent
    assert len(absent) < 400
    array = ask(model, inputs=[np.zeros((17, 19, 15)).tolist()])
    assert "an array needs its affine" in array
    assert len(array) < 400
    assert "'inputs'" in ask(model, instances=[str(image)])
