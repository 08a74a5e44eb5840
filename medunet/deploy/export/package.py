"""The ZIP file of a bundle for MONAI's commands and the model zoo."""

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

ZOO_FILE_BYTES = 25 << 20  # the model zoo's limit per file; larger files are linked in `large_files.yml`
EARLIEST = (1980, 1, 1, 0, 0, 0)  # time of every entry: equal bundles give equal bytes

PERSONAL: Mapping[str, Any] = {
    "dataset_dir": ".",
    "bundle_root": ".",
    "store_dir": None,
    "init_from": None,
    "validation_cases": [],
}
"""Config ids with values of this machine, and the values that replace them."""

SERVER = "tracking_uri"  # replaced unless it is an expression, as in the shipped bundles
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_VERSION = re.compile(r"_v\d[\w.]*$")


@dataclass(frozen=True)
class Package:
    """A packed bundle.

    Args:
        path: the file.
        name: folder in the file.
        files: paths in that folder.
        sha256: SHA-256 of the file.
        sha1: SHA-1 of the file, which the zoo's list of checksums uses.
        remarks: sentences for the person who publishes the file.
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
    """Pack a bundle's configs, docs, licence and weights, without paths and cases of this machine.

    Weights are a plain state dictionary, which MONAI's `ckpt_export` loads without a key. The packed bundle is verified
    as :func:`medunet.bundle.verify_bundle` does before the file gets its name. Equal bundles give equal bytes.

    Args:
        bundle: folder of a bundle or run with weights.
        output: file to write, `NAME.zip` or `NAME_vVERSION.zip`.
        name: folder in the file. Default: from the name of the file.
        torchscript: also write `models/model.ts`, compared as :func:`export_bundle` does.
        overwrite: replace an existing file.
        trust: pack bundles that could run their own code, see :func:`medunet.trust.require_trust`.

    Raises:
        SecurityError: an untrusted bundle.
        DataError: no weights, or an existing file.
        ConfigError: invalid name, version missing in the changelog, or a failed check.
    """
    if output.suffix != ".zip":
        raise ConfigError("the suffix of a package must be .zip", file=output, received=output.suffix or "none")
    if output.exists() and not overwrite:
        raise DataError("already exists", file=output, remedy="choose another name, or add --force")
    chosen = name or _VERSION.sub("", output.stem)
    if not _NAME.fullmatch(chosen):
        raise ConfigError("invalid name of a bundle", received=chosen, expected="letters, digits, _ - and .")
    verdict = require_trust(bundle, trust=trust)
    metadata = read_json(bundle / "configs" / "metadata.json")
    version, changelog = metadata.get("version"), metadata.get("changelog", {})
    if version not in changelog:
        raise ConfigError(
            "the changelog in metadata.json must have an entry for the version",
            file=bundle,
            received=version,
            expected=", ".join(changelog) or "an entry",
            remedy="add an entry to configs/metadata.json",
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / chosen
        for path, text in _texts(bundle).items():
            write_atomically(folder / path, text)
        for file, content in _weights(bundle, trust=trust).items():
            write_atomically(folder / "models" / file, content)
        record_weights(folder, to_text=to_json)
        # a known bundle stays known without its paths; only expressions approved by --trust need it again
        faults = {key: fault for key, fault in verify_bundle(folder, trust=verdict.reason != "known").items() if fault}
        if faults:
            text = "; ".join(f"{key}: {fault}" for key, fault in faults.items())
            raise ConfigError(f"the bundle fails a check: {text}", file=bundle, remedy="medunet bundle verify")
        if torchscript:
            export_bundle(bundle, folder / "models" / "model.ts", to="torchscript", trust=trust)
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        archive = _zip(folder, files)
        remarks = tuple(_remarks(bundle, folder, files))
    write_atomically(output, archive, overwrite=overwrite)
    sha256, sha1 = (hashlib.new(kind, archive, usedforsecurity=False).hexdigest() for kind in ("sha256", "sha1"))
    return Package(output, chosen, tuple(files), sha256, sha1, remarks)


def _texts(bundle: Path) -> dict[str, str]:
    """Return configs, docs and licence without private values."""
    fingerprint = bundle / "docs" / "fingerprint.json"
    cases = read_json(fingerprint).get("cases", ()) if fingerprint.is_file() else ()
    files = text_files(bundle, CaseCodes(set(map(str, cases))))
    paths_only = CaseCodes(())  # a case may have the name of a word in the docs
    for path, text in files.items():
        if path.endswith(".json"):
            content = json.loads(text)
            if path == "configs/metadata.json":
                content.pop("weights", None)
            elif path.startswith("configs/"):
                content = {key: PERSONAL.get(key, value) for key, value in content.items()}
                if not str(content.get(SERVER, "$")).startswith("$"):
                    content[SERVER] = ""
            elif path == CHANGES:
                content.pop(WRITTEN, None)
                changed = content.get("changed", {}).items()
                content["changed"] = {key: pair for key, pair in changed if key not in {SERVER, *PERSONAL}}
            elif "failed_cases" in content:
                content["failed_cases"] = {f"case {number}": "" for number, _ in enumerate(content["failed_cases"], 1)}
            files[path] = to_json(content)
        elif path.startswith("docs/"):
            files[path] = str(paths_only.redact(text))
    return files


def _weights(bundle: Path, *, trust: bool) -> dict[str, bytes]:
    """Return the weights files of `inference.json`, each as a plain state dictionary."""
    parser = parse_inference(bundle, device=torch.device("cpu"), trust=trust)
    paths = parser.get_parsed_content("ckpt_path")
    weights = {}
    for path in map(Path, [paths] if isinstance(paths, str) else paths):
        if path.parent.resolve() != (bundle / "models").resolve():
            raise ConfigError("weights must be in the bundle's models/", file=bundle, received=path.name)
        content = load_checkpoint(path)
        buffer = io.BytesIO()  # torch.save would write the name of a file into it
        torch.save({key: value.contiguous() for key, value in content.get("model", content).items()}, buffer)
        weights[path.name] = buffer.getvalue()
    return weights


def _zip(folder: Path, files: list[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in files:
            info = zipfile.ZipInfo(f"{folder.name}/{file}", EARLIEST)
            info.create_system, info.external_attr = 3, 0o644 << 16
            # weights cannot be compressed
            kind = zipfile.ZIP_STORED if file.startswith("models/") else zipfile.ZIP_DEFLATED
            archive.writestr(info, (folder / file).read_bytes(), kind)
    return buffer.getvalue()


def _remarks(bundle: Path, folder: Path, files: list[str]) -> Iterator[str]:
    large = [file for file in files if (folder / file).stat().st_size > ZOO_FILE_BYTES]
    if large:
        yield f"the model zoo wants a link in large_files.yml for files over 25 MB: {', '.join(large)}"
    if "models/model.pt" not in files:
        yield "an ensemble has no models/model.pt, which the model zoo prefers; MONAI's commands run it"
    hidden = [file for file in files if file.endswith(".json") and PATH_WORD in (folder / file).read_text("utf-8")]
    if hidden:
        yield f"check {', '.join(hidden)}: {PATH_WORD} replaces a path of this machine"
    known = {"configs", "docs", "models", "LICENSE", "eval"}
    others = sorted(path.name for path in bundle.iterdir() if path.name not in known and not path.name.startswith("."))
    if others:
        yield f"left out: {', '.join(others)}"
