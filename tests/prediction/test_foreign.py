"""Bundles like those of MONAI's model zoo: without medunet's ids, with MONAI's writer."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from monai.bundle import ConfigWorkflow
from PIL import Image
from zoo import LOAD, Config, write_zoo_bundle

from medunet.errors import ConfigError, DataError, SecurityError
from medunet.io import label_names, read_volume, write_volume
from medunet.prediction import Predictor

pytestmark = pytest.mark.filterwarnings("ignore")
AFFINE = np.array([[0.0, -1.0, 0.0, 7.0], [-1.0, 0.0, 0.0, -3.0], [0.0, 0.0, 2.0, 11.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    voxels = np.random.default_rng(0).normal(size=(17, 19, 15)).astype(np.float32)
    return write_volume(voxels, tmp_path / "images" / "case.nii.gz", affine=AFFINE)


@pytest.mark.parametrize("text", [json, yaml], ids=["json", "yaml"])
def test_a_zoo_bundle_predicts_the_same_as_monai(
    tmp_path: Path, image: Path, text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDUNET_CONFIG_DIR", str(tmp_path / "config"))  # no bundle is trusted yet
    bundle = write_zoo_bundle(tmp_path / "spleen", text=text)
    with pytest.raises(SecurityError):
        Predictor(bundle, output_dir=tmp_path / "out", device="cpu")
    predictor = Predictor(bundle, output_dir=tmp_path / "out", device="cpu", trust=True)
    written = predictor.predict_case(image)
    assert written == tmp_path / "out" / "case.nii.gz"
    assert label_names(written) == {"background": 0, "spleen": 1}
    assert not (bundle / "eval").exists()
    [file] = (bundle / "configs").glob("inference.*")
    folders = {"bundle_root": str(bundle), "dataset_dir": str(image.parent), "output_dir": str(tmp_path / "monai")}
    workflow = ConfigWorkflow(config_file=str(file), workflow_type="infer", logging_file=False, **folders)
    workflow.initialize()
    workflow.run()
    expected = nib.load(tmp_path / "monai" / "case" / "case_trans.nii.gz")
    result = read_volume(written)
    assert len(np.unique(result.image)) == 2
    np.testing.assert_array_equal(np.asarray(result.image[0]), np.asarray(expected.dataobj))
    np.testing.assert_allclose(result.record.geometry.affine, AFFINE, atol=1e-5)


def test_photographs_keep_their_orientation(tmp_path: Path) -> None:
    """Label 1 is bright; the image has different numbers of rows and columns."""
    pixels = np.zeros((20, 12), np.uint8)
    pixels[:5, :4] = 200
    Image.fromarray(pixels).save(tmp_path / "photo.png")

    def bright(config: Config) -> None:
        steps = config["postprocessing"]["transforms"]
        steps.insert(0, {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x * 0"})
        steps.insert(1, "$lambda d: {**d, 'pred': d['pred'].copy_(torch.cat([150 - d['image'], d['image'] - 150]))}")

    bundle = write_zoo_bundle(tmp_path / "tools", bright, spatial_dims=2)
    written = Predictor(bundle, output_dir=tmp_path / "out", device="cpu", trust=True).predict_case(
        tmp_path / "photo.png"
    )
    np.testing.assert_array_equal(np.asarray(Image.open(written)) > 0, pixels > 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.pop("inferer"), r'no inferer.*add to the file: "inferer": \{"_target_"'),
        (lambda config: config.pop("postprocessing"), '"argmax": true'),
        (lambda config: config["network_def"].update(img_size=[16, 16, 16]), "unexpected keyword argument 'img_size'"),
        (lambda config: config.update(network_def="$1 / 0"), r"ZeroDivisionError.*a bundle for MONAI 1\.4\.0"),
        (lambda config: config.update(network={"_target_": "torch.nn.Identity"}), "network must be network_def"),
        (lambda config: config["preprocessing"].update(transforms=[]), "received no LoadImaged"),
        (
            lambda config: config["preprocessing"].update(transforms=[{**LOAD, "keys": ["image", "label"]}]),
            "under the key image .*received image, label",
        ),
    ],
)
def test_errors_name_the_missing_ids_and_the_lines_to_add(
    tmp_path: Path, change: Callable[[Config], object], message: str
) -> None:
    bundle = write_zoo_bundle(tmp_path / "spleen", change)
    with pytest.raises(ConfigError, match=message):
        Predictor(bundle, output_dir=tmp_path / "out", device="cpu", trust=True)


def test_an_unsupported_prediction_raises_a_typed_error(tmp_path: Path, image: Path) -> None:
    def predictor(name: str, change: Callable[[Config], object] = lambda _: None, **options: Any) -> Predictor:
        bundle = write_zoo_bundle(tmp_path / name, change)
        return Predictor(bundle, output_dir=tmp_path / "out", device="cpu", trust=True, **options)

    with pytest.raises(DataError, match="channels of the network first"):
        predictor("axes", lambda config: config["preprocessing"].update(transforms=[LOAD])).predict_case(image)
    with pytest.raises(ConfigError, match="must return one tensor"):
        predictor("list", lambda c: c.update(inferer="$lambda image, network: [network(image)]")).predict_case(image)
    with pytest.raises(ConfigError, match="cannot write class probabilities"):
        predictor("classes", probabilities=True)


@pytest.fixture
def own_scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the import of this repository's `scripts` after a bundle with a package of this name."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "scripts"}
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]
    sys.modules.update(known)


@pytest.mark.usefixtures("own_scripts")
def test_a_trusted_bundle_may_have_its_own_code(tmp_path: Path, image: Path) -> None:
    for name in ("one", "two"):
        bundle = write_zoo_bundle(tmp_path / name, lambda config: config["network_def"].update(_target_="scripts.Net"))
        (bundle / "scripts").mkdir()
        (bundle / "scripts" / "__init__.py").write_text(
            f"from monai.networks.nets import UNet\n\nclass Net(UNet):\n    maker = {name!r}\n"
        )
        predictor = Predictor(bundle, output_dir=tmp_path / "out", device="cpu", trust=True)
        assert predictor.network.maker == name
