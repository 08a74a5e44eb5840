"""Third-party bundles, such as those of MONAI's model zoo: values that prediction needs and their configs lack."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.transforms import Compose, LoadImaged, SaveImage, SaveImaged

from medunet.errors import ConfigError
from medunet.io import SavePredictiond

# ids that prediction needs, each with an example of the line to add; the last two may follow from metadata.json
EXAMPLES = {
    "network_def": '{"_target_": "UNet", ...}',
    "preprocessing": '{"_target_": "Compose", "transforms": [{"_target_": "LoadImaged", "keys": "image"}, ...]}',
    "inferer": '{"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96], "overlap": 0.5}',
    "postprocessing": '{"_target_": "AsDiscreted", "keys": "pred", "argmax": true}',
    "in_channels": "1",
    "spatial_dims": "3",
}
# values of ids that only medunet's bundles have
DEFAULTS: Mapping[str, Any] = {
    "network": "$@network_def.to(@device)",
    "autocast_dtype": "float32",
    "prediction_dir": "$@bundle_root + '/prediction'",
    "region_order": [],
    "result_format": "auto",
    "overwrite": False,
}
# ids that every bundle of medunet has
OWN_IDS = ("in_channels", "spatial_dims", "network", "ckpt_path", "autocast_dtype", "prediction_dir")
BACKGROUND = "background"


def is_foreign(parser: ConfigParser) -> bool:
    """Return whether a config is not one of medunet's."""
    return any(key not in parser for key in OWN_IDS)


def complete(parser: ConfigParser, metadata: Mapping[str, Any], *, file: Path) -> None:
    """Fill in the ids of medunet that a third-party inference config lacks; an error lists the lines to add."""
    image = _tensor(metadata, "inputs", "image")
    known = {**DEFAULTS, "ckpt_path": checkpoint(parser)}
    if "num_channels" in image:
        known["in_channels"] = image["num_channels"]
    if isinstance(image.get("spatial_shape"), list):
        known["spatial_dims"] = len(image["spatial_shape"])
    if missing := [key for key in EXAMPLES if key not in parser and key not in known]:
        remedy = "add to the file: " + ", ".join(f'"{key}": {EXAMPLES[key]}' for key in missing)
        received = f"no {', '.join(missing)}"
        raise ConfigError("the bundle lacks ids that prediction needs", file=file, received=received, remedy=remedy)
    parser.update({key: value for key, value in known.items() if key not in parser})


def checkpoint(parser: ConfigParser) -> str:
    """Return the expression of the weights' path: that of the config's CheckpointLoader, else ``models/model.pt``."""
    handlers = parser.get("handlers", [])
    count = len(handlers) if isinstance(handlers, list) else 0
    for place in ("checkpointloader", *(f"handlers::{index}" for index in range(count))):
        component = parser.get(place)
        if isinstance(component, Mapping) and isinstance(component.get("load_path"), str | os.PathLike):
            return f"@{place}::load_path"
    return "$@bundle_root + '/models/model.pt'"


def labels_of(metadata: Mapping[str, Any]) -> dict[str, int] | None:
    """Return the value of each label by name, as an argmax over the network's channels gives it.

    None if the channels are not those of a softmax with a background: the bundle then defines the values.
    """
    names = _tensor(metadata, "outputs", "pred").get("channel_def")
    if not isinstance(names, Mapping) or str(names.get("0")).casefold() != BACKGROUND:
        return None
    numbered = {int(value): str(name) for value, name in names.items() if str(value).isdigit()} | {0: BACKGROUND}
    labels = {name: value for value, name in numbered.items()}
    return labels if len(labels) == len(names) else None


def check_loading(preprocessing: Compose) -> None:
    """Raise ConfigError unless the preprocessing reads one image by its path."""
    loaders = [step for step in preprocessing.transforms if isinstance(step, LoadImaged)]
    keys = sorted({str(key) for loader in loaders for key in loader.keys})
    if keys != ["image"]:
        received = ", ".join(keys) or "no LoadImaged"
        raise ConfigError("preprocessing must read one image, under the key image", received=received)


def savers_of(postprocessing: Compose) -> list[SavePredictiond]:
    """Return the steps that write results."""
    return [step for step in postprocessing.transforms if isinstance(step, SavePredictiond)]


def saved_by_medunet(postprocessing: Compose, parser: ConfigParser) -> Compose:
    """Return a bundle's postprocessing with medunet's writer, which replaces MONAI's in third-party bundles."""
    if savers_of(postprocessing):
        return postprocessing
    if parser.get("save_probabilities"):
        raise ConfigError("this bundle cannot write class probabilities", file=parser.get("bundle_root"))
    saver = SavePredictiond(
        "pred",
        output_dir=parser.get_parsed_content("prediction_dir"),
        format=parser["result_format"],
        overwrite=parser["overwrite"],
        labels=labels_of(parser.get("_meta_", {})),
    )
    steps = [step for step in postprocessing.transforms if not isinstance(step, SaveImage | SaveImaged)]
    return Compose([*steps, saver])


def _tensor(metadata: Mapping[str, Any], side: str, name: str) -> Mapping[str, Any]:
    value: Any = metadata
    for key in ("network_data_format", side, name):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}
