"""The identity of preprocessed cases: a digest of their files, of the transforms and of the code."""

import contextlib
import enum
import functools
import hashlib
import json
import os
import sys
import threading
import types
from collections.abc import Mapping, Sequence, Set
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

DETACHED_SUFFIXES = (".mhd", ".nhdr", ".hdr", ".img")  # headers and voxels are two files of one stem, which both count
SOURCES = ("datasets", "io", "transforms")  # folders of medunet on whose code preprocessed cases depend
LIBRARIES = (  # distributions that medunet reads and transforms images with
    *("imagecodecs", "itk-io", "monai", "nibabel", "numpy", "pillow", "pydicom", "scikit-image", "scipy"),
    *("SimpleITK", "tifffile", "torch"),
)

_PLAIN = (float, complex, bytes, Path, np.dtype, torch.dtype, torch.device, range, slice)


def digest(*values: object) -> str:
    """Return a hexadecimal SHA-256 of any values, the same in every process."""
    text = json.dumps([describe(value) for value in values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def describe(value: Any, _above: tuple[int, ...] = ()) -> Any:
    """Return what identifies a value, for JSON: objects by class and attributes, functions by their byte code.

    Unlike a pickle, it does not depend on the order of sets or on random state, which differ between processes.
    """
    if value is None or (isinstance(value, bool | int | str) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, _PLAIN):
        return [type(value).__name__, repr(value)]
    if isinstance(value, np.generic):
        return describe(value.item())
    if isinstance(value, np.ndarray | torch.Tensor):
        array = np.ascontiguousarray(value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value)
        return ["array", str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, np.random.RandomState | np.random.Generator | torch.Generator):
        return "random"
    if id(value) in _above:
        return ["above", len(_above) - _above.index(id(value))]
    inner = functools.partial(describe, _above=(*_above, id(value)))
    if isinstance(value, enum.Enum):
        return [_name(type(value)), value.name]
    if isinstance(value, Mapping):
        return ["mapping", sorted(([inner(k), inner(v)] for k, v in value.items()), key=json.dumps)]
    if isinstance(value, Set):
        return ["set", sorted((inner(v) for v in value), key=json.dumps)]
    if isinstance(value, Sequence):
        return [inner(v) for v in value]
    if isinstance(value, types.MethodType):
        return ["method", inner(value.__self__), inner(value.__func__)]
    if isinstance(value, functools.partial):
        return ["partial", inner(value.func), inner(value.args), inner(value.keywords)]
    if isinstance(value, types.FunctionType):
        closure = []
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # not assigned yet
                closure.append(inner(cell.cell_contents))
        defaults = inner([value.__defaults__, value.__kwdefaults__])
        return ["function", _name(value), _code(value.__code__), defaults, closure]
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__]
    if isinstance(value, type | types.BuiltinFunctionType):
        return ["named", _name(value), _file_digest(value.__module__)]
    slots = [slot for owner in type(value).__mro__ for slot in np.atleast_1d(owner.__dict__.get("__slots__", ()))]
    attributes = {str(slot): getattr(value, slot) for slot in slots if slot != "__weakref__" and hasattr(value, slot)}
    attributes |= getattr(value, "__dict__", {})
    # MONAI's invertible transforms note their state while they run in thread-local attributes
    attributes = {name: inner(v) for name, v in attributes.items() if not isinstance(v, threading.local)}
    return [_name(type(value)), _file_digest(type(value).__module__), attributes]


def describe_source(value: Any) -> Any:
    """Return what an item of a data list refers to, for JSON; a path is represented by its files' sizes and times."""
    if isinstance(value, Mapping):
        return {str(key): describe_source(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [describe_source(inner) for inner in value]
    if not isinstance(value, str | Path):
        return describe(value)
    if isinstance(value, str) and not {"/", os.sep, "."} & set(value):
        return value  # a name, even if the working folder has a file of this name
    try:
        path = Path(value).resolve()
        stats = [(str(file), file.stat()) for file in source_files(path)]
    except (OSError, ValueError):  # a text that is not a path: too long, a zero byte
        return str(value)
    return [str(path), [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats]] if stats else str(value)


def source_files(path: Path) -> list[Path]:
    """Return the files of an image: of a folder all, and of a detached header those of its stem."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    if not path.is_file():
        return []
    return sorted(path.parent.glob(f"{path.stem}.*")) if path.suffix.lower() in DETACHED_SUFFIXES else [path]


def _code(code: types.CodeType) -> Any:
    """Return byte code and its constants, without line numbers."""
    constants = [_code(c) if isinstance(c, types.CodeType) else describe(c) for c in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


@functools.cache
def _file_digest(module: str) -> str:
    file = getattr(sys.modules.get(module), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else ""


@functools.cache
def code_digest() -> str:
    """Return a digest of the code on which preprocessed cases depend: medunet's sources and its libraries."""
    package = Path(__file__).parents[2]
    files = [package / "geometry.py", *(path for part in SOURCES for path in (package / part).rglob("*.py"))]
    sources = {path.relative_to(package).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    versions = {}
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return digest(sources, versions)
