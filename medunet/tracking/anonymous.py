"""A bundle as it may leave the machine: its configs, docs and weights, without paths and names of cases."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from medunet.resources import bundle_texts

from .case_codes import PATH_WORD, CaseCodes

NEVER_PACKED = ("last.pt", "previous.pt")
"""What only continuing needs."""

CHANGES = "docs/changes.json"
"""What a run has changed of the bundle that it was made of."""

_LEFT_OUT = re.compile(r"(Cases that were left out:\n\n)(?:- .*\n)+")
"""The part of a planned bundle's docs that names cases."""


def anonymous_config(config: Mapping[str, Any], codes: CaseCodes) -> dict[str, Any]:
    """A bundle's config without the machine's paths and with codes for the cases that validate.

    Example:
        >>> anonymous_config({"dataset_dir": "/data/x", "validation_cases": ["b"], "epochs": 3}, CaseCodes("ab"))
        {'dataset_dir': '.', 'validation_cases': ['case_002'], 'epochs': 3}
    """
    changed: dict[str, Any] = _without_paths(config)
    if "dataset_dir" in changed:
        changed["dataset_dir"] = "."
    if "://" in str(changed.get("tracking_uri") or "").split("$")[0]:  # where others log to is theirs to say
        changed["tracking_uri"] = ""
    if isinstance(changed.get("validation_cases"), list):
        changed["validation_cases"] = [codes[str(name)] for name in changed["validation_cases"]]
    if changed.get("skip_cases"):
        changed["skip_cases"] = [f"left out {number}" for number, _ in enumerate(changed["skip_cases"], start=1)]
    return changed


def anonymous_fingerprint(text: str, codes: CaseCodes) -> str:
    """A plan's fingerprint with codes for the cases."""
    content = json.loads(text)
    content["cases"] = [codes[str(name)] for name in content.get("cases", ())]
    # what is wrong with a case names its files; that there are such cases is all that others need
    content["broken"] = {f"left out {number}": "" for number, _ in enumerate(content.get("broken", ()), start=1)}
    return json.dumps(content, indent=1, ensure_ascii=False)


def anonymous_changes(changes: Mapping[str, list[Any]], codes: CaseCodes) -> dict[str, list[Any]]:
    """What a run has changed of its preset, ``{id: [preset, run]}``, as `anonymous_config` shows values.

    Example:
        >>> anonymous_changes({"validation_cases": [[], ["b"]], "epochs": [60, 3]}, CaseCodes("ab"))
        {'validation_cases': [[], ['case_002']], 'epochs': [60, 3]}
    """
    return {
        name: [anonymous_config({name: value}, codes)[name] for value in values] for name, values in changes.items()
    }


def text_files(bundle: Path, codes: CaseCodes) -> dict[str, str]:
    """Configs, docs and licence of a bundle by their path in it, fit to be shown."""
    files: dict[str, str] = {}
    for name, original in bundle_texts(bundle).items():
        text = original
        if name == "docs/fingerprint.json":
            text = anonymous_fingerprint(text, codes)
        elif name == CHANGES:
            content: dict[str, Any] = anonymous_config(json.loads(text), codes)
            content.pop("written", None)
            content["changed"] = anonymous_changes(content.get("changed", {}), codes)
            text = json.dumps(content, indent=2, ensure_ascii=False)
        elif name.endswith(".json"):
            text = json.dumps(anonymous_config(json.loads(text), codes), indent=2, ensure_ascii=False)
        elif name.startswith("docs/"):
            text = _LEFT_OUT.sub(r"\1- not named here\n", text)
        files[name] = text
    return files


def pack_bundle(bundle: Path, codes: CaseCodes) -> bytes:
    """A bundle with its weights as a ZIP file; equal bundles give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in text_files(bundle, codes).items():
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
        for path in sorted(bundle.glob("models/*.pt")):
            if path.name not in NEVER_PACKED:  # weights are noise to a compressor
                archive.writestr(zipfile.ZipInfo(f"models/{path.name}"), path.read_bytes(), zipfile.ZIP_STORED)
    return buffer.getvalue()


def _without_paths(value: Any) -> Any:
    if isinstance(value, str):
        is_path = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute() or value.startswith("~/")
        return PATH_WORD if is_path or "sqlite:///" in value else value
    if isinstance(value, Mapping):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    return value
