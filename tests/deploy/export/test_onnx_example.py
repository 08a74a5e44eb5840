"""The example scripts/onnx_example.py gives the labels of `medunet predict`."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from medunet.deploy.export import export_bundle, load_tile_network
from medunet.inferers import OverlapTileInferer
from medunet.metrics import count_objects, object_scores
from medunet.planning.adapt import instance_values
from medunet.prediction import Predictor
from medunet.transforms import InstanceTarget

from .conftest import needs, with_weights

SCRIPT = Path(__file__).parents[3] / "scripts" / "onnx_example.py"
MAX_UNLIKE = 1e-3  # share of voxels near a tie that may differ: the example resamples axis by axis


@pytest.fixture(scope="module")
def example() -> ModuleType:
    needs("onnx")
    spec = importlib.util.spec_from_file_location("onnx_example", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def segment_both_ways(
    example: ModuleType, bundle: Path, network: Path, image: Path, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    example.main(str(network), str(image), str(folder / "labels.nii.gz"))
    overrides = {"autocast_dtype": "float32"}
    path = Predictor(bundle, output_dir=folder / "out", device="cpu", overrides=overrides).predict_case(image)
    ours, theirs = nib.load(folder / "labels.nii.gz"), nib.load(path)
    assert np.allclose(ours.affine, theirs.affine)
    return np.asarray(ours.dataobj), np.asarray(theirs.dataobj)


@pytest.mark.data
def test_labels_of_a_real_case_are_those_of_medunet_predict(
    example: ModuleType,
    bundles: dict[str, Path],
    onnx_files: Callable[[str], Path],
    test_data: Path,
    tmp_path: Path,
) -> None:
    image = test_data / "Task04_Hippocampus" / "imagesTr" / "hippocampus_001.nii.gz"
    ours, theirs = segment_both_ways(example, bundles["padded"], onnx_files("padded"), image, tmp_path)
    assert len(np.unique(theirs)) > 1
    assert (ours != theirs).mean() <= 1e-4


def test_labels_return_to_the_grid_of_the_file(example: ModuleType, tmp_path: Path) -> None:
    changes = {"network_def::channels": [4, 8], "spacing_mm": [1.5, 1.0, 2.0], "autocast_dtype": "float32"}
    ct = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -50, "a_max": 90, "b_min": -2, "b_max": 1.5}
    bundle = with_weights("unet_3d", tmp_path / "run", {**changes, "steps::normalize": {**ct, "clip": True}})
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.normal(20, 60, size=(5, 6, 4)), np.ones((5, 4, 6)))
    affine = np.array([[0, -1.1, 0, 5], [0.9, 0, 0, -7], [0, 0, -2.5, 11], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(smooth.astype(np.float32), affine), tmp_path / "ct.nii.gz")
    export_bundle(bundle, tmp_path / "network.onnx", to="onnx")
    ours, theirs = segment_both_ways(example, bundle, tmp_path / "network.onnx", tmp_path / "ct.nii.gz", tmp_path)
    assert ours.shape == (25, 24, 24)
    assert len(np.unique(theirs)) > 1
    assert (ours != theirs).mean() <= MAX_UNLIKE


@pytest.mark.parametrize("target", ["distance", pytest.param("border", marks=pytest.mark.slow)])
def test_objects_of_a_picture_are_those_of_medunet_predict(
    target: InstanceTarget, example: ModuleType, tmp_path: Path
) -> None:
    values = instance_values(target) | {"in_channels": 3, "label_values": [0, 1], "autocast_dtype": "float32"}
    bundle = with_weights("unet_2d", tmp_path / "run", {**values, "network_def::channels": [4, 8]})
    blocks = np.random.default_rng(0).integers(0, 255, size=(12, 10, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize((100, 120), Image.Resampling.BICUBIC)
    image.save(tmp_path / "cells.png")
    agreement = export_bundle(bundle, tmp_path / "a.onnx", to="onnx", image=tmp_path / "cells.png").agreement
    assert agreement.case_voxels == 100 * 120
    example.main(tmp_path / "a.onnx", tmp_path / "cells.png", tmp_path / "labels.png")
    path = Predictor(bundle, output_dir=tmp_path / "out", device="cpu").predict_case(tmp_path / "cells.png")
    ours, theirs = (np.asarray(Image.open(file)).astype(int) for file in (tmp_path / "labels.png", path))
    scores = object_scores(count_objects(ours, theirs))
    assert scores["objects_ref"] > 3
    assert scores["mean_ap"] > 0.9


def test_half_a_voxel_is_rounded_as_by_spacingd(
    example: ModuleType, bundles: dict[str, Path], onnx_files: Callable[[str], Path], tmp_path: Path
) -> None:
    voxels = np.kron(np.random.default_rng(0).normal(size=(6, 5, 4)), np.ones((4, 4, 5))).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([0.5, 0.5, 0.5, 1])), tmp_path / "fine.nii.gz")
    image = tmp_path / "fine.nii.gz"
    ours, theirs = segment_both_ways(example, bundles["padded"], onnx_files("padded"), image, tmp_path)
    assert len(np.unique(theirs)) > 1
    assert (ours != theirs).mean() <= MAX_UNLIKE


@pytest.mark.parametrize(
    "changes",
    [
        {"in_channels": 2},
        {"view_scales": [1.0, 1.3]},
        {"preprocessing": [{"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True}]},
    ],
)
def test_unsupported_descriptions_are_rejected(
    changes: dict[str, Any], example: ModuleType, onnx_files: Callable[[str], Path], tmp_path: Path
) -> None:
    import onnx

    model = onnx.load(shutil.copy(onnx_files("padded"), tmp_path / "network.onnx"))
    about = next(entry for entry in model.metadata_props if entry.key == "medunet")
    about.value = json.dumps({**json.loads(about.value), **changes})
    onnx.save(model, tmp_path / "network.onnx")
    nib.save(nib.Nifti1Image(np.zeros((16, 16, 16), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(SystemExit, match="this example"):
        example.main(*(str(tmp_path / name) for name in ("network.onnx", "a.nii.gz", "labels.nii.gz")))
    assert not (tmp_path / "labels.nii.gz").exists()


@pytest.mark.parametrize("kind", ["padded", "unpadded"])
def test_tiling_changes_no_voxel(
    kind: str, example: ModuleType, bundles: dict[str, Path], onnx_files: Callable[[str], Path]
) -> None:
    network = load_tile_network(bundles[kind])
    size = {"padded": (50, 37, 41), "unpadded": (101, 75)}[kind]
    image = np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)
    session = example.ort.InferenceSession(onnx_files(kind))
    found = example.logits(session, image, network.description["tile"], edge=24)
    with torch.inference_mode():
        expected = OverlapTileInferer(None)(torch.from_numpy(image)[None], network.reference)[0].numpy()
    assert np.abs(found - expected).max() < 1e-4 * expected.std()
