"""A trained network made ready for inference: folded, in the number format and layout that measure as fastest here."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medunet.errors import ConfigError, DataError
from medunet.files import cache_folder, write_atomically
from medunet.networks.foreign import only_tensor, window_dependence

from .allocation import keep_freed_memory
from .autocast import DTYPES, exact_float32, resolve_dtype
from .calibration import Candidate, Choice, calibrate, convert, prepare_choice, refusal
from .openvino import has_openvino

logger = logging.getLogger(__name__)

BACKENDS = ("eager", "compile", "openvino", "auto")

CALIBRATION_EDGE = 64
"""Voxels an axis of the window that is timed, in 2D four times as many: long enough to tell, short enough to wait."""

KEPT_DIGESTS = 64
"""Weights that are remembered as having been compared with a choice; the oldest is compared again."""


class FastNetwork(nn.Module):
    """Wraps a network for inference.

    At the first call in evaluation mode, and again when its weights have changed, a private copy is prepared: batch
    norm folded into the convolutions, weights in the fastest number format and memory layout. Which these are is
    measured once on a window of the first image and kept in a file; a candidate whose answer differs from the float32
    network's is refused. What was measured with other weights is compared once with the first
    weights that an instance meets, on one window; not with each that a training gives it.

    Args:
        network: in training mode it is called as it is.
        dtype: `auto`, or a number format, which is then used without measuring: `float32` is the exact mode, without
            TF32 on a GPU.
        backend: `eager`; `compile` for `torch.compile`, which takes tens of seconds at the first call; `openvino` (CPU;
            extra `openvino`), which takes seconds for each new size of a window; `auto` measures `eager` and, where it
            is installed, `openvino`, which then serves the sizes that recur or are large: one image may come out with
            another rounding among others than alone.
        cache_dir: folder of the file with earlier choices; None takes the environment's `MEDUNET_CACHE_DIR`, or
            `medunet` in the user's cache folder.

    Raises:
        ConfigError: an unknown dtype or backend.

    Example:
        >>> from medunet.networks import UNet
        >>> network = UNet(2, 1, 2, channels=(4, 8), norm="batch").eval()
        >>> fast = FastNetwork(network, dtype="float32").eval()
        >>> with torch.inference_mode():
        ...     image = torch.rand(1, 1, 32, 32)
        ...     bool(torch.allclose(fast(image), network(image), atol=1e-4))
        True
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        dtype: str = "auto",
        backend: str = "eager",
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if dtype not in ("auto", *DTYPES):
            raise ConfigError("unknown dtype", received=dtype, expected=["auto", *DTYPES])
        if backend not in BACKENDS:
            raise ConfigError("unknown backend", received=backend, expected=list(BACKENDS))
        self.network = network
        self.dtype = dtype
        self.backend = backend
        self.cache_dir = cache_dir
        self.choice: Choice | None = None
        self._state: tuple[Any, ...] | None = None
        self._ready: list[nn.Module] = []  # a list, so that it is no submodule: neither saved, moved nor trained

    @property
    def shapes(self) -> Any:
        """Sizes, as the network has them."""
        return self.network.shapes

    @property
    def tileable(self) -> bool:
        """Whether tiles leave the network's result alone."""
        return window_dependence(self.network) is None

    @property
    def tileable_reason(self) -> str:
        """Why tiles change the result; empty if they do not."""
        return window_dependence(self.network) or ""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """As the network: `(B, C, *spatial)` to its logits, in the chosen number format."""
        if self.training or image.device.type == "meta" or not image.is_floating_point():
            return self.network(image)
        state = _state_of(self.network, image.device)
        is_new = state != self._state
        if is_new:
            if image.device.type == "cpu":
                keep_freed_memory()
            self.choice = self._choose(image)
            self._ready = [prepare_choice(self.network, self.choice)]
            self._state = state
        candidate = Candidate() if self.choice is None else self.choice.candidate
        with torch.autocast(image.device.type, enabled=False), exact_float32(image.device):
            logits = self._ready[0](convert(image, candidate))
            if is_new and candidate.dtype != "float32" and not _is_finite(only_tensor(logits)):
                logger.warning(
                    "%s gives logits that are not finite with these weights: if the image's voxels are finite, "
                    "take the exact mode, dtype float32 (in a bundle: autocast_dtype)",
                    candidate,
                )
            return logits

    def _choose(self, image: torch.Tensor) -> Choice:
        candidates = self._candidates(image.device)
        if len(candidates) == 1:
            return Choice(candidates[0])
        path, key = _cache_file(self.cache_dir), self._key(image)
        kept = _read(path)
        known = Choice.read(kept.get(key), candidates)
        if known is not None and (known.candidate.is_exact or self._state is not None):
            return known  # exact, or the same network with other weights: a training validates it again and again
        window, weights, whose = self._window(image), _digest(self.network), "on this machine"
        if known is not None:
            own = f"{key} {weights}"
            if (refused_before := Choice.read(kept.get(own), candidates)) is not None:
                return refused_before
            checked = kept[key].get("checked")
            checked = checked if isinstance(checked, list) else []
            if weights in checked:
                return known
            if not refusal(self.network, window, known):
                _keep(path, key, {**kept[key], "checked": [*checked, weights][-KEPT_DIGESTS:]})
                return known
            key, whose = own, "with these weights"  # the choice stays for weights that it suits
        choice = calibrate(self.network, window, candidates)
        logger.debug("%s: %s of %s ms", type(self.network).__name__, choice.candidate, choice.milliseconds)
        for name, reason in choice.refused.items():
            logger.warning("%s is not used %s: %s", name, whose, reason)
        _keep(path, key, {**choice.kept(), "checked": [weights]})
        return choice

    def _candidates(self, device: torch.device) -> list[Candidate]:
        fast = str(resolve_dtype(device, "auto")).removeprefix("torch.")
        names = sorted({"float32", fast}) if self.dtype == "auto" else [self.dtype]
        backends = [self.backend]
        if self.backend == "auto":
            backends = ["eager", "openvino"] if device.type == "cpu" and has_openvino() else ["eager"]
        found = []
        for backend in backends:
            for name in names:
                layouts = (False, True) if self.dtype == "auto" else (name != "float32" or device.type == "cuda",)
                found += [Candidate(name, last, backend) for last in ((False,) if backend == "openvino" else layouts)]
        return found

    def _window(self, image: torch.Tensor) -> torch.Tensor:
        """The middle of the first image, small, in a size that the network takes."""
        axes = image.ndim - 2
        edge = CALIBRATION_EDGE * (4 if axes == 2 else 1)
        size = [min(edge, n) for n in image.shape[2:]]
        shapes = getattr(self.network, "shapes", None)
        if shapes is not None:
            size = [min(n, most) for n, most in zip(shapes.next_valid_input(size), image.shape[2:], strict=True)]
            if tuple(size) != tuple(shapes.next_valid_input(size)):
                size = list(image.shape[2:])
        for axis, n in enumerate(size):
            image = image.narrow(axis + 2, (image.shape[axis + 2] - n) // 2, n)
        return image[:1].float()

    def _key(self, image: torch.Tensor) -> str:
        shapes = sorted((n, tuple(t.shape)) for n, t in self.network.state_dict().items())
        options = (torch.__version__, self.dtype, self.backend)
        size = round(math.log2(self._window(image).numel()))  # images of a data set differ a little in size
        text = repr((*_machine(image.device), options, size, shapes))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _machine(device: torch.device) -> tuple[Any, ...]:
    """What else the choice depends on: kernels of cuDNN have been wrong in some releases."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device), 0, torch.version.cuda, torch.backends.cudnn.version()
    return _cpu_name(), torch.get_num_threads() if device.type == "cpu" else 0


def _digest(network: nn.Module) -> str:
    """Of the weights: 30 million of them take 0.1 s."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def _is_finite(logits: torch.Tensor) -> bool:
    """By their sum, which needs no memory of their size."""
    return bool(logits.sum(dtype=torch.float32).isfinite())


def _state_of(network: nn.Module, device: torch.device) -> tuple[Any, ...]:
    """Changes whenever a weight does."""

    def tensors() -> Iterator[torch.Tensor]:
        yield from network.parameters()
        yield from network.buffers()

    return (device, *((t.data_ptr(), t.device, -1 if t.is_inference() else t._version) for t in tensors()))


def _cache_file(folder: str | os.PathLike[str] | None) -> Path:
    return cache_folder(folder) / "calibration.json"


def _keep(path: Path, key: str, value: dict[str, Any]) -> None:
    """Beside what others have written."""
    try:
        write_atomically(path, json.dumps({**_read(path), key: value}, indent=1))
    except (OSError, DataError) as error:
        logger.debug("calibration is not kept: %s", error)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line for line in lines if line.startswith("model name")), "cpu")
