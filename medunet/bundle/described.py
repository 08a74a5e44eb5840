"""What a run was configured with, and why: its values beside those of the bundle that it was made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medunet.bundle.decisions import reasons, show
from medunet.bundle.render import recipes
from medunet.bundle.specialise import CHANGES
from medunet.config import SEPARATOR, read_json
from medunet.reports import Setting
from medunet.resources import bundle_texts, resource_dir

TOLD = (
    *("in_channels", "label_names", "label_values", "spatial_dims", "spacing_mm", "patch_size", "tile_size"),
    *("network_def", "body_threshold", "crop_steps", "image_steps", "steps::normalize", "intensity"),
    *("batch_size", "steps_per_epoch", "epochs", "learning_rate", "optimizer", "lr_scheduler", "clip_grad_norm"),
    *("loss", "border_weights", "augment_steps", "augment", "ema_decay"),
    *("val_interval", "keep_epoch", "patience", "seed"),
    *("folds", "fold", "validation_cases", "init_from", "autocast_dtype", "compile", "planned"),
)
"""Ids that are told, and the order: what decides about the result. Folders and servers are not among them."""

FROM_DATA = ("in_channels", "label_names", "label_values", "spacing_mm", "patch_size", "folds")
"""Ids that `medunet train` takes from the data unless told otherwise (`medunet.planning.adapt`)."""

PATHS = ("init_from",)
"""Ids whose value is a path: that it is set is told, not what it is."""

_COMMENTED = re.compile(r"^(?P<indent> *)(?P<key>[\w]+):(?P<value>[^#]*?)(?:\s+#\s(?P<comment>.*))?$")
_INNER_KEYS = ("_target_", "keys", "optimizer", "params", "network", "validator", "source_key")


def settings_of(run: Path) -> list[Setting]:
    """The values of a run that decide about its result, each with the reason where one is written down.

    Reasons are those of `medunet plan`; of the data that were taken over; and the comments of the YAML sources.

    Args:
        run: folder of a run.

    Raises:
        ConfigError: its `train.json` is missing or broken.
    """
    config = read_json(run / "configs" / "train.json")
    texts = bundle_texts(run)
    planned = reasons(texts, config)
    base = _base(texts)
    own = {} if base is None else dict(_flat(read_json(resource_dir("bundles") / base / "configs" / "train.json")))
    comments = {} if base is None else yaml_comments(base)
    settings = []
    for id_, value in _flat(config):
        before = own.get(id_)
        is_changed = base is not None and value != before
        text = _shown(id_, value)
        told = [planned[id_]] if id_ in planned else []
        if not told and is_changed:
            source = "taken from the data" if id_ in FROM_DATA else "set for this run"
            was = f", {base} has {_shown(id_, before)}" if before is not None and id_ not in PATHS else ""
            told.append(source + was)
        if id_ in comments:
            told.append(comments[id_])
        settings.append(Setting(id_, text, "; ".join(told), is_changed))
    return settings


def yaml_comments(recipe: str) -> dict[str, str]:
    """Comments behind the values of a recipe's YAML sources, by config id; a later source speaks over an earlier one.

    Example:
        >>> yaml_comments("unet_3d")["steps_per_epoch"]
        'an epoch is a number of steps, not a pass over the data: few images, many patches'
    """
    entry = recipes()[recipe]
    found: dict[str, str] = {}
    for part in [*entry["sources"]["train"], *entry.get("overrides", [])]:
        parents: list[tuple[int, str]] = []
        for line in (resource_dir("configs") / f"{part}.yaml").read_text(encoding="utf-8").splitlines():
            if not (match := _COMMENTED.match(line)):
                continue
            indent = len(match["indent"])
            parents = [(depth, key) for depth, key in parents if depth < indent] + [(indent, match["key"])]
            if match["comment"]:
                found[SEPARATOR.join(key for _, key in parents)] = match["comment"]
    return found


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Told ids and values; a network and the named steps give an id for each of their values."""
    for id_ in TOLD:
        value = _get(config, id_)
        if isinstance(value, Mapping) and id_ in ("network_def", "augment"):
            for key, inner in value.items():
                if not _is_wiring(key, inner):
                    yield f"{id_}{SEPARATOR}{key}", inner
        elif value is not None or (id_ in config and id_ in PATHS):
            yield id_, value


def _get(config: Mapping[str, Any], id_: str) -> Any:
    value: Any = config
    for part in id_.split(SEPARATOR):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _shown(id_: str, value: Any) -> str:
    if id_ in PATHS:
        return "the weights of another run" if value else "none"
    if isinstance(value, Mapping):
        value = {key: inner for key, inner in value.items() if key == "_target_" or not _is_wiring(key, inner)}
    return show(value).replace("@steps#", "").replace("@augment#", "").replace("@steps::", "").removeprefix("$")


def _is_wiring(key: str, value: Any) -> bool:
    """Whether a value only connects components, or is told under its own id."""
    return key in _INNER_KEYS or (isinstance(value, str) and value.startswith(("@", "$")))


def _base(texts: Mapping[str, str]) -> str | None:
    """Return the shipped bundle that a run comes from, also by way of a plan; None if it comes from another one."""
    try:
        name = json.loads(texts[CHANGES]).get("bundle")
    except (KeyError, ValueError, AttributeError):
        name = None
    return name if name in recipes() else None
