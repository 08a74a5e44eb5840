"""The ZIP file of a bundle for MONAI's commands and the model zoo."""

import hashlib
import io
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.utils import ensure_tuple

from medunet.bundle import verify_bundle
from medunet.bundle.explain import CHANGES
from medunet.config import read_json, to_json
from medunet.errors import ConfigError
from medunet.files import require_new, write_atomically
from medunet.prediction.configuration import parse_inference
from medunet.runtime import load_checkpoint
from medunet.tracking import CaseCodes
from medunet.tracking.anonymous import PATH_WORD, text_files, without_paths, zip_folder
from medunet.trust import record_weights, require_trust

from .exporting import export_bundle

ZOO_FILE_BYTES = 25 << 20  # the model zoo's limit per file; larger files are linked in `large_files.yml`
SERVER = "tracking_uri"  # replaced unless it is an expression, as in the shipped bundles
# config ids with values of this machine, and the values that replace them
PERSONAL: Mapping[str, Any] = {
    "dataset_dir": ".",
    "bundle_root": ".",
    "store_dir": None,
    "init_from": None,
    "split": [],
    "validation_cases": [],
}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_VERSION = re.compile(r"_v\d[\w.]*$")


@dataclass(frozen=True)
class Package:
    """A packed bundle."""

    path: Path
    name: str  # folder in the file
    files: tuple[str, ...]  # paths in that folder
    sha256: str  # of the file
    sha1: str  # of the file, for the zoo's list of checksums
    remarks: tuple[str, ...] = ()  # sentences for the person who publishes the file


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
    by :func:`medunet.bundle.verify_bundle` before the file gets its name. Equal bundles give equal bytes.

    Args:
        bundle: folder of a bundle or run with weights.
        output: file to write, `NAME.zip` or `NAME_vVERSION.zip`.
        name: folder in the file. Default: from the name of the file.
        torchscript: also write `models/model.ts`, compared as :func:`export_bundle` does.
        overwrite: replace an existing file.
        trust: pack a bundle that could run its own code.

    Raises:
        SecurityError: an untrusted bundle.
        DataError: no weights, or an existing file.
        ConfigError: invalid name, version missing in the changelog, or a failed check.
    """
    if output.suffix != ".zip":
        raise ConfigError("the suffix of a package must be .zip", file=output, received=output.suffix or "none")
    require_new(output, force=overwrite)
    name = name or _VERSION.sub("", output.stem)
    if not _NAME.fullmatch(name):
        raise ConfigError("invalid name of a bundle", received=name, expected="letters, digits, _ - and .")
    verdict = require_trust(bundle, trust=trust)
    metadata = read_json(bundle / "configs" / "metadata.json")
    version, changelog = metadata.get("version"), metadata.get("changelog", {})
    if version not in changelog:
        cause = "the changelog in metadata.json must have an entry for the version"
        raise ConfigError(cause, file=bundle, received=version, expected=", ".join(changelog) or "an entry")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        for path, text in _texts(bundle).items():
            write_atomically(folder / path, text)
        for file, content in _weights(bundle, trust=trust).items():
            write_atomically(folder / "models" / file, content)
        record_weights(folder, to_text=to_json)
        # a known bundle stays known without its paths; only expressions approved by --trust need it again
        faults = {key: fault for key, fault in verify_bundle(folder, trust=verdict.reason != "known").items() if fault}
        if faults:
            text = "; ".join(f"{key}: {fault}" for key, fault in faults.items())
            raise ConfigError(f"the bundle fails a check: {text}", file=bundle)
        if torchscript:
            export_bundle(bundle, folder / "models" / "model.ts", to="torchscript", trust=trust)
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        archive = zip_folder(Path(temporary))
        remarks = tuple(_remarks(bundle, folder, files))
    write_atomically(output, archive, overwrite=overwrite)
    sha256, sha1 = (hashlib.new(kind, archive, usedforsecurity=False).hexdigest() for kind in ("sha256", "sha1"))
    return Package(output, name, tuple(files), sha256, sha1, remarks)


def _texts(bundle: Path) -> dict[str, str]:
    """Return configs, docs and licence without private values."""
    fingerprint = bundle / "docs" / "fingerprint.json"
    cases = read_json(fingerprint).get("cases", ()) if fingerprint.is_file() else ()
    files = text_files(bundle, CaseCodes(map(str, cases)))
    for path, text in files.items():
        if path.endswith(".json"):
            files[path] = to_json(_without_personal(path, json.loads(text)))
        elif path.startswith("docs/"):
            files[path] = without_paths(text)
    return files


def _without_personal(path: str, content: dict[str, Any]) -> Mapping[str, Any]:
    if path == "configs/metadata.json":
        return {key: value for key, value in content.items() if key != "weights"}
    if path.startswith("configs/"):
        server = {} if str(content.get(SERVER, "$")).startswith("$") else {SERVER: ""}
        return {key: PERSONAL.get(key, value) for key, value in content.items()} | server
    if path == CHANGES:
        changed = content.get("changed", {}).items()
        content["changed"] = {key: pair for key, pair in changed if key not in {SERVER, *PERSONAL}}
    elif "failed_cases" in content:
        content["failed_cases"] = {f"case {number}": "" for number, _ in enumerate(content["failed_cases"], 1)}
    return content


def _weights(bundle: Path, *, trust: bool) -> dict[str, bytes]:
    """Return the weights files of `inference.json`, each as a plain state dictionary."""
    parser = parse_inference(bundle, device=torch.device("cpu"), trust=trust)
    weights = {}
    for path in map(Path, ensure_tuple(parser.get_parsed_content("ckpt_path"))):
        if path.parent.resolve() != (bundle / "models").resolve():
            raise ConfigError("weights must be in the bundle's models/", file=bundle, received=path.name)
        content = load_checkpoint(path)
        buffer = io.BytesIO()  # torch.save would write the name of a file into it
        torch.save({key: value.contiguous() for key, value in content.get("model", content).items()}, buffer)
        weights[path.name] = buffer.getvalue()
    return weights


def _remarks(bundle: Path, folder: Path, files: list[str]) -> Iterator[str]:
    if large := [file for file in files if (folder / file).stat().st_size > ZOO_FILE_BYTES]:
        yield f"the model zoo wants a link in large_files.yml for files over 25 MB: {', '.join(large)}"
    if "models/model.pt" not in files:
        yield "an ensemble has no models/model.pt, which the model zoo prefers; MONAI's commands run it"
    if hidden := [file for file in files if file.endswith(".json") and PATH_WORD in (folder / file).read_text("utf-8")]:
        yield f"check {', '.join(hidden)}: {PATH_WORD} replaces a path of this machine"
    known = {"configs", "docs", "models", "LICENSE", "eval"}
    others = sorted(path.name for path in bundle.iterdir() if path.name not in known and not path.name.startswith("."))
    if others:
        yield f"left out: {', '.join(others)}"
