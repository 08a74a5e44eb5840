"""Description of a network file: everything that a program without medunet needs to use the network correctly."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.utils import ensure_tuple

import medunet
from medunet.errors import DataError
from medunet.files import sha256_of
from medunet.networks import UNetShapes
from medunet.runtime import SAFE_SUFFIX

KEY = "medunet"  # of the JSON in a file
LAYOUT = 1  # version of the description
_REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)")


def describe(
    parser: ConfigParser, *, metadata: Mapping[str, Any], shapes: UNetShapes, tile: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe a network beyond its weights, from the bundle's `inference.json` and `metadata.json`."""

    def value(id_: str, default: Any = ()) -> Any:
        content = parser.get_parsed_content(id_) if id_ in parser else default
        return list(content) if isinstance(content, tuple) else content

    names, axes = value("label_names"), [*"xyz"[: shapes.spatial_dims]]
    steps = {re.split("#|::", name)[-1]: plain(parser, parser[name]) for name in _names(parser, "image_steps")}
    orientations = [step["axcodes"] for step in steps.values() if step["_target_"] == "Orientationd"]
    regions = zip(value("region_names"), value("region_values"), strict=True)
    return {
        "layout": LAYOUT,
        "medunet": medunet.__version__,
        "torch": str(torch.__version__),
        "name": metadata.get("name", ""),
        "version": metadata.get("version", ""),
        "task": metadata.get("task", ""),
        "modality": metadata.get("image_type", ""),
        "intended_use": metadata.get("intended_use", ""),
        "input": {"name": "image", "axes": ["batch", "channel", *axes], "dtype": "float32"},
        "output": {"name": "logits", "axes": ["batch", "class", *axes], "dtype": "float32"},
        "spatial_dims": shapes.spatial_dims,
        "in_channels": value("in_channels", 1),
        "out_channels": value("out_channels", len(names)),
        "activation": value("activation", "softmax"),
        # lists, because their order is that of the network's classes
        "labels": [{"name": name, "value": number} for name, number in zip(names, value("label_values"), strict=True)],
        "regions": [{"name": name, "values": values} for name, values in regions],
        "regions_class_order": value("regions_class_order"),
        "orientation": orientations[0] if orientations else None,
        "spacing_mm": value("spacing_mm", steps["spacing"].get("pixdim")) if "spacing" in steps else None,
        "preprocessing": list(steps.values()),
        "postprocessing": [plain(parser, parser[name]) for name in _names(parser, "postprocess_steps")],
        # numbers of objects follow from the maps of the whole image, by medunet.transforms.objects_from_maps
        "objects": plain(parser, {"target": "@instance_target", **parser["objects"]})
        if value("instances", False)
        else None,
        "mirror_axes": value("mirror_axes"),
        "mirror_swaps": value("mirror_swaps"),
        "view_scales": value("view_scales"),
        "padding": shapes.padding,
        "tile": {
            "size": value("tile_size", "auto"),
            "stride": list(shapes.total_stride),
            "halo": list(shapes.halo),
            "margin": list(shapes.margin),
            "receptive_radius": list(shapes.receptive_radius),
            **tile,
        },
        "weights_sha256": _hashes(parser.get_parsed_content("ckpt_path")),
    }


def plain(parser: ConfigParser, value: Any) -> Any:
    """Return a config value for JSON, with references replaced by the values that they name."""
    if isinstance(value, Mapping):
        return {key: plain(parser, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(parser, inner) for inner in value]
    if isinstance(value, str) and _REFERENCE.fullmatch(value):
        return plain(parser, parser[value[1:]])
    return value


def _names(parser: ConfigParser, id_: str) -> list[str]:
    """Return the components that a list or an expression refers to, with those of nested lists."""
    value = parser.get(id_, [])
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    names: list[str] = []
    for name in (name for text in texts for name in _REFERENCE.findall(text)):
        names += [name] if isinstance(parser[name], Mapping) else _names(parser, name)
    return names


def _hashes(paths: str | Sequence[str]) -> dict[str, str]:
    hashes = {}
    for path in map(Path, ensure_tuple(paths)):
        used = path if path.is_file() else path.with_suffix(SAFE_SUFFIX)
        if not used.is_file():
            raise DataError("no weights to export", file=path, remedy="train first (medunet train), or give a run")
        hashes[used.name] = sha256_of(used)
    return hashes
