"""Prediction on simulated CUDA: memory, windows, streams, broken devices, several GPUs, and planted faults.

`tests/support/simulated_cuda.py` states what the simulation cannot see.
"""

import inspect
import logging
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from simulated_cuda import GIB, SimulatedCuda, counted
from small import untrained_run

from medunet.errors import DeviceError, MedunetError
from medunet.inferers import GridMap, OverlapTileInferer, memory, restore_labels, windows
from medunet.inferers.memory import MOST_NUMBERS, bytes_per_voxel, peak_bytes
from medunet.inferers.windows import take_window
from medunet.io import read_volume
from medunet.networks import UNet
from medunet.prediction import Predictor
from medunet.runtime import FastNetwork, choose_form
from medunet.runtime.cuda import is_broken
from medunet.runtime.fast import convert_network

CUDA = torch.device("cuda", 0)
BODY_CT = (512, 512, 600)


@pytest.fixture(autouse=True)
def small_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEASURED_VOXELS", 24**3)


@pytest.fixture
def cuda() -> Iterator[SimulatedCuda]:
    with SimulatedCuda() as simulation:
        yield simulation


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("gpu") / "run", spacing_mm=[2.5, 2.5, 2.5])


@pytest.fixture(scope="module")
def sources(volumes: Path) -> list[Path]:
    return sorted((volumes / "imagesTr").glob("*.nii.gz"))[:3]


def labels(run: Path, source: Path, device: str, **overrides: Any) -> np.ndarray[Any, Any]:
    predictor = Predictor(run, device=device, overrides=overrides)
    return np.asarray(predictor.decide(source)["pred"][0])


def peak(predictor: Predictor, source: Path, cuda: SimulatedCuda) -> int:
    """Return the bytes that a case takes beyond the weights."""
    cuda.ledger.peaks.clear()
    predictor.decide(source)
    return cuda.ledger.peaks[0] - cuda.ledger.allocated(0)


def network(*channels: int) -> UNet:
    return UNet(3, 1, 3, channels=channels or (4, 8, 8), norm="batch").eval()


# windows and memory


def test_memory_of_a_pass_is_measured_once_and_matches_the_sizes_of_its_tensors(cuda: SimulatedCuda) -> None:
    plain = network()
    fast = FastNetwork(plain.to("cuda")).eval()
    fast.prepare(CUDA, in_channels=1, spatial_dims=3)
    cost = bytes_per_voxel(fast, plain, plain.shapes, 1, CUDA)
    converted = convert_network(network(), choose_form(plain, CUDA))
    expected = peak_bytes(converted, (1, 1, 24, 24, 24)) / 24**3
    # the image is float32 and copied to bfloat16
    assert expected <= cost / memory.FRAGMENTS <= expected + 8
    fast.forward = pytest.fail  # type: ignore[assignment,method-assign]
    assert bytes_per_voxel(fast, plain, plain.shapes, 1, CUDA) == cost


def test_a_measurement_that_runs_out_of_memory_is_not_kept() -> None:
    plain = network()
    with SimulatedCuda(free=400_000) as cuda:
        fast = FastNetwork(plain.to("cuda")).eval()
        estimate = bytes_per_voxel(fast, plain, plain.shapes, 1, CUDA)
        cuda.free = GIB
        assert bytes_per_voxel(fast, plain, plain.shapes, 1, CUDA) != estimate


@pytest.mark.parametrize("channels", [(16, 48, 96, 192), (32, 64, 128, 256, 320)])
def test_no_32_bit_kernel_gets_a_larger_tensor(
    cuda: SimulatedCuda, channels: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    large = UNet(3, 1, 14, channels=channels, norm="batch").eval()
    monkeypatch.setattr(memory, "_measure", lambda *_: False)
    plan = OverlapTileInferer("auto", sw_device="cuda").plan(BODY_CT, large)
    others = [OverlapTileInferer(size, sw_device="cuda").plan(BODY_CT, large) for size in (None, 512)]
    for tile in (tile for each in (plan, *others) for tile in each.tiles):  # max pooling reads the first level
        assert math.prod(tile.window_size) * channels[0] <= MOST_NUMBERS
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 90200)  # its convolutions count in 32 bits as well
    memory._NUMBERS.clear()
    old = OverlapTileInferer("auto", sw_device="cuda").plan(BODY_CT, large)
    for tile in old.tiles:  # the largest tensor is the concatenation at full resolution
        assert math.prod(tile.window_size) * 2 * channels[0] <= MOST_NUMBERS
    assert len(OverlapTileInferer(None).plan(BODY_CT, large).tiles) == 1  # a CPU counts in 64 bits


def test_windows_follow_the_memory_of_the_chosen_gpu() -> None:
    with SimulatedCuda(devices=2, free=(GIB, 4 << 20)):
        fast = FastNetwork(network()).eval()
        plans = [
            OverlapTileInferer("auto").plan((96, 96, 96), fast.to(f"cuda:{k}"), device=f"cuda:{k}") for k in (0, 1)
        ]
    assert len(plans[0].tiles) == 1 < len(plans[1].tiles)


def test_an_image_that_does_not_fit_gets_the_same_labels(run: Path, sources: list[Path]) -> None:
    expected = labels(run, sources[0], "cpu")
    with SimulatedCuda() as cuda:
        predictor = Predictor(run, device="cuda", overrides={"tile_inferer::memory": "1GB"})
        cuda.free = cuda.ledger.allocated(0) + int(0.6 * peak(predictor, sources[0], cuda))
        found = np.asarray(predictor.decide(sources[0])["pred"][0])
    assert np.array_equal(found, expected)


def test_views_that_do_not_fit_are_kept_in_the_memory_of_the_cpu(
    run: Path, sources: list[Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medunet.prediction.steps._has_room", lambda *_: False)
    changes = {"mirror_axes": [0], "tile_size": 24, "tile_inferer::halo": 4}
    expected = labels(run, sources[0], "cpu", **changes)
    with SimulatedCuda() as cuda, caplog.at_level(logging.WARNING):
        predictor = Predictor(run, device="cuda", overrides=changes)
        cuda.free = cuda.ledger.allocated(0) + int(0.9 * peak(predictor, sources[0], cuda))
        found = np.asarray(predictor.decide(sources[0])["pred"][0])
    assert "kept in the memory of the CPU" in caplog.text
    assert (found == expected).mean() > 0.999
    with SimulatedCuda() as cuda:
        predictor = Predictor(run, device="cuda", overrides=changes)
        cuda.free = cuda.ledger.allocated(0) + 1000
        with pytest.raises(MedunetError, match=r"memory is too small for this image.*--device cpu"):
            predictor.decide(sources[0])


def test_cudnn_times_its_kernels_only_for_windows_of_one_size(cuda: SimulatedCuda) -> None:
    class Noted(torch.nn.Module):
        timed: set[bool]

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            self.timed.add(torch.backends.cudnn.benchmark)
            return image

    noted, image = Noted(), torch.rand(1, 1, 64, 64, device="cuda")
    for tile_size, expected in ((16, {True}), (48, {False})):
        noted.timed = set()
        OverlapTileInferer(tile_size, halo=0, tile_stride=1)(image, noted)
        assert noted.timed == expected
        assert not torch.backends.cudnn.benchmark
    noted.timed = set()
    OverlapTileInferer(16, halo=0, tile_stride=1)(image.cpu(), noted)
    assert noted.timed == {False}


# cases


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_every_tensor_is_on_the_chosen_gpu(run: Path, sources: list[Path], device: str) -> None:
    with SimulatedCuda(devices=2) as cuda:
        found = labels(run, sources[0], device)
    assert [index for index, peak in cuda.ledger.peaks.items() if peak] == [int(device[-1])]
    assert np.array_equal(found, labels(run, sources[0], "cpu"))


def test_a_gpu_without_bfloat16_predicts_in_float16(
    run: Path, sources: list[Path], cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    predictor = Predictor(run, device="cuda", overrides={"autocast_dtype": "auto"})
    assert [form.dtype for form in predictor.forms] == ["float16"]
    found = np.asarray(predictor.decide(sources[0])["pred"][0])
    assert (found == labels(run, sources[0], "cpu")).mean() > 0.99


def test_probabilities_are_those_of_the_cpu(run: Path, sources: list[Path], tmp_path: Path) -> None:
    found = []
    for device in ("cpu", "cuda"):
        with SimulatedCuda():
            predictor = Predictor(run, output_dir=tmp_path / device, device=device, probabilities=True)
            path = predictor.predict_case(sources[0])
        name = path.name.replace(".nii.gz", "_prob.nii.gz")
        found.append(read_volume(path.with_name(name), channels=len(predictor.classes)).image.numpy())
    assert np.allclose(*found, atol=1e-5)


@pytest.mark.parametrize("stage", ["preprocessing", "network"])
def test_a_broken_gpu_ends_the_prediction(
    run: Path, sources: list[Path], tmp_path: Path, cuda: SimulatedCuda, stage: str
) -> None:
    predictor = Predictor(run, output_dir=tmp_path, device="cuda")
    network_of = predictor.network.forward
    cases = 0

    def fail(*args: Any) -> Any:
        nonlocal cases
        cases += 1
        cuda.is_broken = cases == 2
        return network_of(*args)

    def fail_early(image: torch.Tensor) -> torch.Tensor:
        nonlocal cases
        cases += 1
        cuda.is_broken |= cases == 2
        return image + 0

    if stage == "network":
        predictor.network.forward = fail  # type: ignore[method-assign]
    else:
        *before, _ = predictor.preprocessing.transforms
        last = lambda item: {**item, "image": fail_early(item["image"])}  # noqa: E731
        predictor.preprocessing.transforms = (*before, last)
    results = []
    with pytest.raises(DeviceError, match=r"cuda.* rejects all further work.*illegal memory access.*--skip-existing"):
        for result in predictor.predict(sources):
            results.append(result)
    assert all(result.path is not None for result in results)
    assert len(results) <= 1
    assert is_broken(CUDA)
    with pytest.raises(DeviceError):  # as a label server meets it
        predictor.decide(sources[0])


# planted faults


def pad() -> Any:
    return take_window(torch.rand(1, 1, 8, 8, device="cuda"), (slice(-2, 8), slice(0, 8)), (0, 0))


def restore() -> Any:
    grid = GridMap(np.diag([0.5, 0.5, 0.5, 1]), (16, 16, 16), (8, 8, 8))
    return restore_labels(torch.randn(3, 8, 8, 8, device="cuda"), grid)


def prepare() -> Any:
    stream = torch.cuda.Stream()
    item = {"image": torch.rand(1, 8, 8, 8)}
    return steps.preprocess_on(CUDA, lambda item: {"image": item["image"] * 2}, item, stream)["image"] + 1


steps = sys.modules["medunet.prediction.steps"]
grids = sys.modules["medunet.inferers.grids"]
cuda_module = sys.modules["medunet.runtime.cuda"]
FAULTS: list[tuple[Callable[[], Any], Any, str, str, str, str]] = [
    (pad, windows, "take_window", "upload(source, image.device)", "source", "same device|should be on the CPU"),
    (restore, grids, "_on_device", "upload(packed, device)", "packed", "same device"),
    (prepare, steps, "preprocess_on", "stream.synchronize()", "pass", "race"),
    (pad, windows, "take_window", "upload(source, image.device)", "source.to(image.device)", ""),
    (restore, grids, "_on_device", "upload(packed, device)", "packed.to(device)", ""),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{fault[2]}-{fault[4]}" for fault in FAULTS])
def test_planted_faults_are_detected(cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    work, module, name, old, new, error = fault
    with counted(cuda) as sound:
        work()
    text = inspect.getsource(getattr(module, name))
    assert text.count(old) == 1
    space = dict(vars(module))
    exec(compile(text.replace(old, new), module.__file__, "exec"), space)
    monkeypatch.setattr(module, name, space[name])
    monkeypatch.setitem(globals(), name, space[name])
    if error:
        with pytest.raises(RuntimeError, match=error):
            work()
    else:
        with counted(cuda) as faulty:
            work()
        assert sum(faulty.values()) > sum(sound.values())
