"""Sections of `scripts.bench.inference` that run the network in this process: systems, floor, paper."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medunet.inferers import OverlapTileInferer
from medunet.networks import presets
from medunet.runtime import FastNetwork, has_openvino
from scripts.bench import nnunet
from scripts.bench.measure import median_seconds, seconds_of, synchronise

from .material import (
    NETWORKS,
    Volume,
    made_volume,
    read_ct,
    run_network,
    run_volumes,
    trained,
    wide_network,
)
from .options import Options, Put
from .systems import Medunet, NNUNetSystem, Row, System, Zoo, compare

MATMUL_EDGE = 4096
"""Square matrices large enough that the rate no longer grows."""

FORMATS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

MODES = {"exact fp32": {"dtype": "float32"}, "auto": {"dtype": "auto"}}
"""How a `FastNetwork` is made."""
if has_openvino() and not torch.cuda.is_available():
    MODES["OpenVINO"] = {"dtype": "auto", "backend": "openvino"}

HIPPOCAMPUS_CASES = 40
"""All validation cases of fold 0."""


def systems(options: Options, put: Put) -> None:
    """Every system on every volume, with the zoo's network, ours of its widths, and a trained hippocampus run."""
    loaders = _volumes(options)
    for network_name in NETWORKS:
        wanted = [name for name in loaders if options.only.lower() in f"{name} | {network_name}".lower()]
        if not wanted:
            continue
        real = [load for name, load in loaders.items() if not name.startswith("made")]
        network = trained(network_name, real, options.work, steps=options.training_steps)
        rates: dict[str, float] = {}
        for name in wanted:
            chosen = _systems(network, options, classes=2)
            if options.wants(*(f"{name} | {network_name} | {system.name}" for system in chosen)):
                _compare(chosen, [loaders[name]()], name, options, network=network_name, rates=rates, put=put)
    if options.run is not None and options.data is not None and options.only.lower() in "hippocampus | trained run":
        _hippocampus(options.run, options.data / "Task04_Hippocampus", options, put)


def _volumes(options: Options) -> dict[str, Callable[[], Volume]]:
    """By name, smallest first, so that a system too slow for the larger ones is known."""
    found: dict[str, Callable[[], Volume]] = {}
    if options.data is not None:
        folder = options.data / "CT_Lung1_001"
        spacings = {"CT at 6 mm": 6.0} if options.quick else {"CT at 1.5 mm": 1.5, "CT, full size": None}
        found |= {name: partial(read_ct, folder, spacing_mm=spacing) for name, spacing in spacings.items()}
    size = (96, 96, 104) if options.quick else (512, 512, 600)
    found["made " + "x".join(map(str, size))] = partial(made_volume, size, options.work)
    return found


def _systems(network: nn.Module, options: Options, *, classes: int, **plans: Any) -> list[System]:
    """The zoo first, the exact mode second: the others' labels are compared with the second's."""
    device = options.device
    found: list[System] = [
        Zoo("MONAI, zoo setting", network, device),
        Medunet("medunet, exact fp32", network, device, dtype="float32"),
        Medunet("medunet", network, device),
    ]
    if has_openvino() and device.type == "cpu":
        for name, dtype in (("medunet, exact fp32, OpenVINO", "float32"), ("medunet, OpenVINO", "auto")):
            found.append(Medunet(name, network, device, dtype=dtype, backend="openvino"))
    if nnunet.available():
        if options.quick:
            plans.setdefault("patch_size", (64, 64, 64))
        for name, mirroring in (("nnU-Net, no mirroring", False), ("nnU-Net", True)):
            found.append(NNUNetSystem(name, network, device, classes=classes, mirroring=mirroring, **plans))
    return [system for system in found if not any(re.search(text, system.name) for text in options.without)]


def _compare(
    chosen: list[System],
    volumes: list[Volume],
    title: str,
    options: Options,
    *,
    network: str,
    rates: dict[str, float],
    put: Put,
) -> None:
    def keep(row: Row) -> None:
        put(f"{row.volume} | {row.network} | {row.system}", row.as_json())

    compare(
        chosen,
        volumes,
        title=title,
        network=network,
        repeats=options.repeats,
        longest=options.longest,
        enough=options.enough,
        rates=rates,
        report=keep,
    )


def _hippocampus(run: Path, data: Path, options: Options, put: Put) -> None:
    """Many small volumes with a fully trained network."""
    network, config = run_network(run)
    count = 2 if options.quick else HIPPOCAMPUS_CASES
    title, network_name = f"hippocampus, {count} cases", "trained run"
    patch, spacing = tuple(config["patch_size"]), tuple(config["spacing_mm"])
    chosen = _systems(network, options, classes=len(config["label_values"]), patch_size=patch, spacing_mm=spacing)
    # windows of 96 are mostly padding on these volumes: the patch of the training shows what MONAI can do at best
    chosen.append(Zoo("MONAI, windows of the training patch", network, options.device, roi=patch))
    if options.wants(*(f"{title} | {network_name} | {system.name}" for system in chosen)):
        _compare(chosen, run_volumes(run, data, count), title, options, network=network_name, rates={}, put=put)


def floor(options: Options, put: Put) -> None:
    """FLOP/s of a network pass over the rate of a large matrix product in the same format."""
    window = (64, 64, 64) if options.quick else (128, 128, 128)
    networks: dict[str, Callable[[], nn.Module]] = {"UNet 32-320": wide_network, **NETWORKS}
    for name, build in networks.items():
        torch.manual_seed(0)
        network = build().eval().to(options.device)
        flop = count_flop(network, window)
        image = torch.rand(1, 1, *window, device=options.device)
        for mode, settings in MODES.items():
            if not options.wants(f"{name} | {mode}"):
                continue
            fast = FastNetwork(copy.deepcopy(network), **settings).eval()
            seconds = median_seconds(partial(fast, image), 3 if options.quick else 9)
            # measured beside each network: on a shared machine the rate of an hour ago is another one
            used = fast.form.dtype
            rates = {form: matmul_rate(FORMATS[form], options) for form in {used, "bfloat16"}}
            row = {
                "network": name,
                "mode": mode,
                "window": window,
                "gflop": flop / 1e9,
                "seconds": seconds,
                "tflops": flop / seconds / 1e12,
                "matmul_tflops": {form: rate / 1e12 for form, rate in rates.items()},
                "share_of_matmul_rate": flop / seconds / rates["bfloat16"],
                "share_of_own_rate": flop / seconds / rates[used],
                "choice": asdict(fast.form),
            }
            put(f"{name} | {mode}", row)


def matmul_rate(dtype: torch.dtype, options: Options) -> float:
    """FLOP/s of a square matrix product: the fastest of several."""
    edge = 1024 if options.quick else MATMUL_EDGE
    a, b = (torch.rand(edge, edge, device=options.device).to(dtype) for _ in range(2))
    times = seconds_of(lambda: a @ b, 3 if options.quick else 8)
    return 2 * edge**3 / min(times)


def count_flop(network: nn.Module, window: tuple[int, ...]) -> int:
    """Floating point operations of one pass, counted without computing."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(network).to("meta")(torch.empty(1, 1, *window, device="meta"))
    return int(counter.get_total_flops())


@torch.inference_mode()
def paper(options: Options, put: Put) -> None:
    """The paper's network on one image of 512x512, mirrored at its borders: "less than a second" on a GPU of 2015."""
    torch.manual_seed(0)
    network = presets.unet_2015().eval()
    image = MetaTensor(torch.rand(1, 1, 512, 512))
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    for device in devices:
        for mode, settings in MODES.items():
            for tile in ("auto", 572):
                key = f"{device.type} | {mode} | tile {tile}"
                if not options.wants(key):
                    continue
                fast = FastNetwork(copy.deepcopy(network).to(device), **settings).eval()
                inferer = OverlapTileInferer(tile)
                inputs = image.to(device)
                begun = time.perf_counter()
                inferer(inputs, fast)
                synchronise()
                first = time.perf_counter() - begun
                seconds = median_seconds(
                    lambda inferer=inferer, inputs=inputs, fast=fast: inferer(inputs, fast).argmax(1),
                    2 if options.quick else 7,
                )
                put(key, {"seconds": seconds, "first_seconds": first, "choice": asdict(fast.form)})
