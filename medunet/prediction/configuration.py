"""A bundle's ``inference.json``, parsed for prediction without MONAI's engine around it."""

import copy
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import monai
import torch
from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver
from yaml import YAMLError

from medunet.config import check_type, walk
from medunet.errors import ConfigError, find_cause, first_cause
from medunet.runtime import load_weights
from medunet.trust import Verdict, require_trust

from .foreign import complete, is_foreign

CALIBRATION = "docs/review.json"  # file of a bundle with the calibration of its weights, and the ranges of their data
TEMPERATURE = "prob_inferer::temperature"  # the part of it in the configs
OWN_CODE = "scripts"  # package of a bundle that `_target_` of its configs may name
# values that the members of an ensemble must share, because each image is read once for all of them
SHARED_IDS = (
    *("in_channels", "label_names", "label_values", "region_values", "regions_class_order"),
    *("instance_target", "preprocessing"),
)


def parse_inference(
    bundle: Path,
    *,
    device: torch.device,
    values: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> ConfigParser:
    """Read ``configs/inference.json`` of a bundle and set values by config id.

    `values` are medunet's; `overrides` are the user's. Their ids must exist, and they take precedence.
    """
    if (file := config_file(bundle, "inference")) is None:
        raise ConfigError("the bundle has no configs/inference.json", file=bundle)
    verdict = require_trust(bundle, trust=trust)
    parser = ConfigParser()
    parser.read_config(_checked(verdict, file))
    if is_foreign(parser):
        metadata = _checked(verdict, bundle / "configs" / "metadata.json")
        parser.read_meta(metadata)
        complete(parser, metadata, file=file)
        import_from(bundle)
    if unknown := [key for key in overrides or {} if key not in parser]:
        raise ConfigError("unknown config key", file=file, received=", ".join(unknown))
    for key, value in (overrides or {}).items():
        check_type(key, value, parser[key])
    parser.update({"bundle_root": str(bundle), "device": device, **(values or {}), **(overrides or {})})
    return parser


def content(parser: ConfigParser, id_: str) -> Any:
    """Return the object that an id of a config defines; a typed error states the first cause, without MONAI's text."""
    try:
        return parser.get_parsed_content(id_)
    except Exception as error:  # a config may call anything
        if (typed := find_cause(error)) is not None:
            raise typed from error
        cause = first_cause(error)
        written_for = parser.get("_meta_::monai_version")
        raise ConfigError(
            f"{id_} cannot be built from the config: {type(cause).__name__}: {' '.join(str(cause).split())[:300]}",
            file=parser.get("bundle_root"),
            received=written_for and f"a bundle for MONAI {written_for}",
            expected=written_for and f"one for MONAI {monai.__version__}",
        ) from error


def class_values(parser: ConfigParser) -> dict[str, int]:
    """Return the value in a label map of each class, or of each region and the background; may be empty."""
    names, values = parser.get("label_names") or [], parser.get("label_values") or []
    if parser.get("region_names"):
        names = [*names[:1], *parser.get("region_names")]
        values = [*values[:1], *parser.get("regions_class_order")]
    return dict(zip(names, values, strict=False))


def load_network(parser: ConfigParser) -> torch.nn.Module:
    """Return the bundle's network with its weights, in evaluation mode on the device of the config."""
    defined = content(parser, "network_def")
    load_weights(defined, content(parser, "ckpt_path"))
    network = cast("torch.nn.Module", content(parser, "network").eval())
    if all(module is not defined for module in network.modules()):
        received, expected = type(network).__name__, type(defined).__name__
        raise ConfigError("network must be network_def, or contain it", received=received, expected=expected)
    return network


def check_same_input(first: ConfigParser, other: ConfigParser, *, bundle: Path) -> None:
    """Reject a member of an ensemble, in the folder `bundle`, whose preprocessing or labels differ from the first's."""
    for parser in (first, other):
        content(parser, "in_channels")  # parsing normalises all references
    ours, theirs = (_closure(parser, SHARED_IDS) for parser in (first, other))
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            received, expected = theirs.get(key), ours.get(key)
            raise ConfigError(
                f"members of an ensemble differ in `{key}`", file=bundle, received=received, expected=expected
            )


def config_file(bundle: Path, name: str) -> Path | None:
    """Return the file of a config of a bundle: JSON for medunet's, also YAML for some of the model zoo's."""
    candidates = (bundle / "configs" / f"{name}{suffix}" for suffix in (".json", ".yaml", ".yml"))
    return next((file for file in candidates if file.is_file()), None)


def import_from(bundle: Path) -> None:
    """Let `_target_: scripts.NAME` find the bundle's own code, as `python -m monai.bundle` in its folder does."""
    if not (bundle / OWN_CODE).is_dir():
        return
    for name in [name for name in sys.modules if name.partition(".")[0] == OWN_CODE]:
        del sys.modules[name]  # of another bundle
    sys.path.insert(0, os.fspath(bundle.resolve()))


def _checked(verdict: Verdict, file: Path) -> dict[str, Any]:
    """Return a config as the trust check read it, even if the file has changed; YAML needs the user's approval."""
    if file.suffix == ".json":
        config = copy.deepcopy(verdict.configs.get(f"configs/{file.name}"))
    else:
        try:
            config = ConfigParser.load_config_file(str(file))
        except (OSError, ValueError, YAMLError) as error:
            raise ConfigError(f"invalid YAML: {' '.join(str(error).split())}", file=file) from error
    if not isinstance(config, dict):
        raise ConfigError("must be a mapping of ids to values", file=file)
    return config


def _closure(parser: ConfigParser, ids: tuple[str, ...]) -> dict[str, Any]:
    """Return the values of ids and of all ids that they refer to, except paths."""
    values: dict[str, Any] = {}
    waiting = list(ids)
    while waiting:
        key = waiting.pop()
        if key in values or key == "bundle_root" or key not in parser:
            continue
        values[key] = parser[key]
        for _, value in walk({key: values[key]}):
            if isinstance(value, str):
                waiting += ReferenceResolver.match_refs_pattern(value)
    return values
