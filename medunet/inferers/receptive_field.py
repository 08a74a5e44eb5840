"""The total stride and the receptive radius of any network, measured with NaN."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from medunet.errors import ConfigError
from medunet.networks.foreign import only_tensor

from .tiling import SameSizeShapes

# voxels of a window along the axis that is measured; the longest only for 2D images, because volumes are smaller
LENGTHS = (128, 256, 512, 1024)
WIDTHS = (16, 32, 64)  # and along the others
LARGEST_STRIDE = 64


def measure_shapes(
    network: Callable[..., Any], in_channels: int, axes: int, *, device: torch.device | str = "cpu"
) -> SameSizeShapes:
    """Measure which input voxels each output voxel of a network depends on.

    Layers pass NaN on to the outputs that depend on it. The planes of a window are set to NaN one after another. The
    farthest NaN in the output gives the receptive radius, and the period over the planes gives the total stride. Both
    are verified on noise: shifting the input by the stride must shift the output, except within the radius of its ends.

    Args:
        network: a network in evaluation mode, without the attribute `shapes`, such as MONAI's.
        in_channels: channels of its input.
        axes: number of spatial axes.
        device: device of the network.

    Returns:
        Stride and halo per axis; the halo is the radius rounded up to the stride.

    Raises:
        ConfigError: the output depends on the whole window or its position, or does not have the size of the input.
    """
    measured = [_measure_axis(network, in_channels, axes, axis, device) for axis in range(axes)]
    strides, halos = zip(*((stride, -(-radius // stride) * stride) for stride, radius in measured), strict=True)
    return SameSizeShapes(total_stride=strides, halo=halos)


def _measure_axis(
    network: Callable[..., Any], in_channels: int, axes: int, axis: int, device: torch.device | str
) -> tuple[int, int]:
    """Return stride and radius along one axis."""
    failure: RuntimeError | None = None
    lengths = LENGTHS[: 4 if axes < 3 else 3]
    for length, width in itertools.product(lengths, WIDTHS):
        size = [length if other == axis else width for other in range(axes)]
        reaches: list[tuple[int, int]] = []
        try:
            for plane in range(length // 2, length // 2 + 2 * LARGEST_STRIDE):
                image = torch.zeros(1, in_channels, *size, device=device)
                image.narrow(axis + 2, plane, 1).fill_(torch.nan)
                with torch.inference_mode():
                    logits = only_tensor(network(image))
                if list(logits.shape[2:]) != size:
                    received = tuple(logits.shape[2:])
                    raise ConfigError("network must keep the size of its input", received=received, expected=size)
                affected = logits.isnan().movedim(axis + 2, 0).flatten(1).any(1).nonzero().flatten().tolist()
                if affected and (affected[0] == 0 or affected[-1] == length - 1):
                    break  # the window is too short
                reaches.append((plane - affected[0], affected[-1] - plane) if affected else (0, 0))
                stride, radius = _period(reaches), max(map(max, reaches))
                if stride and _is_verified(
                    network, (in_channels, *size), axis, stride=stride, radius=radius, device=device
                ):
                    return stride, radius
        except RuntimeError as error:  # sizes that do not fit
            failure = error
            continue
        if length == lengths[-1]:
            break
    raise ConfigError(f"its output depends on the whole window of {length} voxels, or on its position") from failure


def _is_verified(
    network: Callable[..., Any],
    shape: Sequence[int],
    axis: int,
    *,
    stride: int,
    radius: int,
    device: torch.device | str,
) -> bool:
    """Return whether a shift of the input by `stride` shifts the output, `radius` voxels away from its ends."""
    length = shape[axis + 1] - 2 * radius - stride
    noise = torch.rand(1, *(n + stride * (i == axis + 1) for i, n in enumerate(shape)), device=device)
    with torch.inference_mode():
        first, second = (
            only_tensor(network(noise.narrow(axis + 2, start, shape[axis + 1]))).narrow(axis + 2, inner, max(length, 0))
            for start, inner in ((0, radius + stride), (stride, radius))
        )
    return length > 0 and bool((first - second).abs().max() <= 0.01 * first.abs().max())


def _period(reaches: list[tuple[int, int]]) -> int | None:
    """Return the power of two after which the reach of the planes repeats, or None."""
    stride = len(reaches) // 2
    is_power = stride * 2 == len(reaches) and stride & (stride - 1) == 0
    return stride if is_power and stride > 0 and reaches[stride:] == reaches[:-stride] else None
