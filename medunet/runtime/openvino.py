"""A network run by OpenVINO on a CPU, in the place of the network itself; needs the extra `openvino`."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from medunet.errors import ConfigError
from medunet.networks.foreign import only_tensor

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""OpenVINO's names of our number formats."""

KEPT_SIZES = 4
"""Compiled networks that are kept, one a window size; each holds its weights and activations."""


def has_openvino() -> bool:
    """Whether the runtime is installed."""
    return importlib.util.find_spec("openvino") is not None


COMPILE_SECONDS = 2.0
"""What a new window size costs at least; seen were 1 to 3 s for networks of 4 and 5 levels."""


class OpenVinoNetwork(nn.Module):
    """Compiles a network for each window size that it meets and evaluates it with OpenVINO.

    Compiling takes some seconds for each size, so this pays for large images and for many tiles of one size. With
    `meanwhile` a size is compiled once it has cost more not to have it compiled.

    Args:
        network: in evaluation mode, on the CPU, in float32; its output is as of `only_tensor`.
        dtype: name of the number format inside, for a CPU that has it; inputs and logits are float32.
        meanwhile: evaluates windows whose size is not compiled; None compiles at once.
        saving: seconds that OpenVINO saves a voxel of a window, against `meanwhile`.

    Raises:
        ConfigError: OpenVINO is not installed. When called: images that are not on the CPU.

    Example:
        >>> if has_openvino():
        ...     network = torch.nn.Conv2d(1, 2, kernel_size=3, padding=1).eval()
        ...     with torch.inference_mode():
        ...         assert OpenVinoNetwork(network)(torch.zeros(1, 1, 9, 9)).shape == (1, 2, 9, 9)
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        dtype: str = "float32",
        meanwhile: Callable[[torch.Tensor], torch.Tensor] | None = None,
        saving: float = 0.0,
    ) -> None:
        super().__init__()
        if not has_openvino():
            raise ConfigError("OpenVINO is not installed", received="backend openvino", remedy="pip install openvino")
        self.network = network
        self.dtype = dtype
        self.meanwhile = meanwhile
        self.saving = saving
        self._compiled: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._forgone: defaultdict[tuple[int, ...], float] = defaultdict(float)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """`(B, C, *spatial)` to logits `(B, classes, *)`, float32."""
        if image.device.type != "cpu":
            raise ConfigError("OpenVINO runs on the CPU only", received=image.device, remedy="use another backend")
        size = tuple(image.shape)
        if self.meanwhile is not None and size not in self._compiled:
            self._forgone[size] += self.saving * image.numel() / image.shape[1]
            if self._forgone[size] < COMPILE_SECONDS:
                return self.meanwhile(image)
        openvino = importlib.import_module("openvino")

        image = image.float().contiguous()
        request = self._compiled.pop(size, None) or self._compile(image)
        self._compiled[size] = request  # the one used last comes last
        while len(self._compiled) > KEPT_SIZES:
            self._compiled.popitem(last=False)
        logits = torch.empty(tuple(request.get_output_tensor(0).shape))
        request.set_output_tensor(0, openvino.Tensor(logits.numpy(), shared_memory=True))
        request.infer({0: image.numpy()}, share_inputs=True)
        return logits

    def _compile(self, image: torch.Tensor) -> Any:
        openvino = importlib.import_module("openvino")

        # an export computes nothing, but it must meet no inference tensor
        with torch.inference_mode(mode=False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch copies, and OpenVINO calls, what torch has deprecated
            exported = torch.export.export(_OnlyTensor(self.network).eval(), (torch.zeros(image.shape),))
            model = openvino.convert_model(exported)
        model.reshape(list(image.shape))  # the conversion forgets the sizes, which cost speed when unknown
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        return core().compile_model(model, "CPU", settings).create_infer_request()


@cache
def core() -> Any:
    """The one core of the process, kept to its end.

    A core that is let go frees the stack that it gave the thread for signals (openvinotoolkit/openvino#11894); of
    several cores a freed one can stay in use, and the next signal then ends the process.
    """
    return importlib.import_module("openvino").Core()


class _OnlyTensor(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return only_tensor(self.network(image))
