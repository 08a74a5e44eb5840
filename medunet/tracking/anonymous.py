"""A bundle as it may leave the machine: configs, docs and weights without paths and case names."""

import io
import json
import re
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from medunet.files import write_atomically
from medunet.resources import bundle_texts

PATH_WORD = "(path)"  # replaces a path of this machine
NEVER_PACKED = ("last.pt", "previous.pt")  # needed only to resume
CHANGES = "docs/changes.json"  # differences between a run and the bundle that it was made from

# an absolute path of Unix, from the home folder, of Windows with a drive, or of a share
_PATH = re.compile(r"(?<![\w.@'/:+-])(?:[A-Za-z]:[\\/]|\\\\|~?/(?=[\w.~]))[^\s'\",;:)\]]*")


class CaseCodes(dict[str, str]):
    """Codes of cases by name, numbered in sorted order. Any other name has the code ``case_unknown``.

    File names may be those of patients, so a tracking server gets codes. The run's folder keeps the list.

    Args:
        names: names of all cases, in any order.

    Examples:
        >>> codes = CaseCodes(["Doe_John", "Doe_Jane"])
        >>> codes["Doe_John"], codes["Roe"]
        ('case_002', 'case_unknown')
    """

    def __init__(self, names: Iterable[str]) -> None:
        known = sorted(set(names))
        width = max(3, len(str(len(known))))
        super().__init__({name: f"case_{number:0{width}d}" for number, name in enumerate(known, start=1)})

    def __missing__(self, name: str) -> str:
        return "case_unknown"


def without_paths(text: str) -> str:
    """Replace the absolute paths in a text.

    Examples:
        >>> without_paths("trained on /home/me/Doe_Jane.nii.gz, see https://monai.io")
        'trained on (path), see https://monai.io'
    """
    return _PATH.sub(PATH_WORD, text)


def anonymous_config(config: Mapping[str, Any], codes: CaseCodes) -> dict[str, Any]:
    """Return a config without paths and split, and with codes for the validation cases."""
    changed: dict[str, Any] = _without_path_values(config)
    if "dataset_dir" in changed:
        changed["dataset_dir"] = "."
    if "://" in str(changed.get("tracking_uri") or "").split("$")[0]:  # the next user logs to another server
        changed["tracking_uri"] = ""
    if isinstance(changed.get("validation_cases"), list):
        changed["validation_cases"] = [codes[str(name)] for name in changed["validation_cases"]]
    if changed.get("split"):
        changed["split"] = []
    if changed.get("skip_cases"):
        changed["skip_cases"] = _numbered(changed["skip_cases"])
    return changed


def text_files(bundle: Path, codes: CaseCodes) -> dict[str, str]:
    """Return the configs, docs and licence of a bundle by path, without paths and case names in JSON files."""
    files = bundle_texts(bundle)
    special = {"docs/fingerprint.json": _anonymous_fingerprint, CHANGES: _anonymous_changes}
    for name, text in files.items():
        if name.endswith(".json"):
            content = special.get(name, anonymous_config)(json.loads(text), codes)
            files[name] = json.dumps(content, indent=2, ensure_ascii=False)
    return files


def copy_bundle(bundle: Path, folder: Path, codes: CaseCodes) -> None:
    """Copy a bundle's text files and weights into a folder, without paths and case names."""
    for name, text in text_files(bundle, codes).items():
        write_atomically(folder / name, text)
    (folder / "models").mkdir(parents=True, exist_ok=True)
    for path in bundle.glob("models/*.pt"):
        if path.name not in NEVER_PACKED:
            shutil.copyfile(path, folder / "models" / path.name)


def zip_folder(folder: Path) -> bytes:
    """Return a folder as a ZIP file; equal files give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()):
            info = zipfile.ZipInfo(name)  # with a constant date
            info.create_system, info.external_attr = 3, 0o644 << 16
            is_weights = PurePosixPath(name).parent.name == "models"  # weights do not compress
            compression = zipfile.ZIP_STORED if is_weights else zipfile.ZIP_DEFLATED
            archive.writestr(info, (folder / name).read_bytes(), compression)
    return buffer.getvalue()


def _anonymous_fingerprint(content: Mapping[str, Any], codes: CaseCodes) -> dict[str, Any]:
    cases = [codes[str(name)] for name in content.get("cases", ())]
    # the reasons name files; others only need the number of broken cases
    return {**content, "cases": cases, "broken": dict.fromkeys(_numbered(content.get("broken", ())), "")}


def _anonymous_changes(content: Mapping[str, Any], codes: CaseCodes) -> dict[str, Any]:
    content = anonymous_config(content, codes)
    content.pop("written", None)
    changed = {
        name: [anonymous_config({name: value}, codes)[name] for value in values]
        for name, values in content.get("changed", {}).items()
    }
    return {**content, "changed": changed}


def _numbered(cases: Iterable[Any]) -> list[str]:
    return [f"left out {number}" for number, _ in enumerate(cases, start=1)]


def _without_path_values(value: Any) -> Any:
    if isinstance(value, str):
        is_path = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute() or value.startswith("~/")
        return PATH_WORD if is_path or "sqlite:///" in value else value
    if isinstance(value, Mapping):
        return {key: _without_path_values(inner) for key, inner in value.items()}
    return [_without_path_values(inner) for inner in value] if isinstance(value, list) else value
