"""The ZIP file of a bundle that MONAI's commands and the model zoo's checks take."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medunet.bundle import verify_bundle
from medunet.bundle.explain import CHANGES
from medunet.bundle.specialise import WRITTEN
from medunet.config import read_json, to_json
from medunet.errors import ConfigError, DataError
from medunet.files import write_atomically
from medunet.prediction.configuration import parse_inference
from medunet.runtime import load_checkpoint
from medunet.tracking import CaseCodes
from medunet.tracking.anonymous import PATH_WORD, text_files
from medunet.trust import record_weights, require_trust

from .exporting import export_bundle

ZOO_FILE_BYTES = 25 << 20
"""The model zoo's limit for a file in its repository; what is larger is linked to in `large_files.yml`."""

EARLIEST = (1980, 1, 1, 0, 0, 0)
"""Time of every entry: the first that the format knows, so that equal bundles give equal bytes."""

PERSONAL: Mapping[str, Any] = {
    "dataset_dir": ".",
    "bundle_root": ".",
    "store_dir": None,
    "init_from": None,
    "validation_cases": [],
}
"""Ids whose values are the maker's own, and what stands there instead."""

SERVER = "tracking_uri"
"""Id of the address that the maker's trainings report to; an expression, such as that of the shipped bundles, stays."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_VERSION = re.compile(r"_v\d[\w.]*$")


@dataclass(frozen=True)
class Package:
    """What was packed.

    Args:
        path: the file.
        name: of the folder in it.
        files: their paths in that folder.
        sha256: of the file.
        sha1: the same; the zoo's list of checksums has this one.
        remarks: what who publishes it should know, a sentence each.
    """

    path: Path
    name: str
    files: tuple[str, ...]
    sha256: str
    sha1: str
    remarks: tuple[str, ...] = ()


def package_bundle(
    bundle: Path,
    output: Path,
    *,
    name: str | None = None,
    torchscript: bool = False,
    overwrite: bool = False,
    trust: bool = False,
) -> Package:
    """Pack a bundle's configs, docs, licence and weights; no other file, no path and no case of this machine.

    Weights are a plain state dictionary, which MONAI's `ckpt_export` loads without being told of a key. What is packed
    is verified as :func:`medunet.bundle.verify_bundle` does before the file gets its name. Equal bundles give equal
    bytes.

    Args:
        bundle: folder of a bundle or run with weights.
        output: the file, `NAME.zip` or `NAME_vVERSION.zip`.
        name: of the folder in it; by default as the file says.
        torchscript: also write `models/model.ts`, compared as :func:`export_bundle` does.
        overwrite: replace a file that exists.
        trust: of a bundle that could run code of its own, see :func:`medunet.trust.require_trust`.

    Raises:
        SecurityError: the bundle is not trusted.
        DataError: no weights, or a file that exists.
        ConfigError: an impossible name, a version without a word in the changelog, or a bundle that fails a check.
    """
    if output.suffix != ".zip":
        raise ConfigError("a package is a .zip", file=output, received=output.suffix or "no ending")
    if output.exists() and not overwrite:
        raise DataError("exists already", file=output, remedy="choose another name, or repeat with --force")
    chosen = name or _VERSION.sub("", output.stem)
    if not _NAME.fullmatch(chosen):
        raise ConfigError("not a name for a bundle", received=chosen, expected="letters, digits, _ - and .")
    verdict = require_trust(bundle, trust=trust)
    _check_version(bundle)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / chosen
        for path, text in _texts(bundle).items():
            write_atomically(folder / path, text)
        for file, content in _weights(bundle, trust=trust).items():
            write_atomically(folder / "models" / file, content)
        record_weights(folder, to_text=to_json)
        # what was trusted stays so without its paths; only expressions that were trusted by word need the word again
        faults = {key: fault for key, fault in verify_bundle(folder, trust=verdict.reason != "known").items() if fault}
        if faults:
            told = "; ".join(f"{key}: {fault}" for key, fault in faults.items())
            raise ConfigError(f"the bundle fails a check: {told}", file=bundle, remedy="medunet bundle verify")
        if torchscript:
            export_bundle(bundle, folder / "models" / "model.ts", to="torchscript", trust=trust)
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        content = _zip(folder, files)
        remarks = tuple(_remarks(bundle, folder, files))
    write_atomically(output, content, overwrite=overwrite)
    sha256, sha1 = (hashlib.new(kind, content, usedforsecurity=False).hexdigest() for kind in ("sha256", "sha1"))
    return Package(output, chosen, tuple(files), sha256, sha1, remarks)


def _check_version(bundle: Path) -> None:
    metadata = read_json(bundle / "configs" / "metadata.json")
    version, changes = metadata.get("version"), metadata.get("changelog", {})
    if version not in changes:
        raise ConfigError(
            "the changelog in metadata.json has no word about the version",
            file=bundle,
            received=version,
            expected=", ".join(changes) or "an entry",
            remedy="write a line about it into configs/metadata.json",
        )


def _texts(bundle: Path) -> dict[str, str]:
    """Configs, docs and licence as they may be read by everybody."""
    files = text_files(bundle, CaseCodes(_case_names(bundle)))
    no_case = CaseCodes(())  # a case may be called like a word of the docs
    for path, text in files.items():
        if path.endswith(".json"):
            content = json.loads(text)
            if Path(path).parent.name == "configs":
                content = _public(content) if path != "configs/metadata.json" else _without_weights(content)
            elif path == CHANGES:
                content.pop(WRITTEN, None)
                own = {SERVER, *PERSONAL}
                content["changed"] = {key: pair for key, pair in content.get("changed", {}).items() if key not in own}
            elif "failed_cases" in content:
                content["failed_cases"] = {f"case {number}": "" for number, _ in enumerate(content["failed_cases"], 1)}
            files[path] = to_json(content)
        elif path.startswith("docs/"):
            files[path] = str(no_case.redact(text))
    return files


def _case_names(bundle: Path) -> set[str]:
    path = bundle / "docs" / "fingerprint.json"
    return set(map(str, read_json(path).get("cases", ()))) if path.is_file() else set()


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without its maker's folders, servers and division of cases."""
    changed = {key: PERSONAL.get(key, value) for key, value in config.items()}
    if SERVER in changed and not str(changed[SERVER]).startswith("$"):
        changed[SERVER] = ""
    return changed


def _without_weights(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key != "weights"}


def _weights(bundle: Path, *, trust: bool) -> dict[str, bytes]:
    """The files that `inference.json` loads, each a plain state dictionary."""
    parser = parse_inference(bundle, device=torch.device("cpu"), trust=trust)
    paths = parser.get_parsed_content("ckpt_path")
    found = {}
    for path in map(Path, [paths] if isinstance(paths, str) else paths):
        if path.parent.resolve() != (bundle / "models").resolve():
            raise ConfigError("weights lie outside of the bundle's models/", file=bundle, received=path.name)
        content = load_checkpoint(path)
        state = content.get("model", content)
        buffer = io.BytesIO()  # into a file torch.save would write that file's name
        torch.save({key: value.contiguous() for key, value in state.items()}, buffer)
        found[path.name] = buffer.getvalue()
    return found


def _zip(folder: Path, files: list[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in files:
            info = zipfile.ZipInfo(f"{folder.name}/{file}", EARLIEST)
            info.create_system, info.external_attr = 3, 0o644 << 16
            # weights are noise to a compressor
            kind = zipfile.ZIP_STORED if file.startswith("models/") else zipfile.ZIP_DEFLATED
            archive.writestr(info, (folder / file).read_bytes(), kind)
    return buffer.getvalue()


def _remarks(bundle: Path, folder: Path, files: list[str]) -> Iterator[str]:
    large = [file for file in files if (folder / file).stat().st_size > ZOO_FILE_BYTES]
    if large:
        yield f"beyond the model zoo's 25 MB a file, which then wants a link in large_files.yml: {', '.join(large)}"
    if "models/model.pt" not in files:
        yield "an ensemble has no models/model.pt, which the model zoo prefers; MONAI's commands run it"
    hidden = [file for file in files if file.endswith(".json") and PATH_WORD in (folder / file).read_text("utf-8")]
    if hidden:
        yield f"a path of this machine was replaced by {PATH_WORD} in {', '.join(hidden)}; look whether it is needed"
    known = {"configs", "docs", "models", "LICENSE", "eval"}
    others = sorted(path.name for path in bundle.iterdir() if path.name not in known and not path.name.startswith("."))
    if others:
        yield f"left out: {', '.join(others)}"
