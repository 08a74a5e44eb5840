"""A bundle as it may leave the machine: its configs, docs and weights, without paths and names of cases."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from medunet.resources import bundle_texts

PATH_WORD = "(path)"  # replaces a path of this machine
NEVER_PACKED = ("last.pt", "previous.pt")  # needed only to resume
CHANGES = "docs/changes.json"  # what a run has changed of the bundle that it was made of

_PATH = re.compile(r"(?<![\w.@'/:+-])(?:[A-Za-z]:[\\/]|\\\\|~?/(?=[\w.~]))[^\s'\",;:)\]]*")
"""An absolute path: of Unix, from the home folder, of Windows with a drive or a share."""


class CaseCodes:
    """Numbers the cases of a data set by their sorted names.

    File names may be those of patients, so a tracking server gets numbers. The folder of the run keeps the list.

    Args:
        names: of all cases, in any order.

    Example:
        >>> codes = CaseCodes(["Doe_Jane", "Doe_John"])
        >>> codes["Doe_John"], codes.redact("/home/me/Doe_Jane.nii.gz: empty, unlike Doe_John")
        ('case_002', '(path): empty, unlike case_002')
    """

    def __init__(self, names: Iterable[str]) -> None:
        known = sorted(set(names))
        width = max(3, len(str(len(known))))
        self.codes: dict[str, str] = {name: f"case_{number:0{width}d}" for number, name in enumerate(known, start=1)}
        longest_first = sorted((re.escape(name) for name in known if name), key=len, reverse=True)
        joined = "|".join(longest_first)
        self._names = re.compile(rf"(?<![^\W_])(?:{joined})(?![^\W_])") if joined else None

    def __getitem__(self, name: str) -> str:
        """The code of a case; ``case_unknown`` for any other name."""
        return self.codes.get(name, "case_unknown")

    def redact(self, value: Any) -> Any:
        """Replace names of cases by codes and remove absolute paths, also inside texts and nested values."""
        if isinstance(value, str):
            text = _PATH.sub(PATH_WORD, value)
            return text if self._names is None else self._names.sub(lambda name: self.codes[name.group()], text)
        if isinstance(value, Mapping):
            return {self.redact(key): self.redact(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.redact(inner) for inner in value]
        return value


def anonymous_config(config: Mapping[str, Any], codes: CaseCodes) -> dict[str, Any]:
    """Return a bundle's config without the machine's paths, and with codes for the validation cases.

    Example:
        >>> anonymous_config({"dataset_dir": "/data/x", "validation_cases": ["b"], "epochs": 3}, CaseCodes("ab"))
        {'dataset_dir': '.', 'validation_cases': ['case_002'], 'epochs': 3}
    """
    changed: dict[str, Any] = _without_paths(config)
    if "dataset_dir" in changed:
        changed["dataset_dir"] = "."
    if "://" in str(changed.get("tracking_uri") or "").split("$")[0]:  # the next user logs to another server
        changed["tracking_uri"] = ""
    if isinstance(changed.get("validation_cases"), list):
        changed["validation_cases"] = [codes[str(name)] for name in changed["validation_cases"]]
    if changed.get("skip_cases"):
        changed["skip_cases"] = [f"left out {number}" for number, _ in enumerate(changed["skip_cases"], start=1)]
    return changed


def text_files(bundle: Path, codes: CaseCodes) -> dict[str, str]:
    """Return configs, docs and licence of a bundle by their path in it, without paths and names of cases."""
    files: dict[str, str] = {}
    for name, text in bundle_texts(bundle).items():
        if name.endswith(".json"):
            content = json.loads(text)
            if name == "docs/fingerprint.json":
                content = _anonymous_fingerprint(content, codes)
            elif name == CHANGES:
                content = _anonymous_changes(content, codes)
            else:
                content = anonymous_config(content, codes)
            text = json.dumps(content, indent=2, ensure_ascii=False)  # noqa: PLW2901
        files[name] = text
    return files


def pack_bundle(bundle: Path, codes: CaseCodes) -> bytes:
    """Return a bundle with its weights as a ZIP file; equal bundles give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in text_files(bundle, codes).items():
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
        for path in sorted(bundle.glob("models/*.pt")):
            if path.name not in NEVER_PACKED:  # weights do not compress
                archive.writestr(zipfile.ZipInfo(f"models/{path.name}"), path.read_bytes(), zipfile.ZIP_STORED)
    return buffer.getvalue()


def _anonymous_fingerprint(content: dict[str, Any], codes: CaseCodes) -> dict[str, Any]:
    cases = [codes[str(name)] for name in content.get("cases", ())]
    # why a case is broken names its files; others only need to know that there are such cases
    broken = {f"left out {number}": "" for number, _ in enumerate(content.get("broken", ()), start=1)}
    return {**content, "cases": cases, "broken": broken}


def _anonymous_changes(content: dict[str, Any], codes: CaseCodes) -> dict[str, Any]:
    content = anonymous_config(content, codes)
    content.pop("written", None)
    changed = {
        name: [anonymous_config({name: value}, codes)[name] for value in values]
        for name, values in content.get("changed", {}).items()
    }
    return {**content, "changed": changed}


def _without_paths(value: Any) -> Any:
    if isinstance(value, str):
        is_path = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute() or value.startswith("~/")
        return PATH_WORD if is_path or "sqlite:///" in value else value
    if isinstance(value, Mapping):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    return value
