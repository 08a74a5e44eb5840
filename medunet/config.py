"""Values by config id: parse, read, get, set, list, check and apply them.

An overlay is a mapping from id to value, such as a preset, a plan, or `--set`; only `apply_all` changes a config. An id
is a path such as `epochs` or `network_def::channels`; `#` separates its parts as well.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from medunet.errors import ConfigError, SecurityError

Overlay = Mapping[str, Any]  # values by id

SEPARATOR = "::"
TARGET = "_target_"  # MONAI's key for the class or function of a component
MAX_CONFIG_BYTES = 8 << 20  # more than any config has
SHORT_LIST = 100  # characters up to which a list of numbers or names is written on one line


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that `1e-3` is a number, as in YAML 1.2 and JSON."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """Parse YAML; raise `yaml.YAMLError` if it is not valid.

    Examples:
        >>> parse_yaml("[1e-3, .5, 2, 1.2.3]")
        [0.001, 0.5, 2, '1.2.3']
    """
    return yaml.load(text, Loader=_Loader)


def parse_settings(settings: Sequence[str] | None) -> dict[str, Any]:
    """Parse `ID=VALUE` texts into an overlay; values are YAML, or MONAI expressions that begin with `$` or `@`.

    Examples:
        >>> parse_settings(["learning_rate=1e-3", "patch_size=[64,64]", "device=$torch.device('cpu')"])
        {'learning_rate': 0.001, 'patch_size': [64, 64], 'device': "$torch.device('cpu')"}
    """
    values: dict[str, Any] = {}
    for text in settings or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError("--set takes KEY=VALUE", received=text, expected="for instance --set batch_size=2")
        try:
            values[key] = value if value[:1] in "$@" else parse_yaml(value)
        except yaml.YAMLError as error:
            raise ConfigError("--set needs a valid YAML value", received=text) from error
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML source; raise `ConfigError` if it is missing or not a YAML mapping."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("config source is missing", file=path) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"invalid YAML: {' '.join(str(error).split())}", file=path) from error
    if not isinstance(content, dict):
        raise ConfigError("must be a mapping", file=path, received=type(content).__name__)
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a bundle's configs; raise `ConfigError` if it is missing or not a JSON object."""
    check_size(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("the bundle lacks a config", file=path) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"invalid JSON: {error}", file=path) from error
    if not isinstance(content, dict):
        raise ConfigError("must be a JSON object", file=path)
    return content


def check_size(path: Path) -> None:
    """Raise `SecurityError` if a file is too large for a config, before it is read."""
    if path.is_file() and path.stat().st_size > MAX_CONFIG_BYTES:
        raise SecurityError("too large for a config", file=path, received=f"{path.stat().st_size} bytes")


def to_json(content: Mapping[str, Any]) -> str:
    """Return JSON with an indent of two, and short flat lists on one line."""

    def on_one_line(match: re.Match[str]) -> str:
        line = " ".join(match.group(0).split()).replace("[ ", "[").replace(" ]", "]")
        return line if len(line) <= SHORT_LIST else match.group(0)

    return re.sub(r"\[[^\[\]{}]*\]", on_one_line, json.dumps(content, indent=2, ensure_ascii=False)) + "\n"


def strict_json(document: object) -> str:
    """Return valid JSON, in which NaN and infinity are null."""
    # in ASCII, because a path may have bytes that no encoding accepts
    return json.dumps(plain(document), indent=2, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """Return what JSON can express: None for NaN and infinity, text for paths, plain numbers for NumPy's."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, PurePath):
        return str(value)
    value = value.item() if hasattr(value, "dtype") and hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def walk(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over every id of a config and its value; a mapping or list precedes its parts.

    Examples:
        >>> [id_ for id_, _ in walk({"train": {"steps": ["a"]}})]
        ['train', 'train::steps', 'train::steps::0']
    """
    pairs: Iterable[tuple[Any, Any]] = config.items() if isinstance(config, Mapping) else ()
    for key, value in enumerate(config) if isinstance(config, list) else pairs:
        id_ = prefix + _normal(str(key))
        yield id_, value
        yield from walk(value, id_ + SEPARATOR)


def leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config as an overlay: its values without the mappings around them. A list is one value.

    Examples:
        >>> leaves({"epochs": 3, "network_def": {"channels": [4, 8]}})
        {'epochs': 3, 'network_def::channels': [4, 8]}
    """
    result: dict[str, Any] = {}
    for key, value in config.items():
        is_inner = isinstance(value, Mapping) and value
        result |= leaves(value, f"{prefix}{key}{SEPARATOR}") if is_inner else {f"{prefix}{key}": value}
    return result


def get_id(config: Mapping[str, Any], id_: str) -> Any:
    """Return the value at an id; None if there is none. Parents must be mappings.

    Examples:
        >>> get_id({"train": {"trainer": {"max_epochs": 3}}}, "train#trainer#max_epochs")
        3
    """
    value: Any = config
    for part in _normal(id_).split(SEPARATOR):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def apply(config: Mapping[str, Any], overlay: Overlay, *, define: bool = False) -> dict[str, Any]:
    """Return a copy of a config with the values of an overlay, as `apply_all` does.

    Examples:
        >>> apply({"noise": {"prob": 0.1}}, {"noise::prob": 0.2})
        {'noise': {'prob': 0.2}}
    """
    return apply_all({"": config}, overlay, define=[""] if define else ())[""]


def apply_all(
    configs: Mapping[str, Mapping[str, Any]], overlay: Overlay, *, define: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Return copies of a bundle's configs with the values of an overlay, each in every config that has its id.

    Args:
        configs: Configs by name.
        overlay: Values by id. An id may also name an argument that a component leaves at its default.
        define: Names of the configs to which unknown ids are added. Default: an unknown id is an error.

    Raises:
        ConfigError: An id is unknown, or a value cannot replace a number or a boolean.
    """
    changed = {name: dict(config) for name, config in configs.items()}
    for id_, value in overlay.items():
        owners = [name for name, config in changed.items() if _takes(config, id_)]
        owners = owners or [name for name in define if isinstance(_parent(changed[name], id_), Mapping)]
        if not owners:
            ids = {known for config in changed.values() for known, _ in walk(config)}
            raise ConfigError("unknown config key", received=id_, expected=closest(_normal(id_), ids))
        for name in owners:
            check_type(_normal(id_), value, get_id(changed[name], id_))
            changed[name] = _with(changed[name], _normal(id_), value)
    return changed


def check_type(id_: str, new: Any, old: Any) -> None:
    """Raise `ConfigError` if a value cannot replace a number or a boolean.

    Lists, null and expressions (`$...`, `@...`) may replace either: `strides: 2` may become `[1, 2, 2]`.
    """
    is_free = new is None or isinstance(new, list | dict) or (isinstance(new, str) and new[:1] in ("$", "@"))
    if is_free or not isinstance(old, bool | int | float):
        return
    if isinstance(old, bool) and not isinstance(new, bool):
        raise ConfigError(f"{id_} must be true or false", received=new)
    if not isinstance(old, bool) and (isinstance(new, bool) or not isinstance(new, int | float)):
        raise ConfigError(f"{id_} must be a number", received=new)


def closest(name: str, candidates: Iterable[str]) -> str:
    """Return the most similar names, for an error message."""
    return " or ".join(difflib.get_close_matches(name, sorted(candidates), n=3)) or "one of the ids of the config"


def _takes(config: Mapping[str, Any], id_: str) -> bool:
    """Return whether a config has an id, or a component that may have it as an argument."""
    parent = _parent(config, id_)
    return isinstance(parent, Mapping) and (_normal(id_).rpartition(SEPARATOR)[2] in parent or TARGET in parent)


def _with(config: Mapping[str, Any], id_: str, value: Any) -> dict[str, Any]:
    first, _, rest = id_.partition(SEPARATOR)
    return {**config, first: _with(config[first], rest, value) if rest else value}


def _parent(config: Mapping[str, Any], id_: str) -> Any:
    parents = _normal(id_).rpartition(SEPARATOR)[0]
    return get_id(config, parents) if parents else config


def _normal(id_: str) -> str:
    return id_.replace("#", SEPARATOR)
