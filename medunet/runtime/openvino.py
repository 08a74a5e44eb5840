"""A network run by OpenVINO on a CPU; needs the extra `openvino`."""

import importlib
import importlib.util
import warnings
from functools import cache, lru_cache
from typing import Any

import torch
from torch import nn

from medunet.errors import ConfigError
from medunet.networks import only_tensor

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}  # OpenVINO's names of number formats
CACHED_SIZES = 4  # compiled window sizes; each holds its weights and activations


def has_openvino() -> bool:
    """Return whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


class OpenVinoNetwork(nn.Module):
    """Evaluate a network with OpenVINO. It is compiled once per window size, which takes 1 to 3 seconds.

    `network` is in evaluation mode, on the CPU, in float32. `dtype` is the internal number format, which the CPU must
    support; inputs and logits are float32.
    """

    def __init__(self, network: nn.Module, *, dtype: str = "float32") -> None:
        super().__init__()
        if not has_openvino():
            raise ConfigError("OpenVINO is not installed", received="backend openvino", remedy="pip install openvino")
        self.network = network
        self.dtype = dtype
        self._compiled = lru_cache(CACHED_SIZES)(self._compile)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map `(B, C, *spatial)` to logits `(B, classes, *)`, float32."""
        if image.device.type != "cpu":
            raise ConfigError("OpenVINO runs on the CPU only", received=image.device, remedy="use another backend")
        image = image.float().contiguous()
        request = self._compiled(tuple(image.shape))
        logits = torch.empty(tuple(request.get_output_tensor(0).shape))
        shared = importlib.import_module("openvino").Tensor(logits.numpy(), shared_memory=True)
        request.set_output_tensor(0, shared)
        request.infer({0: image.numpy()}, share_inputs=True)
        return logits

    def _compile(self, size: tuple[int, ...]) -> Any:
        # an export computes nothing, but it rejects inference tensors
        with torch.inference_mode(mode=False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch copies, and OpenVINO calls, what torch has deprecated
            exported = torch.export.export(_OnlyTensor(self.network).eval(), (torch.zeros(size),))
            model = importlib.import_module("openvino").convert_model(exported)
        model.reshape(list(size))  # the conversion forgets the sizes, and unknown sizes cost speed
        return compiled(model, PRECISIONS[self.dtype])


@cache
def core() -> Any:
    """Return the only OpenVINO core of the process, which is never freed.

    Freeing a core also frees the stack that it gave the thread for signals (openvinotoolkit/openvino#11894). If one of
    several cores is freed, the next signal can end the process.
    """
    return importlib.import_module("openvino").Core()


def compiled(model: Any, precision: str) -> Any:
    """Return a request for inference on the CPU with torch's number of threads; `model` may be a file."""
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    settings |= {"NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    return core().compile_model(model, "CPU", settings).create_infer_request()


class _OnlyTensor(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return only_tensor(self.network(image))
