"""A network made ready for inference answers as the network does."""

from __future__ import annotations

import importlib
import json
import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

from medunet.errors import ConfigError
from medunet.networks import UNet, presets
from medunet.runtime import FastNetwork, fold_batch_norm
from medunet.runtime import fast as fast_module
from medunet.runtime.calibration import (
    UNCHANGED,
    Candidate,
    Choice,
    calibrate,
    prepare_choice,
    refusal,
)
from medunet.runtime.openvino import COMPILE_SECONDS, OpenVinoNetwork


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDUNET_CACHE_DIR", str(tmp_path / "cache"))


def make_network(spatial_dims: int = 2, **options) -> UNet:
    """In evaluation mode, with a normalisation that has seen other data than it will meet."""
    torch.manual_seed(spatial_dims)
    network = UNet(spatial_dims, 1, 3, **{"channels": (4, 6, 8), "norm": "batch", **options}).eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return network


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"upsample": "linear", "norm_after_up": True},
        {"norm_after_up": True, "act_after_up": True},
        {"block": "residual", "downsample": "conv"},
        {"padding": "valid", "act": "leakyrelu"},
    ],
    ids=str,
)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_folding_changes_rounding_only(spatial_dims, options):
    network = make_network(spatial_dims, **options)
    folded = fold_batch_norm(network)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in folded.modules())
    image = torch.randn(1, 1, *network.shapes.next_valid_input((48,) * spatial_dims))
    with torch.inference_mode():
        expected = network(image)
        torch.testing.assert_close(folded(image), expected, atol=1e-4 * float(expected.std()), rtol=0)
    assert any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def test_published_variants_fold():
    network = presets.unet_compact_bn(in_channels=1, out_channels=1).eval()
    image = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(fold_batch_norm(network)(image), network(image), atol=1e-5, rtol=0)


def test_batch_norm_without_statistics_stays():
    network = make_network(norm=["batch", {"track_running_stats": False}])
    folded = fold_batch_norm(network)
    assert any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


@pytest.mark.parametrize("norm", ["batch", "instance", None])
def test_float32_is_exact(norm):
    network, image = make_network(norm=norm), torch.randn(2, 1, 33, 35)
    fast = FastNetwork(network, dtype="float32").eval()
    with torch.inference_mode():
        expected = network(image)
        torch.testing.assert_close(fast(image), expected, atol=1e-4 * float(expected.std()), rtol=0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert fast(image).dtype is torch.float32


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("options", [{}, {"padding": "valid"}, {"block": "residual", "downsample": "conv"}], ids=str)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_small_images_are_not_unfolded_into_matrices(spatial_dims, options):
    network = make_network(spatial_dims, **{"channels": (16, 24, 32), **options})
    fast = FastNetwork(network, dtype="float32").eval()
    image = torch.randn(1, 1, *network.shapes.next_valid_input((20,) * spatial_dims))
    with torch.inference_mode():
        expected = network(image)
        torch.testing.assert_close(fast(image), expected, atol=1e-4 * float(expected.std()), rtol=0)
        with torch.profiler.profile(record_shapes=True) as profile:
            fast(image)
    slow = [event for event in profile.events() if event.name in ("aten::slow_conv3d", "aten::thnn_conv2d")]
    assert all(event.input_shapes[0][1] == 1 or set(event.input_shapes[1][2:]) == {1} for event in slow)
    assert any(event.name == "aten::mkldnn_convolution" for event in profile.events())


def test_new_weights_are_noticed():
    network, image = make_network(), torch.randn(1, 1, 32, 32)
    fast = FastNetwork(network, dtype="float32").eval()
    with torch.inference_mode():
        first = fast(image)
    network.load_state_dict({key: value * 0.5 for key, value in network.state_dict().items()})
    with torch.inference_mode():
        torch.testing.assert_close(fast(image), network(image), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(first, fast(image))


def test_weights_are_those_of_the_network_alone():
    network = make_network()
    fast = FastNetwork(network, dtype="bfloat16").eval()
    with torch.inference_mode():
        fast(torch.randn(1, 1, 32, 32))
    assert set(fast.state_dict()) == {f"network.{key}" for key in network.state_dict()}
    assert all(value.dtype is not torch.bfloat16 for value in network.state_dict().values())
    assert fast.shapes is network.shapes


def test_training_is_left_alone():
    network = make_network()
    fast = FastNetwork(network).train()
    fast(torch.randn(2, 1, 32, 32)).sum().backward()
    assert next(network.parameters()).grad is not None


def test_choice_is_measured_once_and_kept(tmp_path, monkeypatch):
    network, image = make_network(), torch.randn(1, 1, 64, 64)
    first = FastNetwork(network).eval()
    with torch.inference_mode():
        first(image)
    (kept,) = json.loads((tmp_path / "cache" / "calibration.json").read_text()).values()
    assert kept["candidate"]["dtype"] == first.choice.candidate.dtype
    assert first.choice.milliseconds
    monkeypatch.setattr("medunet.runtime.fast.calibrate", lambda *args: pytest.fail("measured again"))
    second = FastNetwork(network).eval()
    with torch.inference_mode():
        second(image)
    assert second.choice.candidate == first.choice.candidate


def test_damaged_cache_is_measured_anew(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "calibration.json").write_text('{"half')
    fast = FastNetwork(make_network()).eval()
    with torch.inference_mode():
        fast(torch.randn(1, 1, 32, 32))
    assert len(json.loads((tmp_path / "cache" / "calibration.json").read_text())) == 1


class Scaled(nn.Module):
    """The same function at any scale, but in float16 numbers between its layers may be too large."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.eval().requires_grad_(False)
        for part in self.first.parameters():
            part.mul_(scale)
        self.second.weight.div_(scale)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(image))


TOO_LARGE = 1e6


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a program with weights of a scale: its choice, and what it did to make it. float16 is kept as fastest."""
    monkeypatch.setattr(importlib.import_module("medunet.runtime.autocast"), "fast_dtype", lambda device: torch.float16)
    did: list[str] = []
    for name in ("calibrate", "refusal"):
        work = getattr(fast_module, name)
        monkeypatch.setattr(fast_module, name, lambda *args, n=name, w=work: did.append(n) or w(*args))

    def run(scale: float) -> tuple[Candidate, list[str]]:
        did.clear()
        fast = FastNetwork(Scaled(scale)).eval()
        with torch.inference_mode():
            fast(torch.randn(1, 1, 32, 32))
        return fast.choice.candidate, [*did]

    run(1.0)
    path = tmp_path / "cache" / "calibration.json"
    ((key, kept),) = json.loads(path.read_text()).items()
    kept["candidate"] = {"dtype": "float16", "channels_last": False, "backend": "eager"}
    path.write_text(json.dumps({key: kept}))
    return run


def test_other_weights_of_the_same_shapes_are_compared_once(start):
    assert start(1.0) == (Candidate("float16"), [])  # those that were measured
    assert start(2.0) == (Candidate("float16"), ["refusal"])
    assert start(2.0) == (Candidate("float16"), [])


def test_weights_that_a_kept_choice_does_not_suit_have_their_own(start, caplog):
    chosen, did = start(TOO_LARGE)
    assert (chosen.dtype, did) == ("float32", ["refusal", "calibrate"])
    assert "eager float16 is not used with these weights" in caplog.text
    assert start(TOO_LARGE) == (chosen, [])
    assert start(1.0) == (Candidate("float16"), [])


def test_an_exact_choice_is_never_compared(start, tmp_path):
    path = tmp_path / "cache" / "calibration.json"
    path.write_text(path.read_text().replace("float16", "float32"))
    assert start(2.0) == (Candidate("float32"), [])


def test_a_damaged_list_of_compared_weights_is_begun_anew(start, tmp_path):
    path = tmp_path / "cache" / "calibration.json"
    path.write_text(json.dumps({key: {**kept, "checked": 7} for key, kept in json.loads(path.read_text()).items()}))
    assert start(1.0) == (Candidate("float16"), ["refusal"])
    assert start(1.0) == (Candidate("float16"), [])


def test_compiled_candidates_are_compared_without_compiling(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    choice = Choice(Candidate("float16", backend="compile"))
    assert refusal(Scaled(1.0), torch.randn(1, 1, 32, 32), choice) == ""
    assert "compile float16: its logits differ" in refusal(Scaled(TOO_LARGE), torch.randn(1, 1, 32, 32), choice)


@pytest.mark.parametrize("scale", [1.0, TOO_LARGE])
def test_a_given_format_too_small_for_the_weights_is_warned_of(scale, caplog):
    fast = FastNetwork(Scaled(scale), dtype="float16").eval()
    with torch.inference_mode():
        for _ in range(2):
            fast(torch.randn(1, 1, 32, 32))
    assert caplog.text.count("not finite") == (scale == TOO_LARGE)


def test_another_cudnn_is_measured_anew(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X")
    found = set()
    for cuda, cudnn in (("12.8", 90800), ("12.8", 91000), ("13.0", 91000)):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda number=cudnn: number)
        found.add(fast_module._machine(torch.device("cuda")))
    assert len(found) == 3


class WrongInBfloat16(nn.Module):
    """As cuDNN 9.8 to 9.10, whose bfloat16 convolutions in 3D answered wrongly (pytorch issue 163539)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = self.conv(image)
        return logits.flip(1) if image.dtype is torch.bfloat16 else logits


def test_a_candidate_that_answers_wrongly_is_refused(caplog):
    torch.manual_seed(0)
    candidates = [Candidate("float32"), Candidate("bfloat16")]
    choice = calibrate(WrongInBfloat16().eval(), torch.randn(1, 1, 64, 64), candidates)
    assert choice.candidate == candidates[0]
    assert list(choice.milliseconds) == [str(candidates[0])]
    assert "of voxels agree" in choice.refused[str(candidates[1])]


class FailsWhenCopied(nn.Module):
    """Answers wrongly, or not at all, in every private copy."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.error = error
        self.is_copy = False

    def __deepcopy__(self, memo: dict) -> FailsWhenCopied:
        copied = FailsWhenCopied(self.error)
        copied.load_state_dict(self.state_dict())
        copied.is_copy = True
        return copied.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.is_copy and self.error is not None:
            raise self.error
        logits = self.conv(image)
        return logits.flip(1) if self.is_copy else logits


@pytest.mark.parametrize("error", [None, RuntimeError("no kernel")], ids=["wrong", "fails"])
def test_if_every_candidate_is_rejected_the_network_itself_is_used(error, caplog):
    torch.manual_seed(0)
    network, image = FailsWhenCopied(error).eval(), torch.randn(1, 1, 64, 64)
    choice = calibrate(network, image, [Candidate(), Candidate(channels_last=True)])
    assert choice.candidate == UNCHANGED
    assert len(choice.refused) == 2
    assert prepare_choice(network, choice) is network
    with torch.inference_mode():
        assert torch.equal(FastNetwork(network).eval()(image), network(image))


def test_out_of_memory_rejects_no_candidate():
    network = FailsWhenCopied(torch.OutOfMemoryError("CUDA out of memory")).eval()
    with pytest.raises(torch.OutOfMemoryError):
        calibrate(network, torch.randn(1, 1, 16, 16), [Candidate()])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("measured", [True, False], ids=["measured", "given"])
def test_every_format_answers_as_the_network(fastest_format, measured, norm, spatial_dims):
    network = make_network(spatial_dims, norm=norm)
    image = torch.randn(2, 1, *(33, 34, 18)[:spatial_dims])
    name = str(fastest_format).removeprefix("torch.")
    fast = FastNetwork(network, dtype="auto" if measured else name).eval()
    with torch.inference_mode():
        expected, found = network(image), fast(image)
    assert fast.choice.candidate.dtype in ({"float32", name} if measured else {name})
    assert (found.float() - expected).square().mean().sqrt() < 0.05 * expected.std()


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"backend": "magic"}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ConfigError, match="unknown"):
        FastNetwork(make_network(), **options)


@pytest.mark.slow
def test_compiled_answers_the_same(caplog):
    network, image = make_network(3), torch.randn(1, 1, 32, 32, 32)
    fast = FastNetwork(network, dtype="float32", backend="compile").eval()
    with torch.inference_mode(), caplog.at_level(logging.ERROR):
        torch.testing.assert_close(fast(image), network(image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (33, 35)], ids=str)
def test_openvino_answers_the_same(size):
    pytest.importorskip("openvino")
    network, image = make_network(2), torch.randn(2, 1, *size)
    fast = FastNetwork(network, dtype="float32", backend="openvino").eval()
    with torch.inference_mode():
        for _ in range(2):  # the second time it is compiled already
            expected = network(image)
            torch.testing.assert_close(fast(image), expected, atol=1e-4 * float(expected.std()), rtol=0)
            image = torch.randn(2, 1, *size)


SIGNAL_AFTER_NETWORKS_WERE_DROPPED = """
import faulthandler, gc, os, signal, tempfile, torch
from medunet.runtime.openvino import OpenVinoNetwork

with tempfile.TemporaryFile() as log:
    faulthandler.enable(log)  # gives the thread a stack for signals, as pytest does
    runtimes = [OpenVinoNetwork(torch.nn.Conv2d(1, 2, 3).eval()) for _ in range(3)]
    with torch.inference_mode():
        for runtime in runtimes:
            runtime(torch.zeros(1, 1, 9, 9))
    del runtime
    while runtimes:
        del runtimes[0]
        gc.collect()
    torch.zeros(1 << 24)  # takes what was freed
    signal.signal(signal.SIGCHLD, lambda number, frame: print("told"))
    os.kill(os.getpid(), signal.SIGCHLD)
"""


def test_a_signal_after_openvino_networks_were_dropped_is_survived():
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", SIGNAL_AFTER_NETWORKS_WERE_DROPPED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "told\n"), done.stderr


def test_openvino_compiles_sizes_that_pay_for_it():
    pytest.importorskip("openvino")
    network = make_network(2)
    runtime = OpenVinoNetwork(network, meanwhile=network, saving=0.4 * COMPILE_SECONDS / 64**2)
    with torch.inference_mode():
        calls = [runtime(torch.zeros(1, 1, 64, 64)) for _ in range(2)]
        assert not runtime._compiled
        calls.append(runtime(torch.zeros(1, 1, 64, 64)))
        assert list(runtime._compiled) == [(1, 1, 64, 64)]
        assert runtime(torch.zeros(1, 1, 32, 32)).shape == (1, 3, 32, 32)
        assert len(runtime._compiled) == 1
    torch.testing.assert_close(calls[0], calls[2], atol=1e-4, rtol=1e-4)


def test_choice_among_runtimes_is_kept(tmp_path):
    pytest.importorskip("openvino")
    network, image = make_network(2), torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        first = FastNetwork(network, backend="auto").eval()
        torch.testing.assert_close(first(image).float().argmax(1), network(image).argmax(1), atol=1, rtol=0)
        assert {name.split()[0] for name in first.choice.milliseconds} == {"eager", "openvino"}
        again = FastNetwork(network, backend="auto").eval()
        again(image)
    assert again.choice.candidate == first.choice.candidate
    assert not again.choice.milliseconds
    exact = FastNetwork(network, dtype="float32", backend="auto").eval()
    with torch.inference_mode():
        exact(image)
    assert exact.choice.candidate.dtype == "float32"  # and not what was kept for another format
    assert exact.choice.milliseconds


def test_openvino_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("medunet.runtime.openvino.has_openvino", lambda: False)
    with torch.inference_mode(), pytest.raises(ConfigError, match="pip install openvino"):
        FastNetwork(make_network(), dtype="float32", backend="openvino").eval()(torch.zeros(1, 1, 32, 32))
