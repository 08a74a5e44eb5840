"""`import medunet`: one function per task, and a model in memory."""

import base64
import dataclasses
import io
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from small import SMALL_2D, untrained_run

import medunet
from medunet import MedunetError, Segmentation, check, load, predict
from medunet.errors import ConfigError, GeometryError
from medunet.io import write_volume
from medunet.planning.adapt import instance_values
from medunet.runs import TrainingResult


def test_importing_the_package_imports_no_other() -> None:
    code = (
        "import sys, medunet; assert not {'torch', 'numpy', 'monai'} & set(sys.modules); assert 'train' in dir(medunet)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_can_be_used() -> None:
    assert all(callable(getattr(medunet, name)) for name in medunet.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        getattr(medunet, "nothing")  # noqa: B009


def test_a_model_predicts_paths_and_arrays_alike(run_3d: Path, volumes: Path, tmp_path: Path) -> None:
    image = next((volumes / "imagesTr").glob("*.nii.gz"))
    model = medunet.load(str(run_3d), device="cpu")
    result = model.predict(str(image))
    loaded = nib.load(image)
    array = loaded.get_fdata(dtype="float32")
    [written] = medunet.predict(run_3d, image, tmp_path, device="cpu")
    assert written.path is not None
    assert np.array_equal(result.labels, np.asarray(nib.load(written.path).dataobj))
    assert np.allclose(result.affine, loaded.affine)
    with ThreadPoolExecutor(4) as pool:
        others = list(pool.map(lambda _: model.predict(array, affine=loaded.affine), range(4)))
    assert all(np.array_equal(other.labels, result.labels) for other in others)
    assert "liver" in model.classes
    volume = (result.labels > 0).sum() * abs(np.linalg.det(loaded.affine[:3, :3]))
    assert sum(result.volumes_mm3.values()) == pytest.approx(volume, rel=1e-6)
    with pytest.raises(GeometryError, match="needs an affine"):
        model.predict(array)
    with pytest.raises(ConfigError, match="affine is for arrays"):
        model.predict(image, affine=loaded.affine)


@pytest.fixture(scope="module")
def two_channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("two") / "run", in_channels=2)


OBLIQUE = np.array([[0.9, -0.4, 0.1, -30.0], [0.35, 1.1, -0.2, 12.0], [-0.1, 0.3, 2.0, 7.0], [0, 0, 0, 1]])


def test_an_array_gives_the_voxels_that_the_command_writes(
    two_channels: Path, tmp_path: Path, medunet: Callable[..., int]
) -> None:
    voxels = np.random.default_rng(0).normal(size=(2, 21, 18, 13)).astype(np.float32)
    paths = [tmp_path / "in" / f"case_{n:04d}.nii.gz" for n in range(2)]
    paths[0].parent.mkdir()
    for path, channel in zip(paths, voxels, strict=True):
        nib.save(nib.Nifti1Image(channel, OBLIQUE), path)
    out, options = tmp_path / "out", ("--probabilities", "--device", "cpu")
    assert medunet("predict", two_channels, paths[0].parent, "--output", out, *options) == 0
    labels, probabilities = (nib.load(out / f"case{name}.nii.gz") for name in ("", "_prob"))
    model = load(two_channels, probabilities=True, device="cpu")
    affine = nib.load(paths[0]).affine
    tensor = torch.from_numpy(voxels).requires_grad_()
    for result in (model.predict(paths), model.predict(voxels, affine=affine), model.predict(tensor, affine=affine)):
        assert np.array_equal(result.labels, np.asarray(labels.dataobj))
        assert len(np.unique(result.labels)) > 1
        np.testing.assert_allclose(result.affine, labels.affine, atol=1e-4)
        assert result.probabilities is not None
        found = np.moveaxis(result.probabilities, 0, -1)
        np.testing.assert_allclose(found, probabilities.get_fdata(), atol=0.01)


VOXELS = np.zeros((2, 20, 20, 20), dtype=np.float32)
BAD: dict[str, tuple[Any, Any, str]] = {
    "three channels": (np.zeros((3, 20, 20, 20)), np.eye(4), r"received \(3, 20, 20, 20\), expected \(2, 'x'"),
    "a picture": (np.zeros((20, 20)), np.eye(4), "received"),
    "a time series": (np.zeros((1, 2, 20, 20, 20)), np.eye(4), "received"),
    "no voxel": (VOXELS[:, :0], np.eye(4), "positive size"),
    "NaN": (VOXELS * np.nan, np.eye(4), "finite real numbers"),
    "complex numbers": (VOXELS * 1j, np.eye(4), "arrays of numbers .received complex64"),
    "texts": ([["a"]], np.eye(4), "arrays of numbers"),
    "nothing": ([], np.eye(4), "received"),
    "3x3 affine": (VOXELS, np.eye(3), "must be 4x4"),
    "NaN in the affine": (VOXELS, np.full((4, 4), np.nan), "finite"),
    "singular affine": (VOXELS, np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
    "transposed affine": (VOXELS, OBLIQUE.T, "last row"),
    "affine without numbers": (VOXELS, "RAS", "arrays of numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_array_that_does_not_fit_is_rejected_in_one_line(two_channels: Path, case: str) -> None:
    image, affine, match = BAD[case]
    with pytest.raises(MedunetError, match=match) as error:
        load(two_channels, device="cpu").predict(image, affine=affine)
    assert "\n" not in str(error.value)


def png_of(result: Segmentation) -> Image.Image:
    [data] = re.findall(r'src="data:image/png;base64,([^"]+)"', result._repr_html_())
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def test_a_notebook_shows_outlines_on_the_image_and_volumes() -> None:
    labels = np.zeros((20, 24, 16), dtype=np.uint8)
    labels[4:9, 5:9, 3:7] = 2
    bright = np.full(labels.shape, 5.0)
    bright[:10] = 1.0
    result = Segmentation(labels, np.diag([2.0, 1.0, 1.0, 1.0]), {"background": 0, "<liver>": 2}, image=bright)
    assert "<td>&lt;liver&gt;</td><td>160</td>" in result._repr_html_()
    assert repr(result) == "label map 20 x 24 x 16\nclass    mm³\n<liver>  160"
    orange, white = (0xE8, 0x89, 0x0C), (255, 255, 255)
    colours = [colour for _, colour in png_of(result).getcolors(1 << 24) or []]
    assert orange in colours
    assert white in colours
    gone = dataclasses.replace(result, image="gone.nii.gz")
    colours = [colour for _, colour in png_of(gone).getcolors(1 << 24) or []]
    assert orange in colours
    assert white not in colours
    nested = dataclasses.replace(result, classes={"background": 0, "whole": 1, "core": 2}, regions={"whole": [1, 2]})
    assert nested.volumes_mm3 == {"whole": 160.0}


def test_results_appear_as_tables(run_2d: Path, cells: Path, tmp_path: Path) -> None:
    image = next((cells / "imagesTs").iterdir())
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    predictions = predict(run_2d, [image, broken], tmp_path / "out", device="cpu")
    assert len(predictions) == 2
    assert repr(predictions).startswith("2 cases, 1 failed\nresult")
    assert "broken.png" in predictions._repr_html_()  # type: ignore[attr-defined]
    findings = repr(check(tmp_path))
    assert "training would fail" in findings
    assert "error" in findings
    training = TrainingResult(Path("runs/mine"), 20, 18, kept_dice={"liver": 0.91237})
    assert repr(training) == "runs/mine: 20 epochs, weights of epoch 18\nclass  validation Dice\nliver  0.9124"
    assert "<tr><td>liver</td><td>0.9124</td></tr>" in training._repr_html_()


def test_probabilities_on_request(run_2d: Path) -> None:
    model = medunet.load(run_2d, probabilities=True, device="cpu")
    result = model.predict(torch.rand(1, 48, 48))
    assert result.probabilities is not None
    assert np.allclose(result.probabilities.sum(axis=0), 1, atol=0.01)
    values = np.array(list(model.classes.values()))
    assert np.array_equal(values[result.probabilities.argmax(axis=0)], result.labels)


def test_objects_are_joined_by_class(tmp_path: Path) -> None:
    labels, image = np.zeros((48, 48), np.uint16), np.random.default_rng(0).normal(size=(48, 48)).astype(np.float32)
    labels[4:20, 4:20], labels[4:20, 20:40] = 1, 2
    for part, values in (("images", image), ("labels", labels)):
        write_volume(values, tmp_path / "data" / part / "a.tif")
    changes = instance_values("border") | {"label_names": ["background", "cell"], "label_values": [0, 1]}
    changes |= {"objects::boundary": 0.0, "objects::smoothing": 0}
    run = untrained_run(tmp_path / "run", bundle="unet_2d", **changes)
    result = medunet.load(run, device="cpu").predict(tmp_path / "data" / "images" / "a.tif")
    assert result.labels.max() > 1
    assert result.volumes_mm3 == {"cell": (result.labels > 0).sum()}
    assert result.probabilities is None
    count = result.labels.max()
    assert np.array_equal(result.objects["id"], np.arange(1, count + 1))
    assert set(result.objects["class"]) == {"cell"}
    assert result.objects["area_px"].sum() == (result.labels > 0).sum()
    assert repr(result).splitlines()[1:] == ["class  mm²   objects", f"cell   {(result.labels > 0).sum():<4}  {count}"]
    assert len(png_of(result).getcolors(1 << 24) or []) > 10
    scores = medunet.evaluate(run, tmp_path / "data", device="cpu")
    assert repr(scores).splitlines()[1].split() == ["class", "mean", "AP", "F1", "PQ"]


def test_check_train_evaluate_and_report(cells: Path, tmp_path: Path) -> None:
    assert not medunet.check(str(cells)).fails
    changes = {**SMALL_2D, "epochs": 1, "folds": 2, "store_dir": str(tmp_path / "store")}
    result = medunet.train(
        "unet_2d", data=str(cells), output=str(tmp_path / "run"), changes=changes, device="cpu", tracking_uri=""
    )
    assert result.epochs == 1
    scores = medunet.evaluate(str(result.run), str(cells), device="cpu")
    assert scores["cases"] == 2
    assert repr(scores).startswith("2 cases, mean Dice 0.")
    assert medunet.report(str(result.run), device="cpu", figures=False).is_file()
