"""TF32 convolutions are off during float32 inference, and as before otherwise."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from medunet.runtime import FastNetwork
from medunet.runtime.autocast import exact_float32

CUDA = torch.device("cuda")  # the switch exists without a GPU


@pytest.fixture(params=[True, False], ids=["TF32 before", "no TF32 before"])
def before(request: pytest.FixtureRequest) -> Iterator[bool]:
    default = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = request.param
    yield request.param
    torch.backends.cudnn.allow_tf32 = default


def test_tf32_is_off_until_the_last_block_exits(before: bool) -> None:
    with exact_float32(torch.device("cpu")):
        assert torch.backends.cudnn.allow_tf32 is before
    first, second = ExitStack(), ExitStack()
    first.enter_context(exact_float32(CUDA))
    second.enter_context(exact_float32(CUDA))
    first.close()
    assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.conv.fp32_precision != "tf32"
    second.close()
    assert torch.backends.cudnn.allow_tf32 is before
    with pytest.raises(ZeroDivisionError), exact_float32(CUDA):
        _ = 1 / 0
    assert torch.backends.cudnn.allow_tf32 is before


def test_fp32_precision_is_restored() -> None:
    conv = torch.backends.cudnn.conv
    default = conv.fp32_precision
    try:
        conv.fp32_precision = "none" if default == "tf32" else "tf32"  # unlike that of RNNs: the older setting raises
        changed = conv.fp32_precision
        with exact_float32(CUDA):
            assert conv.fp32_precision == "ieee"
        assert conv.fp32_precision == changed
    finally:
        conv.fp32_precision = default


class Witness(nn.Conv2d):
    """Records the state of the switch whenever it is called."""

    seen: list[bool] = []  # noqa: RUF012 (shared with copies)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(torch.backends.cudnn.allow_tf32)
        return super().forward(image)


def test_inference_and_its_check_run_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medunet.runtime.fast.exact_float32", lambda device: exact_float32(CUDA))
    FastNetwork(Witness(1, 2, 3, padding=1), dtype="float32").eval()(torch.randn(1, 1, 16, 16))
    assert len(Witness.seen) > 2
    assert not any(Witness.seen)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_float32_on_a_gpu_is_exact() -> None:
    torch.manual_seed(0)
    network, image = nn.Conv3d(32, 32, 3, padding=1).eval(), torch.randn(1, 32, 24, 24, 24)
    with torch.inference_mode():
        expected = network.double()(image.double()).float()
        fast = FastNetwork(network.float().cuda(), dtype="float32").eval()
        found = fast(image.cuda()).cpu()
    # of 864 products each: TF32 would be wrong by about 3e-4
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
