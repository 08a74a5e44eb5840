"""A bundle's ``inference.json``, parsed for prediction without MONAI's engine around it."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import monai
import torch
from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver
from yaml import YAMLError

from medunet.config import check_type
from medunet.errors import ConfigError, find_cause, first_cause
from medunet.runtime import load_weights
from medunet.trust import Verdict, require_trust

from .foreign import complete, is_foreign

DEFAULTS = {"result_format": "auto", "overwrite": False}
"""What a config says that nobody has changed; bundles made before these keys lack them."""

OWN_CODE = "scripts"
"""Package of a bundle that `_target_` of its configs may name."""

SHARED_IDS = ("in_channels", "label_names", "label_values", "region_values", "regions_class_order", "preprocessing")
"""What the members of an ensemble must have in common: one pass of reading feeds them all."""


def parse_inference(
    bundle: Path,
    *,
    device: torch.device,
    options: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> ConfigParser:
    """Read ``configs/inference.json`` of a bundle and set what the caller decides.

    Args:
        bundle: folder of a bundle or run.
        device: where the network runs.
        options: values by config id; those of :data:`DEFAULTS` may be absent from an old bundle while unchanged.
        overrides: the user's values by config id.
        trust: of a bundle that could run code of its own, see :func:`medunet.trust.require_trust`.

    Raises:
        SecurityError: the bundle is not trusted.
        ConfigError: no such file, an unknown key, or an option that the bundle is too old for.
    """
    if (file := config_file(bundle, "inference")) is None:
        raise ConfigError("the bundle has no configs/inference.json", file=bundle, remedy="give a bundle or a run")
    verdict = require_trust(bundle, trust=trust)
    parser = ConfigParser()
    parser.read_config(_judged(verdict, file))
    if is_foreign(parser):
        metadata = _judged(verdict, bundle / "configs" / "metadata.json")
        parser.read_meta(metadata)
        complete(parser, metadata, file=file)
        import_from(bundle)
    if unknown := [key for key in overrides or {} if key not in parser]:
        raise ConfigError("unknown config key", file=file, received=", ".join(unknown))
    for key, value in (overrides or {}).items():
        check_type(key, value, parser[key])
    asked = {key: value for key, value in (options or {}).items() if key not in DEFAULTS or value != DEFAULTS[key]}
    if unknown := [key for key in asked if key in DEFAULTS and key not in parser]:
        raise ConfigError(
            "the bundle is too old for this option",
            file=file,
            received=", ".join(unknown),
            remedy="render it again by `medunet bundle render`, or train anew",
        )
    parser.update({"bundle_root": str(bundle), "device": device, **asked, **(overrides or {})})
    return parser


def content(parser: ConfigParser, id_: str) -> Any:
    """Return what an id of a config stands for.

    Raises:
        MedunetError: what a component of medunet raises.
        ConfigError: it cannot be built; the message has the first cause, without MONAI's words around it.
    """
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


def load_network(parser: ConfigParser) -> torch.nn.Module:
    """Return the bundle's network with its weights, in evaluation mode on the device of the config.

    Raises:
        ConfigError: the config does not give a network.
        DataError: no weights, or weights of another network.
    """
    defined = content(parser, "network_def")
    load_weights(defined, content(parser, "ckpt_path"))
    network = cast("torch.nn.Module", content(parser, "network").eval())
    if all(module is not defined for module in network.modules()):
        raise ConfigError(
            "network must be network_def, or contain it: the weights are loaded into network_def",
            received=type(network).__name__,
            expected=type(defined).__name__,
        )
    return network


def check_same_input(first: ConfigParser, other: ConfigParser, *, bundle: Path) -> None:
    """Refuse a member of an ensemble that would need another preprocessing, or gives other labels.

    Args:
        first: config of the bundle whose preprocessing is used.
        other: config of the member.
        bundle: folder of the member, for the message.

    Raises:
        ConfigError: naming the first value that differs.
    """
    for parser in (first, other):
        content(parser, "in_channels")  # parsing spells all references in one way
    ours, theirs = (_closure(parser, SHARED_IDS) for parser in (first, other))
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise ConfigError(
                f"members of an ensemble differ in `{key}`",
                file=bundle,
                received=theirs.get(key),
                expected=ours.get(key),
                remedy="join runs of one plan, such as the folds of a data set",
            )


def config_file(bundle: Path, name: str) -> Path | None:
    """Return a config of a bundle; medunet's are JSON, some of the model zoo's are YAML."""
    candidates = (bundle / "configs" / f"{name}{suffix}" for suffix in (".json", ".yaml", ".yml"))
    return next((file for file in candidates if file.is_file()), None)


def _judged(verdict: Verdict, file: Path) -> dict[str, Any]:
    """Return a config as it was judged, not as the file may be by now; YAML is never trusted without the user."""
    if file.suffix == ".json":
        config = copy.deepcopy(verdict.configs.get(f"configs/{file.name}"))
    else:
        try:
            config = ConfigParser.load_config_file(str(file))
        except (OSError, ValueError, YAMLError) as error:
            raise ConfigError(f"not YAML: {' '.join(str(error).split())}", file=file) from error
    if not isinstance(config, dict):
        raise ConfigError("not a mapping of ids to values", file=file)
    return config


def import_from(bundle: Path) -> None:
    """Let `_target_: scripts.NAME` find the bundle's own code, as `python -m monai.bundle` in its folder does."""
    if not (bundle / OWN_CODE).is_dir():
        return
    for name in [name for name in sys.modules if name.partition(".")[0] == OWN_CODE]:
        del sys.modules[name]  # that of another bundle
    sys.path.insert(0, os.fspath(bundle.resolve()))


def _closure(parser: ConfigParser, ids: tuple[str, ...]) -> dict[str, Any]:
    """The values behind ids and behind all that they refer to; paths aside, two of one meaning are equal."""
    found: dict[str, Any] = {}
    waiting = list(ids)
    while waiting:
        key = waiting.pop()
        if key in found or key == "bundle_root" or key not in parser:
            continue
        found[key] = parser[key]
        for text in _texts(found[key]):
            waiting += ReferenceResolver.match_refs_pattern(text)
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _texts(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry)
