"""A trained network prepared for inference: batch norm folded, fast number format, memory layout and backend."""

import ctypes
import logging
import os
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from medunet.errors import first_lines
from medunet.networks import only_tensor
from medunet.networks.arguments import choose

from .autocast import DTYPES, exact_float32, resolve_dtype
from .cuda import is_out_of_memory
from .ensemble import EnsembleLogits
from .folding import fold_batch_norm, use_onednn
from .openvino import OpenVinoNetwork

logger = logging.getLogger(__name__)

# arguments of torch.compile; with `compile` the second window size compiles once more, for all sizes
COMPILED: dict[str, dict[str, Any]] = {"compile": {}, "graphs": {"mode": "reduce-overhead", "dynamic": False}}
BACKENDS = ("eager", *COMPILED, "openvino")

CHECK_EDGE = {1: 512, 2: 128, 3: 32}  # voxels per axis of the window of the check, by number of axes

MAX_DIFFERENCE = 0.2
"""Largest root-mean-square difference of the logits from float32, in standard deviations of the float32 logits.
Rounding to bfloat16 stays below 0.1 even with random weights; a wrong kernel or an overflow exceeds 1."""

_SLOW_NORMS = (nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Form:
    """One way to compute a network.

    Args:
        dtype: name of the number format of weights and activations.
        channels_last: whether the channels of a voxel are adjacent in memory.
        backend: one of :data:`BACKENDS`, or `unchanged` for the network itself.
    """

    dtype: str = "float32"
    channels_last: bool = False
    backend: str = "eager"

    def __str__(self) -> str:
        return f"{self.backend} {self.dtype}{' channels-last' if self.channels_last else ''}"


UNCHANGED = Form(backend="unchanged")  # the network itself in float32, the fallback if the check fails


class FastNetwork(nn.Module):
    """Wrap a network for inference.

    In evaluation mode, a private copy runs: batch norm is folded into the convolutions, and weights have the number
    format and memory layout of :func:`choose_form`. The copy is made by :meth:`prepare`, or at the first call, and
    again when a weight has changed. It is compared once with the network on one window of noise; if they disagree, the
    network itself is used and a warning is logged.

    Args:
        network: the network; in training mode it is called unchanged.
        dtype: `auto` (see :func:`medunet.runtime.fast_dtype`), `float32` (exact: no TF32 on a GPU), `bfloat16` or
            `float16`. A window whose float16 logits are not finite is computed again in float32.
        channels_last: memory layout; None follows the rule of :func:`choose_form`.
        backend: `eager`; `compile` for `torch.compile`, tens of seconds at the first call; `graphs` for the same with
            CUDA graphs, for up to eight window sizes; `openvino` (CPU, extra `openvino`), seconds for each window size.

    Raises:
        ConfigError: an unknown dtype or backend.

    Examples:
        >>> from medunet.networks import UNet
        >>> network = UNet(2, 1, 2, channels=(4, 8), norm="batch").eval()
        >>> fast = FastNetwork(network, dtype="float32").eval()
        >>> with torch.inference_mode():
        ...     image = torch.rand(1, 1, 32, 32)
        ...     bool(torch.allclose(fast(image), network(image), atol=1e-4))
        True
    """

    def __init__(
        self, network: nn.Module, *, dtype: str = "auto", channels_last: bool | None = None, backend: str = "eager"
    ) -> None:
        super().__init__()
        choose("dtype", dtype, ["auto", *DTYPES])
        choose("backend", backend, BACKENDS)
        self.network = network
        self.dtype = dtype
        self.channels_last = channels_last
        self.backend = backend
        self.form: Form | None = None
        self._state: tuple[Any, ...] | None = None
        self._copy: list[nn.Module] = []  # a list, so that it is not a submodule: neither saved, moved nor trained
        self._warned = False

    @property
    def shapes(self) -> Any:
        """Sizes of the network."""
        return self.network.shapes

    @property
    def member_count(self) -> int:
        """Networks whose logits are averaged, if they can be computed one by one; else 1."""
        ensemble = self.network
        separable = isinstance(ensemble, EnsembleLogits) and ensemble.activation == "none" and self.backend == "eager"
        return len(ensemble.members) if separable else 1  # type: ignore[arg-type]

    def prepare(self, device: torch.device, *, in_channels: int, spatial_dims: int) -> None:
        """Make the private copy and compare it with the network, unless that was done for the current weights."""
        tensors = (*self.network.parameters(), *self.network.buffers())
        versions = ((t.data_ptr(), t.device, -1 if t.is_inference() else t._version) for t in tensors)
        state = (device.type, device.index or 0, *versions)  # changes whenever a weight does
        if state == self._state:
            return
        form = choose_form(
            self.network, device, dtype=self.dtype, channels_last=self.channels_last, backend=self.backend
        )
        copied = convert_network(self.network, form)
        size = [CHECK_EDGE[spatial_dims]] * spatial_dims
        if (shapes := getattr(self.network, "shapes", None)) is not None:
            size = [CHECK_EDGE[spatial_dims]] * len(shapes.total_stride)  # a 2D network may take slices of volumes
            size = shapes.input_for_output([max(n, 2 * s) for n, s in zip(size, shapes.total_stride, strict=True)])
        window = torch.randn(1, in_channels, *size, generator=torch.Generator().manual_seed(0)).to(device)
        if reason := disagreement(self.network, window, form, copied):
            logger.warning("%s is not used; the network runs in float32: %s", form, reason)
            form, copied = UNCHANGED, self.network
        self.form, self._copy, self._state = form, [copied], state

    def forward(self, image: torch.Tensor, member: int | None = None) -> torch.Tensor:
        """Map `(B, C, *spatial)` to the network's logits, in the number format of the form.

        With `member`, from 0 to less than `member_count`, these are the logits of one network of the ensemble.
        """

        def part(network: nn.Module) -> Any:
            return network if member is None else network.members[member]  # type: ignore[index]

        if self.training or image.device.type == "meta" or not image.is_floating_point():
            return part(self.network)(image)
        self.prepare(image.device, in_channels=image.shape[1], spatial_dims=image.ndim - 2)
        form = self.form or UNCHANGED
        with torch.autocast(image.device.type, enabled=False), exact_float32(image.device):
            logits = part(self._copy[0])(convert_image(image, form))
            if form.backend == "graphs":
                logits = only_tensor(logits).clone()  # the next window is written to the same memory
            # a sum needs no memory of the size of the logits
            if form.dtype != "float16" or only_tensor(logits).sum(dtype=torch.float32).isfinite():
                return logits
            if not self._warned:
                self._warned = True
                logger.warning("float16 logits are not finite; such windows are computed again in float32")
            return part(self.network)(image.float())


def choose_form(
    network: nn.Module,
    device: torch.device,
    *,
    dtype: str = "auto",
    channels_last: bool | None = None,
    backend: str = "eager",
) -> Form:
    """Return the default form of a network on a device.

    The number format is that of :func:`medunet.runtime.fast_dtype`. Channels-last is faster for convolutions, on CPUs
    and on tensor cores, but slower for instance and group norm (by 19 to 38 % in four bfloat16 U-Nets on one core).

    Examples:
        >>> str(choose_form(nn.Conv2d(1, 2, 3), torch.device("cpu"), dtype="bfloat16"))
        'eager bfloat16 channels-last'
    """
    name = str(resolve_dtype(device, dtype)).removeprefix("torch.")
    has_slow_norm = any(isinstance(module, _SLOW_NORMS) for module in network.modules())
    by_rule = backend != "openvino" and not has_slow_norm
    return Form(name, by_rule if channels_last is None else channels_last, backend)


def convert_network(network: nn.Module, form: Form) -> nn.Module:
    """Return a copy of a network in a form, without gradients; the network itself for `UNCHANGED`."""
    if form == UNCHANGED:
        return network
    copied = fold_batch_norm(network).requires_grad_(False)
    if form.backend == "openvino":
        return OpenVinoNetwork(copied.float(), dtype=form.dtype)
    copied = copied.to(dtype=DTYPES[form.dtype])
    if form.backend == "eager" and form.dtype == "float32":
        use_onednn(copied)
    for tensor in copied.parameters() if form.channels_last else ():
        if tensor.ndim in _LAYOUTS:
            tensor.data = tensor.data.contiguous(memory_format=_LAYOUTS[tensor.ndim])
    options = COMPILED.get(form.backend)
    return copied if options is None else torch.compile(copied, **options)  # type: ignore[return-value]


def convert_image(image: torch.Tensor, form: Form) -> torch.Tensor:
    """Return an image in the number format and layout that a network of this form takes."""
    if form.backend == "openvino":
        return image
    layout = _LAYOUTS.get(image.ndim) if form.channels_last else None
    return image.to(dtype=DTYPES[form.dtype], memory_format=layout or torch.contiguous_format)


def disagreement(network: nn.Module, window: torch.Tensor, form: Form, copied: nn.Module | None = None) -> str:
    """Return how a form differs too much from the network in float32; empty if it agrees."""
    if form.backend in COMPILED:  # compared without compiling: its numbers depend on the weights, not on the kernels
        form, copied = replace(form, backend="eager"), None
    with torch.inference_mode(), torch.autocast(window.device.type, enabled=False), exact_float32(window.device):
        expected = only_tensor(network.eval()(window)).float()
        try:
            module = convert_network(network, form) if copied is None else copied
            logits = only_tensor(module(convert_image(window, form))).float()
        except (RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error):
                raise
            return first_lines(error)
        spread = float(expected.std()) or 1.0
        difference = float((logits - expected).square().mean().sqrt()) / spread
    return "" if difference <= MAX_DIFFERENCE else f"its logits differ by {difference:.2g} standard deviations"


def keep_freed_memory() -> bool:
    """Stop glibc from returning freed memory to the kernel, so that large CPU passes do not fault their pages in again.

    The process keeps its peak memory in return. Call it once where a process starts inference or training. It does
    nothing with another C library, or if the environment variable MEDUNET_KEEP_MEMORY is 0.

    Returns:
        Whether memory is kept.
    """
    if os.environ.get("MEDUNET_KEEP_MEMORY") == "0" or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    mmap_max, trim_threshold = -4, -1  # options of malloc.h
    return bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))
