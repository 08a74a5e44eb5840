"""Images reach a GPU from pinned memory and are preprocessed there; labels are the same on each device."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose, CropForegroundd, Lambdad, NormalizeIntensityd, Orientationd, Spacingd

from medunet.io import read_label, write_volume
from medunet.prediction import Predictor
from medunet.prediction.steps import _has_room, batch_on, pinned, preprocess_on
from medunet.runtime import save_weights
from medunet.transforms import AboveThreshold
from tests.support.small import untrained_run

pytestmark = pytest.mark.filterwarnings("ignore")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FIT_STEPS = 40
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def image() -> MetaTensor:
    return MetaTensor(torch.rand(1, 5, 6, 7), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))


def test_images_are_pinned_only_if_possible(image: MetaTensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", reject)
    assert pinned(image, CUDA) is image
    assert pinned(image, CPU) is image
    assert pinned(image.to("meta"), CUDA).device.type == "meta"  # an image on a device stays there


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=[pytest.mark.cuda, NEEDS_CUDA])])
def test_a_batch_equals_that_of_a_data_loader(image: MetaTensor, device: str) -> None:
    expected = list_data_collate([image])
    batch = batch_on(pinned(image, torch.device(device)), torch.device(device))
    assert batch.is_batch
    assert (batch.shape, batch.device.type) == (expected.shape, device)
    assert torch.equal(batch.affine, expected.affine)
    assert batch.meta.keys() == expected.meta.keys()
    if device != "meta":
        assert torch.equal(batch.as_tensor().cpu(), expected.as_tensor())
    assert batch_on(image.as_tensor(), torch.device(device)).shape == expected.shape


def test_cases_are_pinned_by_the_reading_thread(
    bundle: Path, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[Any] = []

    def note(image: torch.Tensor, device: torch.device) -> torch.Tensor:
        threads.append(threading.current_thread())
        return pinned(image, device)

    monkeypatch.setattr("medunet.prediction.predictor.pinned", note)
    predictor = Predictor(bundle, output_dir=tmp_path / "out", device="cpu")
    missing = tmp_path / "missing.nii.gz"
    assert [result.error is None for result in predictor.predict([volume, missing])] == [True, False]
    [thread] = threads
    assert thread is not threading.main_thread()


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


def test_a_preprocessed_image_stays_on_the_device(image: MetaTensor) -> None:
    steps = Compose([Lambdad("image", lambda voxels: voxels * 2)])
    assert preprocess_on(torch.device("meta"), steps, {"image": image})["image"].device.type == "meta"
    assert image.device.type == "cpu"
    assert image.applied_operations == []


def test_an_image_that_leaves_no_room_stays_on_the_cpu(image: MetaTensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40_000, 80_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1_680)
    # 12 copies of 210 float32 are 10,080 bytes, a quarter of the 40,320 that are free or cached
    assert _has_room(CUDA, image.numel())
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1_681)
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


@pytest.mark.cuda
@NEEDS_CUDA
def test_an_image_for_a_gpu_is_pinned(image: MetaTensor) -> None:
    ready = pinned(image, CUDA)
    assert isinstance(ready, MetaTensor)
    assert ready.is_pinned()
    assert torch.equal(ready.affine, image.affine)


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that separates three intensities, and an image of them: no voxel is undecided, as with random weights."""
    folder = tmp_path_factory.mktemp("sure")
    run = untrained_run(folder / "run")
    voxels = ((np.indices((33, 34, 35)) // 11).sum(axis=0) % 3).astype(np.float32)
    volume = write_volume(voxels, folder / "case.nii.gz", affine=np.diag([-1.0, -1.0, 1.0, 1.0]))
    predictor = Predictor(run, output_dir=folder / "out", device="cpu")
    images = predictor.preprocessing({"image": str(volume)})["image"].as_tensor()[None]
    label = (images > -0.5).long()[:, 0] + (images > 0.5).long()[:, 0]  # after normalisation about -1.2, 0 and 1.2
    network = predictor.network.network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(FIT_STEPS):
        optimizer.zero_grad()
        logits = network(images)
        logits = logits[0] if isinstance(logits, list | tuple) else logits
        torch.nn.functional.cross_entropy(logits, label).backward()
        optimizer.step()
    save_weights(network.state_dict(), run / "models" / "model.pt")
    return run, volume


@pytest.mark.parametrize(
    ("device", "dtype", "agreement"),
    [
        ("cpu", "bfloat16", 0.999),
        # three of 39,270 voxels may be rounded to the other class
        pytest.param("cuda", "float32", 0.9999, marks=[pytest.mark.cuda, NEEDS_CUDA]),
        pytest.param("cuda", "auto", 0.999, marks=[pytest.mark.cuda, NEEDS_CUDA]),
        pytest.param("cuda", "float16", 0.999, marks=[pytest.mark.cuda, NEEDS_CUDA]),
    ],
)
def test_labels_equal_those_of_the_cpu_in_float32(
    sure: tuple[Path, Path], tmp_path: Path, device: str, dtype: str, agreement: float
) -> None:
    run, volume = sure

    def labels(device: str, dtype: str) -> np.ndarray[Any, Any]:
        folder = tmp_path / f"{device} {dtype}"
        predictor = Predictor(run, output_dir=folder, device=device, overrides={"autocast_dtype": dtype})
        [done] = predictor.predict([volume])
        assert done.path is not None, done.error
        return read_label(done.path, reference=volume).image[0].numpy()

    expected = labels("cpu", "float32")
    assert np.unique(expected).tolist() == [0, 1, 2]
    assert (labels(device, dtype) == expected).mean() >= agreement
