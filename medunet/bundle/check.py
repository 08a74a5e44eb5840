"""Check the references, targets and arguments of a config."""

import ast
import inspect
import pydoc
import textwrap
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

from monai.bundle import ComponentLocator
from monai.bundle.reference_resolver import ReferenceResolver

from medunet.config import SEPARATOR, TARGET, closest, walk
from medunet.errors import ConfigError

# keys of a component that MONAI itself reads; all others are arguments of its target
COMPONENT_KEYS = {TARGET, "_requires_", "_disabled_", "_desc_", "_mode_", "_wrapper_"}


def check_config(config: Mapping[str, Any], *, source: str) -> None:
    """Raise `ConfigError` for a reference to a missing id, an unknown target or argument; `source` names the file.

    MONAI reports the first two only when it instantiates, and the third never (`--spatal_dims 2` passes silently).
    """
    items = dict(walk(config))
    for id_, value in items.items():
        if not isinstance(value, str):
            continue
        for reference in ReferenceResolver.match_refs_pattern(ReferenceResolver.normalize_id(value)):
            if reference not in items:
                received, expected = f"{id_}: @{reference}", closest(reference, items)
                cause = "reference to an id that does not exist"
                raise ConfigError(cause, file=source, received=received, expected=expected)
    for id_, component in items.items():
        if not isinstance(component, Mapping) or TARGET not in component:
            continue
        accepted = accepted_arguments(component[TARGET])
        unknown = component.keys() - COMPONENT_KEYS - (accepted or set())
        if accepted is not None and unknown:
            received, expected = f"{id_}{SEPARATOR}{min(unknown)}", closest(min(unknown), accepted)
            cause = f"{component[TARGET]} takes no such argument"
            raise ConfigError(cause, file=source, received=received, expected=expected)


@cache
def accepted_arguments(target: str) -> frozenset[str] | None:
    """Return the names of the arguments that a target takes; raise `ConfigError` if it cannot be imported.

    None if they cannot be known, because its `**kwargs` go to something other than the base class, or because it needs
    a package that is not installed.
    """
    try:
        function = pydoc.locate(target)
    except pydoc.ErrorDuringImport as error:
        if isinstance(error.value, ModuleNotFoundError):
            return None
        raise
    if function is None:
        module = _monai_components().get_component_module_name(target)
        name = module[0] if isinstance(module, list) else module
        function = pydoc.locate(f"{name}.{target}") if name else None
    if function is None:
        raise ConfigError("cannot import a _target_", received=target)
    names: set[str] = set()
    is_class = inspect.isclass(function)
    for part in inspect.getmro(cast("type", function)) if is_class else (function,):
        called = part.__dict__.get("__init__") if is_class else part
        if called is None:
            continue
        try:
            parameters = inspect.signature(cast("Callable[..., Any]", called)).parameters.values()
        except (TypeError, ValueError):
            return None
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return frozenset(names)
        if not _forwards_kwargs(called):
            return None
    return None


def _forwards_kwargs(function: Any) -> bool:
    """Return whether a constructor passes its `**kwargs` to that of its base class."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    calls = [call for call in ast.walk(tree) if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)]
    inits = [call for call in calls if cast("ast.Attribute", call.func).attr == "__init__"]
    return any(keyword.arg is None for call in inits for keyword in call.keywords)


_monai_components = cache(ComponentLocator)
