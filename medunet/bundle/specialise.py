"""A bundle of one's own: a copy with some values changed, still self-contained."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medunet.bundle.check import check_config
from medunet.bundle.decisions import with_values
from medunet.bundle.read import WORKFLOWS, judged_config, preset_names, read_own
from medunet.bundle.render import data_format, differences, write_bundle
from medunet.config import apply_all, leaves, read_json, to_json
from medunet.errors import ConfigError, DataError, SecurityError
from medunet.files import reject_other_files
from medunet.resources import bundle_texts
from medunet.trust import Verdict, adopt, require_trust

CHANGES = "docs/changes.json"
"""In a bundle: the shipped bundle it comes from, and each value of its training that is other than there."""

MAX_NAMED = 5
"""Ids in one error message."""

WRITTEN = "written"
"""In the same file: SHA-256 of each text of the bundle as medunet wrote it."""


def specialise(
    bundle: Path,
    output: Path,
    changes: Mapping[str, Any],
    *,
    only: Mapping[str, Mapping[str, Any]] | None = None,
    presets: Sequence[str] = (),
    trust: bool = False,
) -> Path:
    """Copy a bundle's configs, docs and licence, with values changed by id; weights are not copied.

    Args:
        bundle: folder of the bundle.
        output: folder of the new one; may exist when it holds no configs or the same ones.
        changes: new values by id (``epochs``, ``network_def::channels``, ``augment#noise#prob``). Each is applied to
            every config that has the id.
        only: changes to one config, by its name (``train``, ``evaluate``, ``inference``).
        presets: overlays of the bundle (``configs/NAME.json``) that are written into its configs before the changes.
        trust: copy a bundle that could run code of its own, see :func:`medunet.trust.require_trust`.

    Returns:
        The output folder.

    Raises:
        SecurityError: the bundle is not trusted.
        ConfigError: an id that no config has, an impossible value.
        DataError: the output folder contains other files or another configuration.
    """
    write_specialised(bundle, output, changes, only=only, presets=presets, trust=trust)
    return output


def write_specialised(
    bundle: Path,
    output: Path,
    changes: Mapping[str, Any],
    *,
    only: Mapping[str, Mapping[str, Any]] | None = None,
    presets: Sequence[str] = (),
    trust: bool = False,
    is_run: bool = False,
    resume: bool = False,
) -> dict[str, dict[str, Any]]:
    """Do the same as :func:`specialise`, and return the configs that were written, by name.

    They are derived from the configs that passed the trust check, not from what the files may contain by now.

    Args:
        bundle: as in :func:`specialise`, as are output, changes, only, presets and trust.
        output: see bundle.
        changes: see bundle.
        only: see bundle.
        presets: see bundle.
        trust: see bundle.
        is_run: replace the configs of a run that has not finished an epoch.
        resume: accept more epochs for a run that has.
    """
    reject_other_files(output, own="configs")
    judged = require_trust(bundle, trust=trust)  # first of all: checking a target's arguments imports it
    read_own(bundle, "train")
    configs = {name: judged_config(judged, name) for name in WORKFLOWS}
    for name in presets:
        configs = apply_all(configs, _preset(judged, name), define="train")
    changed = apply_all(configs, changes)
    for name, own in (only or {}).items():
        changed |= apply_all({name: changed[name]}, own)
    for name, config in changed.items():
        check_config(config, source=f"{name}.json")
    files = {f"configs/{name}.json": to_json(config) for name, config in changed.items()}
    metadata = {key: value for key, value in judged_config(judged, "metadata").items() if key != "weights"}
    try:
        _update_metadata(metadata, changed)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            "train.json and metadata.json do not say what a network takes and gives",
            file=bundle,
            received=f"{type(error).__name__}: {error}",
            remedy="medunet bundle verify says more; or start from a shipped bundle",
        ) from error
    files["configs/metadata.json"] = _like_before(metadata, output / "configs" / "metadata.json")
    overlays: dict[str, dict[str, Any]] = {}
    texts = bundle_texts(bundle)
    files |= with_values(texts, changed["train"])
    for name, text in texts.items():
        if name in files:
            continue
        files[name] = text
        if name.startswith("configs/") and name.endswith(".json"):
            _refuse_other(text, judged, name)
            if isinstance(judged.configs[name], dict):
                overlays[Path(name).stem] = judged_config(judged, Path(name).stem)
    record = {**_changes(bundle, changed["train"], presets=presets), WRITTEN: _digests(files)}
    files = {CHANGES: to_json(record), **files}
    # a process that was killed while writing leaves some of the files: they are completed
    other = {name for name in _visible(differences(files, output)) if (output / name).exists()}
    if other and is_run and _is_untrained(output):
        _reject_edited(output)
    elif other:
        _reject_other_values(output, changed, may_lengthen=resume)
        # docs that somebody has edited stay as they are
        ours = {name for name in files if name.startswith("configs/") or not (output / name).exists()}
        files = {name: text for name, text in files.items() if name in ours | {CHANGES}}
    is_new = other or not all((output / name).exists() for name in files)
    write_bundle(files, output)
    if is_new:
        adopt(output)
    return {**overlays, **changed, "metadata": metadata}


def _reject_edited(folder: Path) -> None:
    """Reject a run to be replaced if somebody has edited it since medunet wrote it.

    Raises:
        DataError: with the names of the files; all, if it is not known how they were written.
    """
    written = read_json(path).get(WRITTEN) if (path := folder / CHANGES).is_file() else None
    digests = _digests(bundle_texts(folder))
    noted = written if isinstance(written, dict) else {}
    if edited := sorted(name for name, digest in digests.items() if digest != noted.get(name)):
        raise DataError(
            "the output folder contains a run that was edited",
            file=folder,
            received=", ".join(edited[:MAX_NAMED]) + (" ..." if len(edited) > MAX_NAMED else ""),
            remedy="give another --output, or remove the folder",
        )


def _digests(files: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of a bundle's texts, but for the file that records them."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items() if name != CHANGES}


def _is_untrained(folder: Path) -> bool:
    """Whether a folder contains a run that has not finished an epoch, such as one that was rejected at its start."""
    train = folder / "configs" / "train.json"
    weights = any((folder / "models").glob("*.pt"))
    return not weights and train.is_file() and Path(str(read_json(train).get("dataset_dir", ""))).is_absolute()


def _reject_other_values(folder: Path, configs: Mapping[str, Mapping[str, Any]], *, may_lengthen: bool) -> None:
    """Reject new values for a run that is trained, except more epochs.

    Raises:
        DataError: with the ids whose values differ.
    """
    found: dict[str, str] = {}
    for name, config in configs.items():
        path = folder / "configs" / f"{name}.json"
        old, new = leaves(read_json(path)) if path.is_file() else {}, leaves(config)
        for id_ in sorted({*old, *new}):
            before, after = old.get(id_), new.get(id_)
            is_longer = id_ == "epochs" and isinstance(before, int) and isinstance(after, int) and after > before
            if before != after and not (may_lengthen and is_longer):
                found.setdefault(id_, f"{id_}: {after}, there {before}")
    if found:
        raise DataError(
            "the output folder contains a run with other values",
            file=folder,
            received="; ".join(list(found.values())[:MAX_NAMED]) + (" ..." if len(found) > MAX_NAMED else ""),
            remedy="give another --output, or --resume with the values of the run; only epochs may be raised",
        )


def _refuse_other(text: str, judged: Verdict, name: str) -> None:
    if name in judged.configs and (content := judged.configs[name]) is None:
        return  # no plain JSON, and trusted by the user's word
    with contextlib.suppress(ValueError):
        if name in judged.configs and json.loads(text) == content:
            return
    raise SecurityError(
        "changed while it was read", file=judged.bundle / name, remedy="let nobody else write into the bundle"
    )


def _visible(names: Iterable[str]) -> Iterator[str]:
    """Without what killed writers have left."""
    return (name for name in names if not Path(name).name.startswith("."))


def _like_before(metadata: Mapping[str, Any], path: Path) -> str:
    """The text of metadata.json; as it stands where only the hashes of a run's own weights were added."""
    if path.is_file():
        before = read_json(path)
        before.pop("weights", None)
        if before == metadata:
            return path.read_text(encoding="utf-8")
    return to_json(metadata)


def _preset(verdict: Verdict, name: str) -> dict[str, Any]:
    """An overlay of a bundle: values by config id.

    Raises:
        ConfigError: the bundle has none of this name.
    """
    files = (Path(path) for path in verdict.configs)
    known = preset_names(file.stem for file in files if file.parent == Path("configs"))
    if name not in known:
        raise ConfigError("the bundle has no such preset", file=verdict.bundle, received=name, expected=known or "none")
    return judged_config(verdict, name)


def _changes(bundle: Path, train: Mapping[str, Any], *, presets: Sequence[str]) -> dict[str, Any]:
    """What a training config has otherwise than the shipped bundle it descends from: ``[there, here]`` by id."""
    path = bundle / CHANGES
    origin: dict[str, Any] = {"bundle": bundle.resolve().name, "presets": [], "changed": {}}
    known = read_json(path) if path.is_file() else {}
    if isinstance(known.get("changed"), dict) and isinstance(known.get("presets"), list):  # else somebody else's notes
        origin |= known
    found = {id_: pair for id_, pair in origin["changed"].items() if isinstance(pair, list) and len(pair) == 2}
    old, new = leaves(read_json(bundle / "configs" / "train.json")), leaves(train)
    for id_ in sorted({*old, *new} - {"dataset_dir", "skip_cases"}):  # what names data is nobody else's
        there, here = found.get(id_, [old.get(id_)])[0], new.get(id_)
        found.pop(id_, None)
        if there != here:
            found[id_] = [there, here]
    return {**origin, "presets": [*origin["presets"], *presets], "changed": found}


def _update_metadata(metadata: dict[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Let shapes and classes in the metadata follow the configs."""
    old = metadata["network_data_format"]
    train = configs["train"]
    same = train["network_def"].get("padding", "same") == "same"
    shape = old["inputs"]["image"]["spatial_shape"]
    patch = train["patch_size"]
    size = patch if isinstance(patch, list) else shape
    metadata["network_data_format"] = data_format(
        train,
        modality=old["inputs"]["image"]["modality"],
        network_size=size,
        output_size=size if same else old["outputs"]["pred"]["spatial_shape"],
    )
