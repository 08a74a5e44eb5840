"""What a file of a network says about itself: everything that a program without medunet needs to use it rightly."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

import medunet
from medunet.errors import DataError
from medunet.files import sha256_of
from medunet.networks import UNetShapes
from medunet.runtime import SAFE_SUFFIX

from .tile_sizes import TileSizes

KEY = "medunet"
"""Under this key the description lies in a file, as JSON."""

LAYOUT = 1
"""Version of the description; another number is another meaning."""

_REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)")


def describe(
    parser: ConfigParser, *, metadata: Mapping[str, Any], shapes: UNetShapes, network: torch.nn.Module, sizes: TileSizes
) -> dict[str, Any]:
    """Everything about a network that its weights do not say.

    Args:
        parser: of the bundle's ``inference.json``.
        metadata: the bundle's ``metadata.json``.
        shapes: of the network.
        network: says whether tiles change its answer.
        sizes: of the tiles that the file takes.
    """
    names, values = _value(parser, "label_names", []), _value(parser, "label_values", [])
    steps = dict(_steps(parser))
    is_oriented = next((step["axcodes"] for step in steps.values() if step["_target_"] == "Orientationd"), None)
    return {
        "layout": LAYOUT,
        "medunet": medunet.__version__,
        "torch": str(torch.__version__),
        "name": metadata.get("name", ""),
        "version": metadata.get("version", ""),
        "task": metadata.get("task", ""),
        "modality": metadata.get("image_type", ""),
        "intended_use": metadata.get("intended_use", ""),
        "input": {"name": "image", "axes": ["batch", "channel", *"xyz"[: shapes.spatial_dims]], "dtype": "float32"},
        "output": {"name": "logits", "axes": ["batch", "class", *"xyz"[: shapes.spatial_dims]], "dtype": "float32"},
        "spatial_dims": shapes.spatial_dims,
        "in_channels": _value(parser, "in_channels", 1),
        "out_channels": _value(parser, "out_channels", len(names)),
        "activation": _value(parser, "activation", "softmax"),
        # lists, for their order is that of the network's classes
        "labels": [{"name": name, "value": value} for name, value in zip(names, values, strict=True)],
        "regions": [
            {"name": name, "values": inside}
            for name, inside in zip(
                _value(parser, "region_names", []), _value(parser, "region_values", []), strict=True
            )
        ],
        "regions_class_order": _value(parser, "regions_class_order", []),
        "orientation": is_oriented,
        "spacing_mm": _value(parser, "spacing_mm", None) if "spacing" in steps else None,
        "preprocessing": list(steps.values()),
        "postprocessing": [plain(parser, parser[name]) for name in _names(parser, "postprocess_steps")],
        "mirror_axes": _value(parser, "mirror_axes", []),
        "mirror_swaps": _value(parser, "mirror_swaps", []),
        "view_scales": _value(parser, "view_scales", []),
        "padding": shapes.padding,
        "tile": {
            "size": _value(parser, "tile_size", "auto"),
            "stride": list(shapes.total_stride),
            "halo": list(shapes.halo),
            "margin": list(shapes.margin),
            "receptive_radius": list(shapes.receptive_radius),
            "least": list(sizes.least),
            "largest": None,  # any, unless the format has one
            "remainder": list(sizes.remainder),
            "multiple": list(sizes.multiple),
            "exact": bool(getattr(network, "tileable", True)),
        },
        "weights_sha256": _hashes(parser.get_parsed_content("ckpt_path")),
    }


def plain(parser: ConfigParser, value: Any) -> Any:
    """A value of a config as JSON has it, with references to plain values replaced by these."""
    if isinstance(value, Mapping):
        return {key: plain(parser, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(parser, inner) for inner in value]
    if isinstance(value, str) and _REFERENCE.fullmatch(value):
        return plain(parser, parser[value[1:]])
    return value


def _steps(parser: ConfigParser) -> Iterator[tuple[str, Any]]:
    """The steps between the image as it was read and the network, in their order."""
    for name in _names(parser, "image_steps"):
        yield re.split("#|::", name)[-1], plain(parser, parser[name])


def _names(parser: ConfigParser, id_: str) -> list[str]:
    """The components that a list or an expression names, those of lists that it names included."""
    if id_ not in parser:
        return []
    found: list[str] = []
    value = parser[id_]
    for text in value if isinstance(value, list) else [value]:
        for name in _REFERENCE.findall(text) if isinstance(text, str) else []:
            found += [name] if isinstance(parser[name], Mapping) else _names(parser, name)
    return found


def _value(parser: ConfigParser, id_: str, default: Any) -> Any:
    if id_ not in parser:
        return default
    value = parser.get_parsed_content(id_)
    return list(value) if isinstance(value, tuple) else value


def _hashes(paths: str | Sequence[str]) -> dict[str, str]:
    """SHA-256 of each file of weights, by its name."""
    hashes = {}
    for path in map(Path, [paths] if isinstance(paths, str) else paths):
        used = path if path.is_file() else path.with_suffix(SAFE_SUFFIX)
        if not used.is_file():
            raise DataError("no weights to export", file=path, remedy="train first (medunet train), or give a run")
        hashes[used.name] = sha256_of(used)
    return hashes
