"""The device and the number format of a forward pass, on CPU and CUDA."""

import contextlib
import threading
from typing import Any, cast

import torch

from medunet.errors import ConfigError
from medunet.networks.arguments import choose

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str | torch.device) -> torch.device:
    """Return the device with a name; ``"auto"`` is CUDA if torch sees a device, else the CPU.

    Raises:
        ConfigError: an unknown name, or a CUDA device that torch does not see.

    Examples:
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
        cause, expected = "torch does not see this CUDA device", f"one of {torch.cuda.device_count()} CUDA devices"
        remedy = "use --device cpu, or install a CUDA build of torch and a driver"
        raise ConfigError(cause, received=str(device), expected=expected, remedy=remedy)
    return device


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return the fastest number format in which training on this device is safe.

    bfloat16 if the hardware multiplies it (CPUs with AMX or AVX512-bf16, CUDA from compute capability 8), else float16
    on CUDA (the trainer then scales the loss), else float32: emulated bfloat16 is slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if device.type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    # oneDNN also accepts plain AVX512, which only emulates bfloat16
    has_instructions = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_instructions else torch.float32


def autocast(device: torch.device, dtype: str | torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Return ``torch.autocast`` in a number format of :func:`resolve_dtype`; a null context for float32."""
    resolved = resolve_dtype(device, dtype)
    if resolved is torch.float32:
        return contextlib.nullcontext()
    return cast("contextlib.AbstractContextManager[object]", torch.autocast(device.type, dtype=resolved))


def resolve_dtype(device: torch.device, dtype: str | torch.dtype) -> torch.dtype:
    """Return the torch dtype of ``"auto"`` (see :func:`fast_dtype`), ``"float32"``, ``"bfloat16"`` or ``"float16"``.

    Raises:
        ConfigError: an unknown name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    choose("autocast_dtype", dtype, ["auto", *DTYPES])
    return fast_dtype(device) if dtype == "auto" else DTYPES[dtype]


class _Tf32Off:
    """Context in which cuDNN does not use TF32. The setting is process-wide, and off while any thread is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: tuple[Any, str, Any] = (None, "", None)

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside > 1:
                return
            cudnn: Any = torch.backends.cudnn
            try:
                self._before = cudnn, "allow_tf32", cudnn.allow_tf32
                cudnn.allow_tf32 = False
            except RuntimeError:  # the newer name was set, and PyTorch rejects the older one from then on
                self._before = cudnn.conv, "fp32_precision", cudnn.conv.fp32_precision
                cudnn.conv.fp32_precision = "ieee"

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                setattr(*self._before)


_tf32_off = _Tf32Off()


def exact_float32(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Convolve float32 in float32 on CUDA, where cuDNN rounds to TF32 (10 bits) by default."""
    return _tf32_off if device.type == "cuda" else contextlib.nullcontext()
