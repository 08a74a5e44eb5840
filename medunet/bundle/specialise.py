"""Copy a bundle with changed values; the copy is complete."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medunet.bundle.check import check_config
from medunet.bundle.explain import CHANGES, PLAN_FILE, settings
from medunet.bundle.read import checked_config, read_own
from medunet.bundle.render import data_format, differences, render_docs, write_bundle
from medunet.config import Overlay, apply_all, get_id, leaves, read_json, to_json
from medunet.datasets import shown
from medunet.errors import ConfigError, DataError
from medunet.files import reject_other_files
from medunet.planning import Decision
from medunet.prediction.configuration import CALIBRATION, TEMPERATURE
from medunet.resources import WORKFLOWS, bundle_texts, preset_names
from medunet.trust import Verdict, adopt, require_trust

WRITTEN = "written"  # key in `docs/changes.json`: SHA-256 of each text of the bundle as medunet wrote it


def specialise(
    bundle: Path,
    output: Path,
    overlay: Overlay,
    *,
    data: Path | None = None,
    presets: Sequence[str] = (),
    trust: bool = False,
) -> Path:
    """Copy a bundle's configs, docs and licence, with values changed by id. Weights are not copied.

    Args:
        bundle: Folder of the bundle.
        output: Folder of the new bundle. It may exist if it has no configs, or the same ones.
        overlay: New values by id (`epochs`, `network_def::channels`, `augment#noise#prob`).
        data: Data set to train on and to evaluate with. Default: that of the bundle.
        presets: Names of overlays of the bundle that are applied before `overlay`.
        trust: Approve a bundle that could run its own code.

    Returns:
        The output folder.

    Raises:
        SecurityError: The bundle is not trusted.
        ConfigError: An id is unknown, or a value is impossible.
        DataError: The output folder contains other files or another configuration.
    """
    write_specialised(require_trust(bundle, trust=trust), output, overlay, data=data, presets=presets)
    return output


def write_specialised(
    verdict: Verdict,
    output: Path,
    overlay: Overlay,
    *,
    data: Path | None = None,
    presets: Sequence[str] = (),
    is_run: bool = False,
    resume: bool = False,
) -> dict[str, dict[str, Any]]:
    """Write a bundle as `specialise` does, and return its configs, which follow from those that the trust check read.

    `is_run` replaces a run that has not finished an epoch. `resume` accepts more epochs for a run that has.
    """
    reject_other_files(output, own="configs")
    trained = output / "configs" / "train.json"
    if resume and trained.is_file() and (objects := read_json(trained).get("objects")):
        overlay = {**overlay, "objects": objects}  # which training chose
    configs, files = derive(verdict, overlay, data=data, presets=presets)
    metadata = output / "configs" / "metadata.json"
    if metadata.is_file() and {**read_json(metadata), "weights": 0} == {**configs["metadata"], "weights": 0}:
        files["configs/metadata.json"] = metadata.read_text(encoding="utf-8")  # with the hashes of a run's weights
    # a killed process may have written some of the files; the others are added, temporary files are ignored
    other = [name for name in differences(files, output) if (output / name).exists()]
    other = [name for name in other if not Path(name).name.startswith(".")]
    if other and is_run and _is_untrained(output):
        _reject_edited(output)
    elif other:
        _reject_other_values(output, configs, may_lengthen=resume)
        is_docs = {name: not name.startswith("configs/") and name != CHANGES for name in files}
        files = {name: text for name, text in files.items() if not (is_docs[name] and (output / name).exists())}
    is_new = other or not all((output / name).exists() for name in files)
    write_bundle(files, output)
    if is_new:
        adopt(output)
    return configs


def derive(
    verdict: Verdict,
    overlay: Overlay,
    *,
    data: Path | None = None,
    presets: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
    decisions: Sequence[Decision] | None = None,
    define: bool = False,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return the configs by name and the texts by path of a bundle that `specialise` would write.

    `metadata` replaces entries of the other bundle's `metadata.json`, and `decisions` those in its `docs/plan.json`.
    With `define`, unknown ids are added.
    """
    bundle = verdict.bundle
    read_own(bundle, "train")
    configs = {name: checked_config(verdict, name) for name in WORKFLOWS}
    for config in configs.values():
        (get_id(config, "prob_inferer") or {}).pop("temperature", None)
    known = preset_names(Path(path).stem for path in verdict.configs if Path(path).parent == Path("configs"))
    for name in presets:
        if name not in known:
            expected = known or "none"
            raise ConfigError("the bundle has no such preset", file=bundle, received=name, expected=expected)
        configs = apply_all(configs, checked_config(verdict, name), define=["train"])
    configs = apply_all(configs, overlay, define=WORKFLOWS if define else ())
    if data is not None:
        for name in ("train", "evaluate"):
            configs[name]["dataset_dir"] = str(data.resolve())
    for name, config in configs.items():
        check_config(config, source=f"{name}.json")
    train = configs["train"]
    names, values = train["label_names"], train["label_values"]
    if isinstance(names, list) and isinstance(values, list) and len(names) != len(values):
        raise ConfigError("label_names and label_values must have the same length", received=f"{names} and {values}")
    texts = bundle_texts(bundle)
    if decisions is not None:
        plan = {"decisions": [asdict(decision) for decision in decisions]}
        texts[PLAN_FILE] = json.dumps(plan, indent=1, ensure_ascii=False) + "\n"
    about = {key: value for key, value in checked_config(verdict, "metadata").items() if key != "weights"}
    about |= metadata or {}
    files = {f"configs/{name}.json": to_json(config) for name, config in configs.items()}
    changes = _changes(bundle, train, presets=presets)
    try:
        about["network_data_format"] = _updated_format(about["network_data_format"], train)
        files["docs/README.md"] = render_docs(about, train, settings(train, {**texts, CHANGES: json.dumps(changes)}))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        cause = "train.json and metadata.json do not describe the input and output of a network"
        raise ConfigError(cause, file=bundle, received=f"{type(error).__name__}: {error}") from error
    files["configs/metadata.json"] = to_json(about)
    for name, text in texts.items():
        is_config = name.startswith("configs/") and name.endswith(".json")
        if name in files or name == CALIBRATION or (is_config and name not in verdict.configs):
            continue
        if is_config and isinstance(verdict.configs[name], dict):  # the file may have changed since
            configs[Path(name).stem] = checked_config(verdict, Path(name).stem)
            files[name] = to_json(configs[Path(name).stem])
        else:
            files[name] = text
    files[CHANGES] = to_json({**changes, WRITTEN: _digests(files)})
    return {**configs, "metadata": about}, files


def _updated_format(old: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    """Return `network_data_format` with the sizes and classes of a training config."""
    image = old["inputs"]["image"]
    size = train["patch_size"] if isinstance(train["patch_size"], list) else image["spatial_shape"]
    is_same = train["network_def"].get("padding", "same") == "same"
    output_size = size if is_same else old["outputs"]["pred"]["spatial_shape"]
    channels = image.get("channel_def", {}).values()
    return data_format(train, modality=image["modality"], size=size, output_size=output_size, channels=channels)


def _changes(bundle: Path, train: Mapping[str, Any], *, presets: Sequence[str]) -> dict[str, Any]:
    """Return what a training config changes in the shipped bundle it descends from: `[old, new]` by id."""
    origin: dict[str, Any] = {"bundle": bundle.resolve().name, "presets": [], "changed": {}}
    known = read_json(path) if (path := bundle / CHANGES).is_file() else {}
    if isinstance(known.get("changed"), dict) and isinstance(known.get("presets"), list):
        origin |= known
    changed = {id_: pair for id_, pair in origin["changed"].items() if isinstance(pair, list) and len(pair) == 2}
    old, new = leaves(read_json(bundle / "configs" / "train.json")), leaves(train)
    for id_ in sorted({*old, *new} - {"dataset_dir", "skip_cases", "split"}):  # they name data
        there, here = changed.pop(id_, [old.get(id_)])[0], new.get(id_)
        if there != here:
            changed[id_] = [there, here]
    return {**origin, "presets": [*origin["presets"], *presets], "changed": changed}


def _is_untrained(folder: Path) -> bool:
    """Return whether a folder contains a run that has not finished an epoch, such as one that failed at its start."""
    train = folder / "configs" / "train.json"
    weights = any((folder / "models").glob("*.pt"))
    return not weights and train.is_file() and Path(str(read_json(train).get("dataset_dir", ""))).is_absolute()


def _digests(files: Mapping[str, str]) -> dict[str, str]:
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items() if name != CHANGES}


def _reject_edited(folder: Path) -> None:
    """Reject replacing a run whose texts were edited after medunet wrote them."""
    written = read_json(path).get(WRITTEN) if (path := folder / CHANGES).is_file() else None
    known = written if isinstance(written, dict) else {}
    if edited := [name for name, digest in _digests(bundle_texts(folder)).items() if digest != known.get(name)]:
        cause = "the output folder contains a run that was edited"
        raise DataError(
            cause, file=folder, received=shown(edited), remedy="give another --output, or remove the folder"
        )


def _reject_other_values(folder: Path, configs: Mapping[str, Mapping[str, Any]], *, may_lengthen: bool) -> None:
    """Reject new values for a trained run, except more epochs; a calibration ends with its weights."""
    different: dict[str, str] = {}
    for name in WORKFLOWS:
        path = folder / "configs" / f"{name}.json"
        old, new = leaves(read_json(path)) if path.is_file() else {}, leaves(configs[name])
        for id_ in sorted({*old, *new}):
            before, after = old.get(id_), new.get(id_)
            is_longer = id_ == "epochs" and isinstance(before, int) and isinstance(after, int) and after > before
            if before != after and id_ != TEMPERATURE and not (may_lengthen and is_longer):
                different.setdefault(id_, f"{id_}: {after}, there {before}")
    if different:
        cause = "the output folder contains a run with other values"
        received = shown(different.values(), separator="; ")
        remedy = "give another --output, or --resume with the values of the run; only epochs may be raised"
        raise DataError(cause, file=folder, received=received, remedy=remedy)
