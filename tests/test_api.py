"""`import medunet`: one function per task, and a model in memory."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from small import SMALL_2D

import medunet
from medunet.errors import ConfigError, GeometryError


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, medunet; assert 'torch' not in sys.modules; assert 'train' in dir(medunet)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names() -> None:
    names = ["Model", "Segmentation", "check", "evaluate", "export", "load", "plan", "predict", "report", "train"]
    assert sorted({*medunet.__all__} - {"__version__"}) == names
    assert all(callable(getattr(medunet, name)) for name in names)
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
    assert "mm³" in result._repr_html_()
    with pytest.raises(GeometryError, match="affine"):
        model.predict(array)
    with pytest.raises(GeometryError):
        model.predict(np.stack([array, array]), affine=loaded.affine)
    with pytest.raises(ConfigError, match="affine is for arrays"):
        model.predict(image, affine=loaded.affine)


def test_probabilities_on_request(run_2d: Path) -> None:
    model = medunet.load(run_2d, probabilities=True, device="cpu")
    result = model.predict(torch.rand(1, 48, 48))
    assert result.probabilities is not None
    assert np.allclose(result.probabilities.sum(axis=0), 1, atol=0.01)
    values = np.array(list(model.classes.values()))
    assert np.array_equal(values[result.probabilities.argmax(axis=0)], result.labels)


def test_check_train_evaluate_and_report(cells: Path, tmp_path: Path) -> None:
    assert not medunet.check(str(cells)).fails
    changes = {**SMALL_2D, "epochs": 1, "folds": 2, "store_dir": str(tmp_path / "store")}
    result = medunet.train("unet_2d", str(cells), str(tmp_path / "run"), changes=changes, device="cpu", tracking_uri="")
    assert result.epochs == 1
    assert medunet.evaluate(str(result.run), str(cells), device="cpu")["cases"] == 2
    assert medunet.report(str(result.run), device="cpu", figures=False).is_file()
