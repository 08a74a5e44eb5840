"""Timing of the forms in which a network can be computed on this machine."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from medunet.errors import first_lines

from .autocast import exact_float32, resolve_dtype
from .cuda import is_out_of_memory
from .fast import Form, convert_image, convert_network, disagreement
from .openvino import has_openvino

ROUNDS = 5
TOO_SLOW = 2.0  # a form that took this many times as long as the fastest is not timed again


@dataclass(frozen=True)
class Timing:
    """Result of timing one form: milliseconds per pass, or the reason why the form cannot be used."""

    form: Form
    milliseconds: float = math.inf
    rejected: str = ""


def possible_forms(device: torch.device, *, compiled: bool = False) -> list[Form]:
    """Return the forms worth timing on a device; those of OpenVINO if it is installed.

    Args:
        device: where the network runs.
        compiled: include `torch.compile`, which takes tens of seconds for each form.
    """
    names = sorted({"float32", str(resolve_dtype(device, "auto")).removeprefix("torch.")})
    backends = [
        "eager",
        *(["compile"] if compiled else []),
        *(["graphs"] if compiled and device.type == "cuda" else []),
    ]
    forms = [Form(name, last, backend) for backend in backends for name in names for last in (False, True)]
    if device.type == "cpu" and has_openvino():
        forms += [Form(name, backend="openvino") for name in names]
    return forms


def time_forms(network: nn.Module, window: torch.Tensor, forms: Sequence[Form]) -> list[Timing]:
    """Time forms in turn on one window, and compare their logits with float32. Return the fastest first.

    Raises:
        torch.OutOfMemoryError: the window is too large.
    """
    device = window.device
    rejected: dict[Form, str] = {}
    ready: dict[Form, tuple[nn.Module, torch.Tensor]] = {}
    best: dict[Form, float] = {}
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), exact_float32(device):
        for form in forms:
            try:
                module, image = convert_network(network, form), convert_image(window, form)
                module(image)  # compiles and allocates
            except (RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                rejected[form] = first_lines(error)
                continue
            rejected[form] = disagreement(network, window, form, module)
            if not rejected[form]:
                ready[form] = module, image
        for _ in range(ROUNDS):
            for form, (module, image) in ready.items():
                if best.get(form, 0.0) > TOO_SLOW * min(best.values(), default=math.inf):
                    continue
                begin = time.perf_counter()
                module(image)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                best[form] = min(1e3 * (time.perf_counter() - begin), best.get(form, math.inf))
    timings = [Timing(form, best.get(form, math.inf), rejected[form]) for form in forms]
    return sorted(timings, key=lambda timing: timing.milliseconds)
