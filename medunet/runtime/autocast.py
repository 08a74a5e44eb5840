"""The device and the number format of a forward pass, on CPU and CUDA."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, cast

import torch

from medunet.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str | torch.device) -> torch.device:
    """Return the device of a name; ``"auto"`` is CUDA if torch sees a device, else the CPU.

    Raises:
        ConfigError: an unknown name, or a CUDA device that torch does not see.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError("unknown device", received=name, expected="auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(
            "torch does not see this CUDA device",
            received=str(device),
            expected=f"one of {torch.cuda.device_count()} CUDA devices",
            remedy="use --device cpu, or install a CUDA build of torch and a driver",
        )
    return device


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return the fastest number format in which training on this device is safe.

    bfloat16 if the hardware multiplies it (CPUs with AMX or AVX512-bf16, CUDA from compute capability 8), else float16
    on CUDA (the trainer then scales the loss), else float32: emulated bfloat16 is slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported() and _cpu_multiplies_bfloat16():
        return torch.bfloat16
    return torch.float32


def _cpu_multiplies_bfloat16() -> bool:
    """Return whether the CPU has bfloat16 instructions; oneDNN also accepts plain AVX512, which only emulates them."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(device: torch.device, dtype: str | torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Return ``torch.autocast`` for any device; a null context for float32.

    Args:
        device: where the forward pass runs.
        dtype: ``"auto"`` (see :func:`fast_dtype`), ``"float32"``, ``"bfloat16"``, ``"float16"`` or a torch dtype.
    """
    resolved = resolve_dtype(device, dtype)
    if resolved is torch.float32:
        return contextlib.nullcontext()
    return cast("contextlib.AbstractContextManager[object]", torch.autocast(device.type, dtype=resolved))


def resolve_dtype(device: torch.device, dtype: str | torch.dtype) -> torch.dtype:
    """Return the torch dtype of a configured name.

    Raises:
        ConfigError: an unknown name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return fast_dtype(device)
    if dtype not in DTYPES:
        raise ConfigError("unknown autocast_dtype", received=dtype, expected=["auto", *DTYPES])
    return DTYPES[dtype]


class _Tf32Switch:
    """PyTorch's process-wide switch of TF32 in cuDNN: off while at least one caller is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: tuple[Any, str, Any] = (None, "", None)

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = holder, name, value = _tf32_state()
                setattr(holder, name, False if isinstance(value, bool) else "ieee")
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    setattr(*self._before)


def _tf32_state() -> tuple[Any, str, Any]:
    """Return holder, name and value of the switch, by the one of PyTorch's two names that this program uses."""
    cudnn: Any = torch.backends.cudnn
    try:
        return cudnn, "allow_tf32", cudnn.allow_tf32
    except RuntimeError:  # the newer name was set, and PyTorch rejects the older one from then on
        return cudnn.conv, "fp32_precision", cudnn.conv.fp32_precision


_tf32 = _Tf32Switch()


def exact_float32(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Convolve float32 in float32 on CUDA, where cuDNN rounds to TF32 (10 bits) by default.

    Example:
        >>> with exact_float32(torch.device("cuda")):
        ...     torch.backends.cudnn.allow_tf32
        False
    """
    return _tf32.off() if device.type == "cuda" else contextlib.nullcontext()
