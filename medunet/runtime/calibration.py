"""Ways to compute a network, timed and compared with its own answer in float32."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from medunet.networks.foreign import only_tensor

from .autocast import DTYPES, exact_float32
from .folding import fold_batch_norm
from .onednn import use_onednn
from .openvino import OpenVinoNetwork

MIN_AGREEMENT = 0.97
"""Share of voxels in which a candidate must have the class of the float32 network. Rounding to bfloat16 turns voxels
whose classes are equally likely, some per cent where weights are chance; a wrong kernel turns far more."""

MAX_DIFFERENCE = 0.1
"""Largest root-mean-square difference of a candidate's logits, in standard deviations of the float32 network's."""

HOPELESS = 1.5
"""A candidate that once took this many times as long as the best is not timed again."""

_ROUNDS = 3


@dataclass(frozen=True)
class Candidate:
    """One way to compute.

    Args:
        dtype: name of the number format of weights and activations.
        channels_last: whether channels lie together in memory.
        backend: `eager`, `compile`, `openvino`, or `unchanged` for the network itself.
    """

    dtype: str = "float32"
    channels_last: bool = False
    backend: str = "eager"

    @property
    def is_exact(self) -> bool:
        """Whether it rounds as the network itself does, whatever the weights."""
        return self.dtype == "float32" and self.backend != "openvino"

    def __str__(self) -> str:
        return f"{self.backend} {self.dtype}{' channels-last' if self.channels_last else ''}"


UNCHANGED = Candidate(backend="unchanged")
"""What is used if every candidate is rejected: the network in float32, with which the candidates are compared."""


@dataclass(frozen=True)
class Choice:
    """What the calibration found.

    Args:
        candidate: the one that is used.
        milliseconds: time of one pass over the window by candidate; the refused ones are left out.
        refused: candidates that answered wrongly or failed, with the reason.
        meanwhile: with OpenVINO, the one that is used for windows of sizes which it has not compiled.
        saving: seconds a voxel that the candidate is faster than `meanwhile`.
    """

    candidate: Candidate
    milliseconds: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    meanwhile: Candidate | None = None
    saving: float = 0.0

    def kept(self) -> dict[str, Any]:
        """What is written into the file."""
        meanwhile = None if self.meanwhile is None else asdict(self.meanwhile)
        return {"candidate": asdict(self.candidate), "meanwhile": meanwhile, "saving": self.saving}

    @classmethod
    def read(cls, kept: Any, candidates: Sequence[Candidate]) -> Choice | None:
        """The choice that was written, if it is one of the candidates."""
        if not isinstance(kept, dict):
            return None
        by_values = {repr(asdict(candidate)): candidate for candidate in candidates}
        candidate, meanwhile = (by_values.get(repr(kept.get(key))) for key in ("candidate", "meanwhile"))
        if candidate is None:
            return None
        if candidate.backend == "openvino" and meanwhile is None and any(c.backend == "eager" for c in candidates):
            return None
        return cls(candidate, meanwhile=meanwhile, saving=float(kept.get("saving", 0.0)))


def prepare_choice(network: nn.Module, choice: Choice) -> nn.Module:
    """As :func:`prepare`; OpenVINO serves the sizes that pay for their compilation, if there is something else."""
    other = choice.meanwhile
    if other is None:
        return prepare(network, choice.candidate)
    meanwhile = prepare(network, other)
    folded = fold_batch_norm(network).float().requires_grad_(False)
    return OpenVinoNetwork(
        folded,
        dtype=choice.candidate.dtype,
        meanwhile=lambda image: meanwhile(convert(image, other)),
        saving=choice.saving,
    )


def prepare(network: nn.Module, candidate: Candidate) -> nn.Module:
    """Return a private copy of a network, folded and converted; the network itself for `UNCHANGED`."""
    if candidate == UNCHANGED:
        return network
    ready = fold_batch_norm(network).requires_grad_(False)
    if candidate.backend == "openvino":
        return OpenVinoNetwork(ready.float(), dtype=candidate.dtype)
    ready = ready.to(dtype=DTYPES[candidate.dtype])
    if candidate.backend == "eager" and candidate.dtype == "float32":
        use_onednn(ready)
    if candidate.channels_last:
        for tensor in ready.parameters():
            if tensor.ndim in _FORMATS:
                tensor.data = tensor.data.contiguous(memory_format=_FORMATS[tensor.ndim])
    return torch.compile(ready, dynamic=False) if candidate.backend == "compile" else ready  # type: ignore[return-value]


def convert(image: torch.Tensor, candidate: Candidate) -> torch.Tensor:
    """An image as the prepared copy takes it."""
    if candidate.backend == "openvino":
        return image
    layout = _FORMATS.get(image.ndim) if candidate.channels_last else None
    return image.to(dtype=DTYPES[candidate.dtype], memory_format=layout or torch.contiguous_format)


def calibrate(network: nn.Module, window: torch.Tensor, candidates: list[Candidate]) -> Choice:
    """Time candidates in turns and compare their answers with the network's own in float32.

    Returns:
        The fastest candidate that is not rejected, or :data:`UNCHANGED` if all are.

    Raises:
        torch.OutOfMemoryError: it says nothing of a candidate; the caller can try a smaller image.
    """
    device = window.device
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), exact_float32(device):
        expected = only_tensor(network.eval()(window)).float()
        best: dict[str, float] = {}
        refused: dict[str, str] = {}
        ready: dict[str, tuple[nn.Module, torch.Tensor]] = {}
        for candidate in candidates:
            try:
                module, image = prepare(network, candidate), convert(window, candidate)
                found = only_tensor(module(image)).float()
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError) as error:
                refused[str(candidate)] = _first_line(error)
                continue
            if reason := _disagreement(found, expected):
                refused[str(candidate)] = reason
                continue
            ready[str(candidate)] = module, image
        for _ in range(_ROUNDS):
            for name, (module, image) in ready.items():
                if best.get(name, 0.0) > HOPELESS * min(best.values(), default=math.inf):
                    continue
                begun = time.perf_counter()
                module(image)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                milliseconds = 1e3 * (time.perf_counter() - begun)
                best[name] = min(milliseconds, best.get(name, milliseconds))
    fastest = min(best, key=lambda name: best[name], default="")
    chosen = next((c for c in candidates if str(c) == fastest), UNCHANGED)
    choice = Choice(chosen, {name: round(value, 3) for name, value in best.items()}, refused)
    others = [c for c in candidates if c.backend != "openvino" and str(c) in best]
    if chosen.backend != "openvino" or not others:
        return choice
    meanwhile = min(others, key=lambda c: best[str(c)])
    saved = 1e-3 * (best[str(meanwhile)] - best[fastest])
    return replace(choice, meanwhile=meanwhile, saving=saved / window[0, 0].numel())


_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def refusal(network: nn.Module, window: torch.Tensor, choice: Choice) -> str:
    """Why a choice made with other weights may not be used with these; empty if it may.

    One window is compared with float32, and nothing timed. A compiled candidate is compared without compiling it: its
    kernels depend on the shapes, for which it was chosen, and only the range of numbers on the weights.
    """
    device = window.device
    doubtful = [c for c in (choice.candidate, choice.meanwhile) if c is not None and not c.is_exact]
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), exact_float32(device):
        expected = only_tensor(network.eval()(window)).float()
        for candidate in doubtful:
            plain = replace(candidate, backend="eager") if candidate.backend == "compile" else candidate
            try:
                found = only_tensor(prepare(network, plain)(convert(window, plain))).float()
            except torch.OutOfMemoryError:  # says nothing of the candidate: smaller tiles may be tried
                raise
            except (RuntimeError, NotImplementedError) as error:
                return f"{candidate}: {_first_line(error)}"
            if reason := _disagreement(found, expected):
                return f"{candidate}: {reason}"
    return ""


def _disagreement(found: torch.Tensor, expected: torch.Tensor) -> str:
    """How logits are too far from those in float32; empty if they are not."""
    spread = float(expected.std()) or 1.0
    difference = float((found - expected).square().mean().sqrt()) / spread
    agreement = float((_decided(found) == _decided(expected)).float().mean())
    if difference <= MAX_DIFFERENCE and agreement >= MIN_AGREEMENT:
        return ""
    return f"its logits differ by {difference:.2g} standard deviations, {agreement:.1%} of voxels agree"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _decided(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=1) if logits.shape[1] > 1 else logits > 0
