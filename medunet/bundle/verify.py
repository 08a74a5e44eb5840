"""Is this folder a bundle that works? Each check by name, with what is wrong."""

from __future__ import annotations

import configparser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import torch
from monai.bundle import ConfigParser
from monai.bundle.properties import InferProperties, TrainProperties
from monai.utils import BundleProperty, BundlePropertyConfig

from medunet.bundle.merge import SEPARATOR, all_ids, check_config, get_id
from medunet.bundle.specialise import WORKFLOWS, read_json
from medunet.errors import ConfigError
from medunet.networks import load_weights
from medunet.resources import resource_dir
from medunet.trust import judge, require_trust

REQUIRED_FILES = (
    "LICENSE",
    "docs/README.md",
    "configs/metadata.json",
    "configs/logging.conf",
    *(f"configs/{name}.json" for name in WORKFLOWS),
)


NOT_CHECKED = "not checked, since the bundle is not trusted"


def verify_bundle(bundle: Path, *, trust: bool = False) -> dict[str, str | None]:
    """Check a bundle without training it.

    Args:
        bundle: its folder. Checks that instantiate parts of it, or import what it names, are made of a trusted bundle
            only.
        trust: as of :func:`medunet.trust.require_trust`.

    Returns:
        By the check's name ``None`` where all is well, else one line that says what is wrong.
    """
    verdict = require_trust(bundle, trust=True) if trust else judge(bundle)
    looks: dict[str, Callable[[Path], None]] = {"files": _files, "metadata": _metadata}
    runs: dict[str, Callable[[Path], None]] = {
        "references and arguments": _configs,
        "MONAI's required properties": _properties,
        "network input and output": _network,
        "weights": _weights,
    }
    results: dict[str, str | None] = {}
    for name, check in {**looks, **(runs if verdict.is_trusted else {})}.items():
        try:
            check(bundle)
        except Exception as error:  # whatever a config's own code raises is a verdict here
            results[name] = " ".join(str(error).split())[:300] or type(error).__name__
        else:
            results[name] = None
    results |= dict.fromkeys({} if verdict.is_trusted else runs, NOT_CHECKED)
    return results


def _files(bundle: Path) -> None:
    missing = [name for name in REQUIRED_FILES if not (bundle / name).is_file()]
    if missing:
        raise ConfigError("files are missing", received=", ".join(missing))
    configparser.RawConfigParser().read(bundle / "configs" / "logging.conf")


def _metadata(bundle: Path) -> None:
    schema = read_json(resource_dir("configs") / "metadata.schema.json")
    try:
        jsonschema.validate(read_json(bundle / "configs" / "metadata.json"), schema)
    except jsonschema.ValidationError as error:
        raise ConfigError(f"metadata.json: {error.message}") from error


def _configs(bundle: Path) -> None:
    for name in WORKFLOWS:
        check_config(read_json(bundle / "configs" / f"{name}.json"), source=f"{name}.json")


def _properties(bundle: Path) -> None:
    """As `ConfigWorkflow.check_properties`, which instantiates everything and so needs a data set."""
    for name, properties in (("train", TrainProperties), ("evaluate", InferProperties), ("inference", InferProperties)):
        config = read_json(bundle / "configs" / f"{name}.json")
        ids = set(all_ids(config))
        for property_name, property_ in properties.items():
            id_, reference = property_[BundlePropertyConfig.ID], property_.get(BundlePropertyConfig.REF_ID)
            if property_[BundleProperty.REQUIRED] and id_ not in ids:
                raise ConfigError(f"{name}.json lacks what MONAI calls {property_name}", expected=f"id {id_}")
            value = get_id(config, reference) if reference in ids else None
            if isinstance(value, str) and value.startswith("@") and value.replace("#", SEPARATOR) != f"@{id_}":
                raise ConfigError(
                    f"{name}.json: {property_name} has another id than MONAI expects",
                    received=value,
                    expected=f"@{id_}",
                )


def _parsed(bundle: Path) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    parser.update({"bundle_root": str(bundle), "device": torch.device("cpu")})
    return parser


def _network(bundle: Path) -> None:
    parser = _parsed(bundle)
    formats: dict[str, Any] = parser.get("_meta_::network_data_format")
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    network = parser.get_parsed_content("network_def").eval()
    with torch.inference_mode():
        output = network(torch.rand(1, image["num_channels"], *image["spatial_shape"]))
    expected = (1, pred["num_channels"], *pred["spatial_shape"])
    if tuple(output.shape) != expected:
        raise ConfigError(
            "the network's output is not what metadata.json says", received=tuple(output.shape), expected=expected
        )


def _weights(bundle: Path) -> None:
    parser = _parsed(bundle)
    paths = parser.get_parsed_content("ckpt_path")  # of an ensemble, one a member
    if any(Path(path).is_file() for path in ([paths] if isinstance(paths, str) else paths)):
        load_weights(parser.get_parsed_content("network_def"), paths)
