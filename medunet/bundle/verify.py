"""Check whether a folder is a working bundle."""

import configparser
import copy
import logging
import pydoc
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import torch
from monai.bundle import ConfigParser
from monai.bundle.properties import InferProperties, TrainProperties
from monai.bundle.utils import DEPRECATED_ID_MAPPING
from monai.utils import BundleProperty, BundlePropertyConfig, OptionalImportError

from medunet.bundle.check import check_config
from medunet.bundle.read import OWN_IDS
from medunet.config import SEPARATOR, check_size, get_id, read_json, walk
from medunet.errors import ConfigError, first_cause
from medunet.prediction.configuration import config_file, import_from
from medunet.prediction.foreign import checkpoint
from medunet.resources import WORKFLOWS, resource_dir
from medunet.runtime import load_weights
from medunet.trust import judge, require_trust

logger = logging.getLogger(__name__)

REQUIRED_FILES = ("LICENSE", "docs/README.md", "configs/metadata.json")  # required by MONAI's model zoo
OWN_FILES = ("configs/logging.conf", *(f"configs/{name}.json" for name in WORKFLOWS))  # of medunet's bundles
SCHEMA = "meta_schema_20240725.json"  # the schema of metadata.json that is in this package
LATER_FIELDS = ("required_packages_version", "network_data_format")  # fields that not every schema requires
EXAMPLE_SIZE = 64  # voxels per axis of an image for a network whose metadata leave its size open
NOT_CHECKED = "not checked, since the bundle is not trusted"


class _NotCheckableError(Exception):
    """A check cannot be made for a reason that is not a fault of the bundle."""


def verify_bundle(bundle: Path, *, trust: bool = False) -> dict[str, str | None]:
    """Check a bundle without training it.

    An `evaluate` config without a network is applied over `train`, as MONAI does; other overlays are not checked alone.

    Args:
        bundle: Folder of the bundle.
        trust: Approve the bundle; checks that import or instantiate parts of it need that.

    Returns:
        For each check by name: None if it passes, else one line about the fault. A check that this machine cannot
        make, for instance because a package is missing, is left out and logged.
    """
    verdict = require_trust(bundle, trust=trust) if trust else judge(bundle)
    checks: dict[str, Callable[[Path], None]] = {
        "files": _files,
        "metadata": _metadata,
        "references and arguments": _references,
        "MONAI's required properties": _properties,
        "network input and output": _network,
        "weights": _weights,
    }
    if verdict.is_trusted:
        import_from(bundle)
    results: dict[str, str | None] = {}
    for name, check in checks.items():
        if not verdict.is_trusted and check not in (_files, _metadata):
            results[name] = NOT_CHECKED
            continue
        try:
            check(bundle)
            results[name] = None
        except Exception as error:  # a config's own code may raise anything
            if (reason := _not_checkable(error)) is not None:
                logger.warning("%s: not checked: %s", name, reason)
            else:
                results[name] = _one_line(first_cause(error))
    return results


def _not_checkable(error: BaseException) -> str | None:
    """Return why a check cannot be made, or None if the bundle has a fault."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _NotCheckableError):
            return str(cause)
        if isinstance(cause, pydoc.ErrorDuringImport) and cause.value is not None:  # in a module of the bundle
            cause = cause.value
        if isinstance(cause, FileNotFoundError) and Path(str(cause.filename)).parent.name == "models":
            return f"a file is missing: {cause.filename}"
        if isinstance(cause, OptionalImportError | ModuleNotFoundError) and not str(cause).startswith("Cannot locate"):
            return f"a package is missing: {_one_line(cause).partition(' For details')[0]}"
        cause = cause.__cause__
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _configs(bundle: Path) -> dict[str, dict[str, Any]]:
    """Return the configs of a bundle's workflows as MONAI reads them, by name."""
    files = {name: file for name in WORKFLOWS if (file := config_file(bundle, name)) is not None}
    if not {"train", "inference"} & files.keys():
        raise ConfigError("the bundle has neither a config named train nor one named inference")
    for file in files.values():
        check_size(file)
    parts = {name: [file] for name, file in files.items()}
    if {"train", "evaluate"} <= files.keys():
        evaluate = ConfigParser.load_config_file(files["evaluate"])
        if "network_def" not in evaluate or any("#" in id_ or SEPARATOR in id_ for id_ in evaluate):  # an overlay
            parts["evaluate"] = [files["train"], files["evaluate"]]
    return {name: ConfigParser.load_config_files(part) for name, part in parts.items()}


def _is_own(configs: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(all(id_ in config for id_ in OWN_IDS) for config in configs.values())


def _files(bundle: Path) -> None:
    required = [*REQUIRED_FILES, *(OWN_FILES if _is_own(_configs(bundle)) else ())]
    if missing := [name for name in required if not (bundle / name).is_file()]:
        raise ConfigError("files are missing", received=", ".join(missing))
    configparser.RawConfigParser().read(bundle / "configs" / "logging.conf")


def _metadata(bundle: Path) -> None:
    metadata = read_json(bundle / "configs" / "metadata.json")
    metadata = {DEPRECATED_ID_MAPPING.get(key, key): value for key, value in metadata.items()}  # as MONAI reads it
    schema = read_json(resource_dir("configs") / "metadata.schema.json")
    named = str(metadata.get("schema", "")).rpartition("/")[2]
    if named != SCHEMA:
        text = "metadata: the required fields are checked, but not by the schema %s, which is not in this package"
        logger.warning(text, named)
        schema = copy.deepcopy(schema)
        schema["required"] = [key for key in schema["required"] if key not in LATER_FIELDS]
        schema["properties"]["network_data_format"] = {"type": "object"}
    try:
        jsonschema.validate(metadata, schema)
    except jsonschema.ValidationError as error:
        raise ConfigError(f"metadata.json: {error.message}") from error


def _references(bundle: Path) -> None:
    metadata = read_json(bundle / "configs" / "metadata.json")
    for name, config in _configs(bundle).items():
        check_config({**config, "_meta_": metadata}, source=f"configs/{name}")


def _properties(bundle: Path) -> None:
    """Check ids as `ConfigWorkflow.check_properties` does, which instantiates everything and therefore needs data.

    MONAI only warns; in medunet's bundles a missing id is a fault. MONAI has no properties for `evaluate`.
    """
    configs = _configs(bundle)
    faults = []
    for name, config in configs.items():
        ids = {id_ for id_, _ in walk(config)}
        properties = {"train": TrainProperties, "evaluate": InferProperties if _is_own(configs) else {}}
        for property_name, property_ in properties.get(name, InferProperties).items():
            id_, reference = property_[BundlePropertyConfig.ID], property_.get(BundlePropertyConfig.REF_ID)
            if property_[BundleProperty.REQUIRED] and id_ not in ids:
                faults.append(ConfigError(f"{name} lacks MONAI's property {property_name}", expected=f"id {id_}"))
            value = get_id(config, reference) if reference in ids else None
            if isinstance(value, str) and value.startswith("@") and value.replace("#", SEPARATOR) != f"@{id_}":
                cause = f"{name}: {property_name} has a different id than MONAI expects"
                faults.append(ConfigError(cause, received=value, expected=f"@{id_}"))
    if faults and _is_own(configs):
        raise faults[0]
    for fault in faults:
        logger.warning("%s", fault)


def _parsed(bundle: Path) -> ConfigParser:
    configs = _configs(bundle)
    parser = ConfigParser(configs.get("inference") or configs["train"])
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    parser.update({"bundle_root": str(bundle), "device": torch.device("cpu")})
    if "network_def" not in parser:
        raise _NotCheckableError("the config has no network_def")
    return parser


def _network(bundle: Path) -> None:
    parser = _parsed(bundle)
    formats: dict[str, Any] = parser.get("_meta_::network_data_format", {})
    image, pred = formats.get("inputs", {}).get("image"), formats.get("outputs", {}).get("pred")
    if not image or not pred:
        raise _NotCheckableError("metadata.json describes no input named image, or no output named pred")
    network = parser.get_parsed_content("network_def").eval()
    with torch.inference_mode():
        output = network(torch.rand(1, image["num_channels"], *map(_example_size, image["spatial_shape"])))
    if not isinstance(output, torch.Tensor):
        raise _NotCheckableError(f"the network returns a {type(output).__name__}, not one tensor")
    shape, expected = tuple(output.shape), (1, pred["num_channels"], *map(_example_size, pred["spatial_shape"]))
    if shape != (expected if len(shape) != 2 else expected[:2]):  # a classification has no spatial axes
        raise ConfigError("the network's output does not match metadata.json", received=shape, expected=expected)


def _example_size(size: int | str) -> int:
    """Return a size that a shape of metadata.json allows, which may be text such as `8*n`, `2**p*n` or `*`.

    Examples:
        >>> [_example_size(size) for size in (96, "256", "8*n", "2**p*n", "48*n", "*")]
        [96, 256, 64, 64, 96, 64]
    """
    text = str(size).replace(" ", "")
    if text.isdigit():
        return int(text)
    if (match := re.fullmatch(r"(\d+)\*n", text)) is not None:
        step = int(match[1])
        return -(-EXAMPLE_SIZE // step) * step
    if text in ("*", "n") or re.fullmatch(r"2\*\*p(\*n)?", text):
        return EXAMPLE_SIZE
    raise ConfigError("unknown spatial_shape in metadata.json", received=size)


def _weights(bundle: Path) -> None:
    parser = _parsed(bundle)
    if "ckpt_path" not in parser:
        parser["ckpt_path"] = checkpoint(parser)
    paths = parser.get_parsed_content("ckpt_path")  # an ensemble has one per member
    if any(Path(path).is_file() for path in ([paths] if isinstance(paths, str) else paths)):
        load_weights(parser.get_parsed_content("network_def"), paths)
