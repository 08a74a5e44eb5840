"""Images are preprocessed on a GPU; labels are the same on each device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose, CropForegroundd, NormalizeIntensityd, Orientationd, Spacingd

from medunet.io import read_volume
from medunet.prediction import Predictor
from medunet.prediction.steps import _has_room, batch_on, preprocess_on
from medunet.transforms import AboveThreshold

pytestmark = pytest.mark.filterwarnings("ignore")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def image() -> MetaTensor:
    return MetaTensor(torch.rand(1, 5, 6, 7), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=[pytest.mark.cuda, NEEDS_CUDA])])
def test_a_batch_matches_that_of_a_data_loader(image: MetaTensor, device: str) -> None:
    expected = list_data_collate([image])
    batch = batch_on(image, torch.device(device))
    assert batch.is_batch
    assert (batch.shape, batch.device.type) == (expected.shape, device)
    assert torch.equal(batch.affine, expected.affine)
    assert batch.meta.keys() == expected.meta.keys()
    if device != "meta":
        assert torch.equal(batch.as_tensor().cpu(), expected.as_tensor())
    assert batch_on(image.as_tensor(), torch.device(device)).shape == expected.shape


STEPS = Compose(
    [
        Orientationd("image", "RAS", labels=None),
        CropForegroundd("image", "image", select_fn=AboveThreshold(0.5), allow_smaller=True),
        Spacingd("image", (1.5, 1.5, 1.5), mode="bilinear"),
        NormalizeIntensityd("image", channel_wise=True),
    ]
)


def test_preprocessing_falls_back_to_the_cpu(image: MetaTensor) -> None:
    tried: list[str] = []

    def steps(item: dict[Any, Any]) -> dict[Any, Any]:
        tried.append(item["image"].device.type)
        return STEPS(item)

    expected = STEPS({"image": image})["image"]
    # a device without voxels, on which no step finds the foreground
    result = preprocess_on(torch.device("meta"), steps, {"image": image, "name": "case"})
    assert tried == ["meta", "cpu"]
    assert result["name"] == "case"
    assert torch.equal(result["image"].as_tensor(), expected.as_tensor())
    done, wanted = ([step["class"] for step in one.applied_operations] for one in (result["image"], expected))
    assert done == wanted  # the steps on the device leave no trace


def test_an_image_too_large_for_the_gpu_stays_on_the_cpu(image: MetaTensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40_000, 80_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    # 12 copies of 210 float32 are 10,080 bytes; 0.4 * 0.6 of the 42,000 that are free or cached are as many
    assert _has_room(CUDA, image.numel())
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5)
    assert not _has_room(CUDA, image.numel())
    assert preprocess_on(CUDA, STEPS, {"image": image})["image"].device.type == "cpu"


@pytest.mark.cuda
@NEEDS_CUDA
def test_an_image_is_preprocessed_on_the_gpu(image: MetaTensor) -> None:
    expected = STEPS({"image": image})["image"]
    result = preprocess_on(CUDA, STEPS, {"image": image})["image"]
    assert result.device.type == "cuda"
    assert torch.allclose(result.cpu().as_tensor(), expected.as_tensor(), atol=1e-4)
    assert torch.allclose(result.affine.cpu(), expected.affine)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", "bfloat16"),
        *(pytest.param("cuda", d, marks=[pytest.mark.cuda, NEEDS_CUDA]) for d in ("float32", "auto", "float16")),
    ],
)
def test_probabilities_equal_those_of_the_cpu_in_float32(
    bundle: Path, volume: Path, tmp_path: Path, device: str, dtype: str
) -> None:
    def probabilities(device: str, dtype: str) -> np.ndarray[Any, Any]:
        options = {"device": device, "overrides": {"autocast_dtype": dtype}, "probabilities": True}
        [done] = Predictor(bundle, output_dir=tmp_path / f"{device} {dtype}", **options).predict([volume])
        assert done.path is not None, done.error
        return read_volume(done.path.with_name("case_prob.nii.gz"), channels=3).image.numpy()

    expected = probabilities("cpu", "float32")
    assert expected.std() > 0.03
    difference, tolerance = np.abs(probabilities(device, dtype) - expected), 0.001 if dtype == "float32" else 0.01
    assert difference.mean() <= tolerance / 4
    assert np.quantile(difference, 0.999) <= tolerance
