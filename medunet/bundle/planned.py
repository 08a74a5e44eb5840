"""Plan a bundle for a data set."""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medunet.bundle.render import write_bundle
from medunet.bundle.specialise import derive
from medunet.config import read_json, to_json
from medunet.datasets import open_dataset, regroup, shown
from medunet.errors import DataError, MedunetError
from medunet.files import check_target, claim, reject_other_files
from medunet.io import output_name
from medunet.io.options import DEFAULTS, ReadOptions
from medunet.notebook import Shown, Table
from medunet.planning import Fingerprint, Plan, fingerprint, fit_preset, plan
from medunet.resources import find_bundle, preset_names
from medunet.runtime import resolve_device
from medunet.trust import adopt, require_trust

FINGERPRINT_FILE = "docs/fingerprint.json"
OPTIONS_FILE = "docs/plan_options.json"  # what a plan was asked for, to recognise a repeated request
BUNDLE_BYTES = 4 << 20  # free space that a plan needs for the bundle and its fingerprint
_MODALITIES = {"CT": "CT", "MR": "MR", "colour": "RGB", "grey": "unknown"}


@dataclass(frozen=True, repr=False)
class PlannedBundle(Shown):
    """A bundle that `plan_bundle` wrote."""

    folder: Path  # folder of the bundle
    plan: Plan  # its values with their reasons
    left_out: Mapping[str, str]  # why a case could not be used, by its name

    def _table(self) -> Table:
        title = f"{self.folder}: planned for {len(self.plan.fingerprint.cases)} cases, {len(self.left_out)} left out"
        rows = [(choice.id, str(choice.value), choice.reason) for choice in (*self.plan.decisions, *self.plan.notes)]
        return title, [("value", "", "reason"), *rows]


def plan_bundle(
    data: Path,
    output: Path,
    *,
    dims: int | None = None,
    memory: int | None = None,
    seconds: float | None = None,
    device: str = "auto",
    measure: bool = True,
    jobs: int | None = None,
    instances: bool = False,
    skip_bad: bool = False,
    force: bool = False,
    split: Path | None = None,
    group_by: str | None = None,
    write: bool = True,
    read: ReadOptions = DEFAULTS,
    cache: Path | None = None,
    started: Callable[[int], None] | None = None,
    done: Callable[[], None] | None = None,
    measured: Callable[[], None] | None = None,
) -> PlannedBundle:
    """Measure a data set, decide on every value that depends on it, and write the bundle.

    Args:
        data: Data set in a layout of `open_dataset`.
        output: Folder of the bundle.
        dims: 2 for a network that segments slice by slice, 3 for volumes. Default: that of the images.
        memory: Bytes that training may use: process memory on a CPU, GPU memory on CUDA. Default: the free memory.
        seconds: Time for training. Default: no limit.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        measure: Try a training step. If False, memory is estimated and the number of epochs is unchanged.
        jobs: Cases to measure simultaneously. Default: as many as processors and memory allow.
        instances: The labels number objects, whether or not `dataset.json` declares it.
        skip_bad: Leave out unusable cases. Default: they are an error.
        force: Replace a planned bundle in `output`, even if it was edited. A trained run is never replaced.
        split: nnU-Net's `splits_final.json`, or a CSV file with the columns `case` and `group`, `fold` or both.
        group_by: Regular expression; its first group in a case's name is the patient, which folds do not divide.
        write: Whether to write the bundle. If False, `output` is only checked.
        read: How to read images that can be interpreted in more than one way; written into the bundle.
        cache: Folder that stores the measurements of the cases. Default: they are not stored.
        started: Called with the number of cases before they are measured.
        done: Called after each case, from several threads.
        measured: Called when all cases are measured.

    Raises:
        DataError: The data set is unusable, has unusable cases (all of them in one error), or the output folder
            contains other files or is in use.
        ConfigError: The options cannot be met.
    """
    resolve_device(device)  # checks that need no image come first
    _check_output(output, force=force)
    with claim(output) if write else nullcontext():
        if write:
            check_target(output.parent, needed=BUNDLE_BYTES)
        problems: list[MedunetError] = []
        dataset = open_dataset(data, problems=problems, instances=instances, read=read)
        others = {output_name(problem.file or data) for problem in problems}
        dataset = regroup(dataset, split, group_by, others=others)
        result = fingerprint(dataset, jobs=jobs, cache=cache, started=started, done=done)
        bad = {output_name(problem.file or data): problem.cause for problem in problems} | result.broken
        if bad and not skip_bad:
            received = shown([f"{name}: {cause}" for name, cause in bad.items()], separator="; ")
            remedy = "fix them (`medunet check` lists all), or plan and train without them: --skip-bad"
            cause = f"{len(bad)} case{'s' if len(bad) > 1 else ''} cannot be used"
            raise DataError(cause, file=data, received=received, remedy=remedy)
        if measured is not None:
            measured()
        base = find_bundle(f"unet_{dataset.spatial_dims}d")
        train = read_json(base / "configs" / "train.json")
        options: dict[str, Any] = {"dims": dims, "memory": memory, "seconds": seconds, "device": device}
        chosen = plan(dataset, train, fingerprint=result, measure=measure, **options)
        if write:
            values = chosen.values | ({"split": [list(part) for part in dataset.split]} if dataset.split else {})
            _write(base, output, chosen, values, train, asked=_asked(**options))
    return PlannedBundle(output, chosen, bad)


def plan_beside(run: Path, data: Path) -> Path:
    """Return the folder of the plan for a run that is trained without a bundle; runs beside each other share it."""
    return run.parent / f"{(data.parent if data.is_file() else data).resolve().name}_plan"


def plan_once(data: Path, output: Path, *, cache: Path | None = None, **options: Any) -> bool:
    """Plan a bundle, unless `output` contains the plan of the same cases with the same options.

    Args:
        data: Data set in a layout of `open_dataset`.
        output: Folder of the bundle.
        cache: Folder that stores the measurements of the cases. Default: they are not stored.
        options: `dims`, `memory`, `seconds`, `device` and `skip_bad` of `plan_bundle`.

    Returns:
        Whether it was planned now.

    Raises:
        DataError: As for `plan_bundle`, or `output` contains another plan.
        ConfigError: As for `plan_bundle`.
    """
    if not (output / OPTIONS_FILE).is_file():
        plan_bundle(data, output, cache=cache, **options)
        return True
    numbers = fingerprint(open_dataset(data, problems=[]), cache=cache)
    same_options = read_json(output / OPTIONS_FILE) == _asked(**options)
    if not same_options or (output / FINGERPRINT_FILE).read_text(encoding="utf-8") != to_json(asdict(numbers)):
        cause = f"the folder contains a plan {'for other cases' if same_options else 'with other options'}"
        remedy = "pass it as the bundle, give another --output, or delete it"
        raise DataError(cause, file=output, remedy=remedy)
    return False


def _asked(*, device: str = "auto", **options: Any) -> dict[str, Any]:
    """Return the options that decide a plan, with the type of the device that they mean on this machine."""
    return {**{key: options.get(key) for key in ("dims", "memory", "seconds")}, "device": resolve_device(device).type}


def _write(
    base: Path,
    output: Path,
    chosen: Plan,
    values: Mapping[str, Any],
    train: Mapping[str, Any],
    *,
    asked: Mapping[str, Any],
) -> None:
    """Write the bundle beside the output and rename it into place, so an error leaves an earlier plan unchanged."""
    metadata = _metadata(read_json(base / "configs" / "metadata.json"), chosen.fingerprint)
    decisions = [*chosen.decisions, *chosen.notes]
    configs, files = derive(require_trust(base), values, metadata=metadata, decisions=decisions)
    files |= {FINGERPRINT_FILE: to_json(asdict(chosen.fingerprint)), OPTIONS_FILE: to_json(asked)}
    for name in preset_names(configs):
        files[f"configs/{name}.json"] = to_json(fit_preset(configs[name], chosen.values, train))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".plan_") as temporary:
        folder = Path(temporary) / "bundle"
        write_bundle(files, folder)
        output.mkdir(exist_ok=True)
        for part in sorted(folder.iterdir(), key=lambda part: part.name == "configs"):  # these last: they make a bundle
            if (output / part.name).exists():
                (output / part.name).rename(Path(temporary) / part.name)
            part.rename(output / part.name)
    adopt(output)


def _check_output(output: Path, *, force: bool) -> None:
    if any(output.glob("models/*.pt")) or any(output.glob("fold_*/models/*.pt")):
        raise DataError("the output folder contains a trained run", file=output, remedy="give another --output")
    config = output / "configs" / "train.json"
    if not config.is_file() or read_json(config).get("planned") is not True:
        reject_other_files(output)
    elif not force:
        cause = "the output folder contains a planned bundle, which may have been edited"
        raise DataError(cause, file=output, remedy="give another --output, or replace the bundle: --force")


def _metadata(metadata: Mapping[str, Any], result: Fingerprint) -> dict[str, Any]:
    kinds = ", ".join(dict.fromkeys(_MODALITIES[channel.kind] for channel in result.channels))
    formats, dims = metadata["network_data_format"], f"{result.spatial_dims}D"
    channels = {str(index): channel.name for index, channel in enumerate(result.channels)}
    image = {**formats["inputs"]["image"], "modality": kinds, "channel_def": channels}
    source = f"{result.name} ({len(result.cases)} cases)"
    return {
        "name": f"U-Net for {result.name}",
        "task": f"Segmentation of {', '.join(result.class_names)} in {dims} images",
        "description": f"A padded {dims} U-Net with batch norm, planned by medunet for {source}.",
        "data_source": result.name,
        "image_type": kinds,
        "network_data_format": {**formats, "inputs": {"image": image}},
    }
