"""Merging YAML sources: by name, never by list index, and an unknown key is an error."""

from __future__ import annotations

import ast
import difflib
import inspect
import pydoc
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml
from monai.bundle import ComponentLocator
from monai.bundle.reference_resolver import ReferenceResolver

from medunet.errors import ConfigError
from medunet.overrides import parse_yaml

TARGET = "_target_"
SEPARATOR = "::"
COMPONENT_KEYS = {TARGET, "_requires_", "_disabled_", "_desc_", "_mode_", "_wrapper_"}
"""Keys of a component that MONAI itself reads; all others are arguments of its target."""


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a source.

    Raises:
        ConfigError: missing, not YAML, or not a mapping.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("no such config source", file=path) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}", file=path) from error
    if not isinstance(content, dict):
        raise ConfigError("not a mapping", file=path, received=type(content).__name__)
    return content


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """A new dictionary with the overlay's values over the base's, level by level.

    Lists are replaced whole. A component whose ``_target_`` changes is replaced whole as well: the arguments of the
    old class mean nothing to the new one.

    Example:
        >>> merge({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})
        {'a': {'x': 1, 'y': 3}}
        >>> merge({"a": {"_target_": "A", "x": 1}}, {"a": {"_target_": "B"}})
        {'a': {'_target_': 'B'}}
    """
    merged = dict(base)
    for key, value in overlay.items():
        old: Any = merged.get(key)
        merged[key] = merge(old, value) if _same_component(old, value) else value
    return merged


def known_part(config: Mapping[str, Any], overlay: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Split an overlay into what a config knows and the ids it does not.

    Returns:
        The part of the overlay whose keys exist in the config, and the ids (``a::b``) of the rest.
    """
    known: dict[str, Any] = {}
    unknown: set[str] = set()
    for key, value in overlay.items():
        if key not in config:
            unknown.add(key)
            continue
        old = config[key]
        # a component takes arguments that are left at their default as well; check_config judges them
        if _same_component(old, value) and TARGET not in old:
            known[key], below = known_part(old, value)
            unknown |= {f"{key}{SEPARATOR}{name}" for name in below}
        else:
            known[key] = value
    return known, unknown


def _same_component(old: Any, new: Any) -> bool:
    """Whether the new value changes parts of the old one instead of replacing it: two mappings, of one target."""
    both = isinstance(old, Mapping) and isinstance(new, Mapping)
    return both and new.get(TARGET, old.get(TARGET)) == old.get(TARGET)


def check_config(config: Mapping[str, Any], *, source: str) -> None:
    """Refuse references to nothing, targets that do not exist and arguments that a target does not take.

    MONAI itself finds the first two when it instantiates, and the third never (``--spatal_dims 2`` passes silently).

    Raises:
        ConfigError: with the id of the first fault.
    """
    ids = set(all_ids(config))
    for key, value in _leaves(config):
        if isinstance(value, str):
            for reference in ReferenceResolver.match_refs_pattern(ReferenceResolver.normalize_id(value)):
                if reference not in ids:
                    raise ConfigError(
                        "reference to an id that does not exist",
                        file=source,
                        received=f"{key}: @{reference}",
                        expected=closest(reference, ids),
                    )
    for key, component in _components(config):
        target = component[TARGET]
        accepted = accepted_arguments(target)
        given = component.keys() - COMPONENT_KEYS
        if accepted is not None and given - accepted:
            wrong = min(given - accepted)
            raise ConfigError(
                f"{target} takes no such argument",
                file=source,
                received=f"{key}{SEPARATOR}{wrong}",
                expected=closest(wrong, accepted),
            )


def all_ids(config: Mapping[str, Any]) -> Iterator[str]:
    """Every id of a config, inner ones as ``train::trainer::max_epochs``."""

    def walk(value: Any, prefix: str) -> Iterator[str]:
        pairs: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, Mapping):
            pairs = value.items()
        elif isinstance(value, list):
            pairs = enumerate(value)
        for key, inner in pairs:
            name = f"{prefix}{key}".replace("#", SEPARATOR)
            yield name
            yield from walk(inner, name + SEPARATOR)

    yield from walk(config, "")


def get_id(config: Mapping[str, Any], id_: str) -> Any:
    """The value at an id whose parents are mappings; ``None`` where there is none.

    Example:
        >>> get_id({"train": {"trainer": {"max_epochs": 3}}}, "train::trainer::max_epochs")
        3
    """
    value: Any = config
    for part in id_.replace("#", SEPARATOR).split(SEPARATOR):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def closest(name: str, candidates: Iterable[str]) -> str:
    """The most similar names, for an error message."""
    found = difflib.get_close_matches(name, sorted(candidates), n=3)
    return " or ".join(found) if found else "one of the ids of the config"


@cache
def accepted_arguments(target: str) -> frozenset[str] | None:
    """Return the names of the arguments a target takes.

    ``None`` if that cannot be known: ``**kwargs`` go elsewhere than to the base class.

    Raises:
        ConfigError: nothing of that name can be imported.
    """
    found = pydoc.locate(target)
    if found is None:
        module = _monai_components().get_component_module_name(target)
        name = module[0] if isinstance(module, list) else module
        found = pydoc.locate(f"{name}.{target}") if name else None
    if found is None:
        raise ConfigError("cannot import a _target_", received=target)
    names: set[str] = set()
    classes = inspect.getmro(found) if inspect.isclass(found) else (found,)
    for part in classes:
        function = part.__dict__.get("__init__") if inspect.isclass(part) else part
        if function is None:
            continue
        try:
            parameters = inspect.signature(cast("Callable[..., Any]", function)).parameters.values()
        except (TypeError, ValueError):
            return None
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return frozenset(names)
        if not _passes_on(function):
            return None
    return None


def _passes_on(function: Any) -> bool:
    """Return whether a constructor gives its ``**kwargs`` to that of its base class."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return any(
        isinstance(call.func, ast.Attribute)
        and call.func.attr == "__init__"
        and any(keyword.arg is None for keyword in call.keywords)
        for call in calls
    )


@cache
def _monai_components() -> ComponentLocator:
    return ComponentLocator()


def _components(value: Any, prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        if TARGET in value:
            yield prefix, value
        for key, inner in value.items():
            yield from _components(inner, f"{prefix}{SEPARATOR}{key}" if prefix else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _components(inner, f"{prefix}{SEPARATOR}{index}")


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}{SEPARATOR}{key}" if prefix else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{prefix}{SEPARATOR}{index}")
    else:
        yield prefix, value
