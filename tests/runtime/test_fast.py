"""A network prepared for inference computes what the network computes."""

import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

from medunet.errors import ConfigError
from medunet.networks import UNet
from medunet.runtime import FastNetwork, Form, choose_form, fold_batch_norm, possible_forms, time_forms
from medunet.runtime.fast import UNCHANGED

CPU = torch.device("cpu")


def make_network(spatial_dims: int = 2, **options) -> UNet:
    """Return a network in evaluation mode whose batch norms have seen other data than they get."""
    torch.manual_seed(spatial_dims)
    network = UNet(spatial_dims, 1, 3, **{"channels": (4, 6, 8), "norm": "batch", **options}).eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return network


def assert_same(logits: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(logits, expected, atol=1e-4 * float(expected.std()), rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"upsample": "linear", "norm_after_up": True},
        {"norm_after_up": True, "act_after_up": True, "padding": "valid"},
        {"block": "residual", "downsample": "conv"},
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
        assert_same(folded(image), network(image))
    assert any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    without_statistics = make_network(spatial_dims, norm=["batch", {"track_running_stats": False}])
    assert str(fold_batch_norm(without_statistics)) == str(without_statistics)


def test_float32_is_exact_under_autocast_too():
    network, image = make_network(), torch.randn(2, 1, 33, 35)
    fast = FastNetwork(network, dtype="float32").eval()
    with torch.inference_mode():
        assert_same(fast(image), network(image))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert fast(image).dtype is torch.float32


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_small_images_are_not_unfolded_into_matrices(spatial_dims):
    network = make_network(spatial_dims, channels=(16, 24, 32), block="residual", downsample="conv")
    fast = FastNetwork(network, dtype="float32").eval()
    image = torch.randn(1, 1, *network.shapes.next_valid_input((20,) * spatial_dims))
    with torch.inference_mode():
        assert_same(fast(image), network(image))
        with torch.profiler.profile(record_shapes=True) as profile:
            fast(image)
    slow = [event for event in profile.events() if event.name in ("aten::slow_conv3d", "aten::thnn_conv2d")]
    assert all(event.input_shapes[0][1] == 1 or set(event.input_shapes[1][2:]) == {1} for event in slow)
    assert any(event.name == "aten::mkldnn_convolution" for event in profile.events())


@pytest.mark.parametrize(("norm", "spatial_dims"), [("batch", 3), ("instance", 2)])
def test_every_format_gives_the_output_of_the_network(fastest_format, norm, spatial_dims):
    network = make_network(spatial_dims, norm=norm)
    image = torch.randn(2, 1, *(33, 34, 18)[:spatial_dims])
    fast = FastNetwork(network).eval()
    with torch.inference_mode():
        expected, logits = network(image), fast(image)
    assert fast.form == Form(str(fastest_format).removeprefix("torch."), channels_last=norm == "batch")
    assert (logits.float() - expected).square().mean().sqrt() < 0.05 * expected.std()


def test_new_weights_are_used():
    network, image = make_network(), torch.randn(1, 1, 32, 32)
    fast = FastNetwork(network, dtype="float32").eval()
    with torch.inference_mode():
        first = fast(image)
    network.load_state_dict({key: value * 0.5 for key, value in network.state_dict().items()})
    with torch.inference_mode():
        torch.testing.assert_close(fast(image), network(image), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(first, fast(image))


def test_training_and_saving_use_the_original_network():
    network, image = make_network(), torch.randn(2, 1, 32, 32)
    fast = FastNetwork(network, dtype="bfloat16").eval()
    with torch.inference_mode():
        fast(image)
    assert set(fast.state_dict()) == {f"network.{key}" for key in network.state_dict()}
    assert all(value.dtype is not torch.bfloat16 for value in network.state_dict().values())
    fast.train()(image).sum().backward()
    assert next(network.parameters()).grad is not None


class Scaled(nn.Module):
    """The same function at any scale; at a large one, float16 numbers between its layers overflow."""

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


class WrongInBfloat16(nn.Module):
    """Like cuDNN 9.8 to 9.10, whose bfloat16 convolutions in 3D were wrong (pytorch issue 163539)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = self.conv(image)
        return logits.flip(1) if image.dtype is torch.bfloat16 else logits


class FailsWhenCopied(nn.Module):
    """Raises an error in every private copy."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.error = error
        self.is_copy = False

    def __deepcopy__(self, memo: dict) -> "FailsWhenCopied":
        copied = FailsWhenCopied(self.error)
        copied.is_copy = True
        return copied.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.is_copy:
            raise self.error
        return self.conv(image)


@pytest.mark.parametrize(
    ("network", "dtype", "reason"),
    [
        (Scaled(1e6), "float16", "differ by nan"),
        (WrongInBfloat16(), "bfloat16", "standard deviations"),
        (FailsWhenCopied(RuntimeError("no kernel")), "auto", "no kernel"),
    ],
    ids=["overflow", "wrong kernel", "no kernel"],
)
def test_a_form_that_disagrees_with_float32_falls_back_to_the_original_network(network, dtype, reason, caplog):
    fast, image = FastNetwork(network.eval(), dtype=dtype).eval(), torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        for _ in range(2):
            assert torch.equal(fast(image), network(image))
    assert fast.form == UNCHANGED
    assert caplog.text.count("is not used; the network runs in float32") == caplog.text.count(reason) == 1


def test_out_of_memory_does_not_reject_a_form():
    network = FailsWhenCopied(torch.OutOfMemoryError("CUDA out of memory")).eval()
    with pytest.raises(torch.OutOfMemoryError):
        FastNetwork(network).eval()(torch.randn(1, 1, 16, 16))


def test_a_window_that_overflows_in_float16_is_computed_in_float32(caplog):
    network, image = Scaled(1.0), torch.randn(1, 1, 32, 32)
    fast = FastNetwork(network, dtype="float16").eval()
    with torch.inference_mode():
        assert fast(image).dtype is torch.float16
        for _ in range(2):
            torch.testing.assert_close(fast(1e6 * image), network(1e6 * image))
        assert fast(image).dtype is torch.float16
    assert caplog.text.count("not finite") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "graphs"), [("compile", 3), ("graphs", 6)])
def test_a_compiled_network_gives_the_same_output_for_all_sizes(backend, graphs, caplog):
    network = make_network(2)
    fast = FastNetwork(network, dtype="float32", backend=backend).eval()
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    with torch.inference_mode(), caplog.at_level(logging.ERROR):
        for size in [(64, 64), (80, 64), (64, 96), (48, 112), (128, 48)]:
            image = torch.randn(1, 1, *size)
            torch.testing.assert_close(fast(image), network(image), atol=1e-4, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= graphs  # one of them for the check of the form


def test_logits_of_cuda_graphs_outlive_the_next_window(monkeypatch):
    """CUDA graphs write every output of one size to the same memory, as this stand-in for torch.compile does."""
    modes = []

    def recorded(module, **options):
        modes.append(options)
        memory = {}

        def replay(image):
            return memory.setdefault(image.shape, torch.empty(1, 3, *image.shape[2:])).copy_(module(image))

        return replay

    monkeypatch.setattr(torch, "compile", recorded)
    network = make_network(2)
    fast = FastNetwork(network, dtype="float32", backend="graphs").eval()
    images = torch.randn(2, 1, 1, 64, 64)
    with torch.inference_mode():
        logits = [fast(image) for image in images]
        for image, own in zip(images, logits, strict=True):
            torch.testing.assert_close(own, network(image), atol=1e-4, rtol=1e-4)
    assert modes == [{"mode": "reduce-overhead", "dynamic": False}]


def test_openvino_gives_the_same_output():
    pytest.importorskip("openvino")
    network = make_network(2)
    fast = FastNetwork(network, dtype="float32", backend="openvino").eval()
    with torch.inference_mode():
        for size in [(64, 64), (64, 64), (33, 35)]:  # the second time it is compiled already
            image = torch.randn(2, 1, *size)
            assert_same(fast(image), network(image))


def test_unknown_and_missing_backends_are_rejected(monkeypatch):
    monkeypatch.setattr("medunet.runtime.openvino.has_openvino", lambda: False)
    with torch.inference_mode(), pytest.raises(ConfigError, match="pip install openvino"):
        FastNetwork(make_network(), dtype="float32", backend="openvino").eval()(torch.zeros(1, 1, 32, 32))
    for options in ({"dtype": "int8"}, {"backend": "magic"}):
        with pytest.raises(ConfigError, match="unknown"):
            FastNetwork(make_network(), **options)


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
    signal.signal(signal.SIGCHLD, lambda number, frame: print("received"))
    os.kill(os.getpid(), signal.SIGCHLD)
"""


def test_the_process_survives_a_signal_after_openvino_networks_are_freed():
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", SIGNAL_AFTER_NETWORKS_WERE_DROPPED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "received\n"), done.stderr


def test_forms_are_timed_and_wrong_ones_rejected():
    wrong, right = Form("bfloat16"), Form("float32")
    timings = time_forms(WrongInBfloat16().eval(), torch.randn(1, 1, 64, 64), [wrong, right])
    assert [timing.form for timing in timings] == [right, wrong]
    assert timings[0].milliseconds < timings[1].milliseconds
    assert "standard deviations" in timings[1].rejected
    assert not timings[0].rejected


def test_the_default_form_is_among_the_timed_forms(fastest_format):
    assert {form.dtype for form in possible_forms(CPU)} == {"float32", str(fastest_format).removeprefix("torch.")}
    for norm in ("batch", "instance"):
        assert choose_form(make_network(norm=norm), CPU) in possible_forms(CPU)
    assert choose_form(make_network(), CPU, channels_last=False).channels_last is False


PAGE_FAULTS = """
import os, resource, torch
from medunet.runtime import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(1 << 26, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

os.environ["MEDUNET_KEEP_MEMORY"] = "0"
assert not keep_freed_memory()
returned = faults()
os.environ["MEDUNET_KEEP_MEMORY"] = "1"
assert keep_freed_memory()
assert min(faults() for _ in range(5)) * 10 < returned
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_reused_without_page_faults():
    subprocess.run([sys.executable, "-c", PAGE_FAULTS], check=True)
