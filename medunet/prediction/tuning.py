"""Choosing the form of a bundle's network by measurement on this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from medunet.config import apply, read_json, to_json
from medunet.errors import ConfigError
from medunet.files import write_atomically
from medunet.runtime import (
    FastNetwork,
    Form,
    choose_form,
    keep_freed_memory,
    possible_forms,
    resolve_device,
    time_forms,
)
from medunet.runtime.timing import Timing

from .configuration import content, load_network, parse_inference

DEFAULT_SIZE = {2: (512, 512), 3: (96, 96, 96)}  # voxels of the window that is timed
MIN_GAIN = 0.05  # share of time that another form must save to replace the form that follows the rule


def tune_inference(
    bundle: Path, *, device: str = "auto", size: Sequence[int] = (), compiled: bool = False, trust: bool = False
) -> tuple[list[Timing], dict[str, Any]]:
    """Time the forms of a bundle's network and write the fastest into its inference and evaluation configs.

    Args:
        bundle: folder of a bundle or run with weights.
        device: device that inference will run on.
        size: voxels per axis of the timed window, which is enlarged to a size that the network accepts.
        compiled: time `torch.compile`, too.
        trust: approve a bundle that could run its own code.

    Returns:
        The timings, fastest first, and the values by config id that were written.

    Raises:
        ConfigError: the bundle does not run its network through :class:`medunet.runtime.FastNetwork`, or a wrong size.
        DataError: no weights, or weights of a different network.
        SecurityError: the bundle is not trusted.
    """
    target = resolve_device(device)
    parser = parse_inference(bundle, device=target, trust=trust)
    axes, channels = content(parser, "spatial_dims"), content(parser, "in_channels")
    if size and (len(size) != axes or min(size) < 1):
        raise ConfigError("size must have one positive number per spatial axis", received=list(size), expected=axes)
    fast = next((module for module in load_network(parser).modules() if isinstance(module, FastNetwork)), None)
    if fast is None:
        raise ConfigError("the bundle does not use medunet.runtime.FastNetwork", file=bundle)
    network, shape = fast.network, tuple(size or DEFAULT_SIZE[axes])
    if (shapes := getattr(network, "shapes", None)) is not None:
        shape = shapes.input_for_output(shape)
    if target.type == "cpu":
        keep_freed_memory()
    window = torch.randn(1, channels, *shape, generator=torch.Generator().manual_seed(0)).to(target)
    timings = time_forms(network, window, possible_forms(target, compiled=compiled))
    values = _values(timings, choose_form(network, target))
    for file in (bundle / "configs" / f"{name}.json" for name in ("inference", "evaluate")):
        if file.is_file():
            write_atomically(file, to_json(apply(read_json(file), values)))
    return timings, values


def _values(timings: Sequence[Timing], rule: Form | None) -> dict[str, Any]:
    """Return the values by config id of the fastest form, or of the default form if that is about as fast."""
    fastest, ids = timings[0], ("autocast_dtype", "network::channels_last", "network::backend")
    by_rule = next((timing.milliseconds for timing in timings if timing.form == rule), float("inf"))
    if fastest.rejected or by_rule * (1 - MIN_GAIN) <= fastest.milliseconds:
        return dict(zip(ids, ("auto", None, "eager"), strict=True))
    form = fastest.form
    return dict(zip(ids, (form.dtype, form.channels_last, form.backend), strict=True))
