"""A data set in, a bundle planned for it out, with the reasons in its docs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunet.bundle.decisions import PLAN_FILE, plan_text, row
from medunet.bundle.read import preset_names
from medunet.bundle.render import render_docs
from medunet.bundle.specialise import specialise
from medunet.config import read_json, to_json
from medunet.datasets import open_dataset, shown
from medunet.errors import DataError, MedunetError
from medunet.files import check_target, claim, reject_other_files, write_atomically
from medunet.io import output_name
from medunet.io.options import DEFAULTS, ReadOptions
from medunet.planning import Fingerprint, Plan, fingerprint, fit_preset, plan
from medunet.resources import find_bundle, resource_dir
from medunet.runtime import resolve_device
from medunet.trust import adopt

BUNDLE_BYTES = 4 << 20
"""Free space that a plan needs for the bundle and its fingerprint."""

FINGERPRINT_NAME = "fingerprint.json"
"""In the bundle's folder ``docs``."""

ORIGIN = """This bundle was planned by `medunet plan` for the data set named below; see "Why these values".
Any value may be changed, here or with `medunet bundle init`: it is an ordinary MONAI bundle."""

_MODALITIES = {"CT": "CT", "MR": "MR", "colour": "RGB", "grey": "unknown"}


@dataclass(frozen=True)
class PlannedBundle:
    """What `plan_bundle` made.

    Args:
        folder: of the bundle.
        plan: its values with reasons.
        left_out: why a case could not be used, by its name.
    """

    folder: Path
    plan: Plan
    left_out: Mapping[str, str]


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
    skip_bad: bool = False,
    force: bool = False,
    read: ReadOptions = DEFAULTS,
    cache: Path | None = None,
    started: Callable[[int], None] | None = None,
    done: Callable[[], None] | None = None,
    measured: Callable[[Fingerprint], None] | None = None,
) -> PlannedBundle:
    """Measure a data set, plan, and write the bundle.

    Args:
        data: a data set in a layout of `open_dataset`.
        output: the bundle's folder.
        force: replace a planned bundle in `output`, with all changes made to it; a trained run is never replaced.
        dims: as in `medunet.planning.plan`, as are memory, seconds, device and measure.
        memory: see dims.
        seconds: see dims.
        device: see dims.
        measure: see dims.
        jobs: as in `medunet.planning.fingerprint`, as are cache, started and done.
        skip_bad: leave out cases that cannot be used, which otherwise are an error.
        read: how to read images that can be interpreted in more than one way; written into the bundle.
        cache: see jobs.
        started: see jobs.
        done: see jobs.
        measured: called with the fingerprint before planning begins.

    Raises:
        DataError: no usable data set, cases that cannot be used (all of them in one error), or an output folder that
            holds something else or that another process writes into.
        ConfigError: options that cannot be met.
    """
    resolve_device(device)  # what costs nothing to check comes before the images are read
    _check_output(output, force=force)
    with claim(output):
        check_target(output.parent, needed=BUNDLE_BYTES)
        return _plan_bundle(
            data,
            output,
            skip_bad=skip_bad,
            read=read,
            measured=measured,
            fingerprint_options={"jobs": jobs, "cache": cache, "started": started, "done": done},
            plan_options={"dims": dims, "memory": memory, "seconds": seconds, "device": device, "measure": measure},
        )


def _plan_bundle(
    data: Path,
    output: Path,
    *,
    skip_bad: bool,
    read: ReadOptions,
    measured: Callable[[Fingerprint], None] | None,
    fingerprint_options: Mapping[str, Any],
    plan_options: Mapping[str, Any],
) -> PlannedBundle:
    problems: list[MedunetError] = []
    dataset = open_dataset(data, problems=problems, read=read)
    print_ = fingerprint(dataset, **fingerprint_options)
    bad = {output_name(problem.file or data): problem.cause for problem in problems} | print_.broken
    if bad and not skip_bad:
        raise DataError(
            f"{len(bad)} case{'s' if len(bad) > 1 else ''} cannot be used",
            file=data,
            received=shown([f"{name}: {cause}" for name, cause in bad.items()], separator="; "),
            remedy="fix them (`medunet check` lists all), or plan and train without them: --skip-bad",
        )
    if measured is not None:
        measured(print_)
    base = find_bundle(f"unet_{dataset.spatial_dims}d")
    chosen = plan(dataset, read_json(base / "configs" / "train.json"), fingerprint=print_, **plan_options)
    write_plan(base, output, chosen)
    return PlannedBundle(output, chosen, bad)


def write_plan(base: Path, output: Path, chosen: Plan) -> None:
    """Write the bundle that a plan makes of another one.

    All files are written beside the output first and then renamed into place, so that an error or a full disk leaves
    an earlier plan as it was.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".plan_") as temporary:
        folder = Path(temporary) / "bundle"
        specialise(base, folder, chosen.values)
        train = read_json(base / "configs" / "train.json")
        for preset in preset_names(path.stem for path in (folder / "configs").glob("*.json")):
            fitted = fit_preset(read_json(folder / "configs" / f"{preset}.json"), chosen.values, train)
            write_atomically(folder / "configs" / f"{preset}.json", to_json(fitted))
        metadata = _metadata(read_json(folder / "configs" / "metadata.json"), chosen.fingerprint)
        write_atomically(folder / "configs" / "metadata.json", to_json(metadata))
        template = (resource_dir("configs") / "docs.md").read_text(encoding="utf-8")
        inference = read_json(folder / "configs" / "inference.json")
        docs = render_docs(template, metadata, inference, bundle=output.name, origin=ORIGIN)
        write_atomically(folder / "docs" / "README.md", _with_reasons(docs, chosen))
        write_atomically(folder / PLAN_FILE, plan_text((*chosen.decisions, *chosen.notes)))
        write_atomically(folder / "docs" / FINGERPRINT_NAME, chosen.fingerprint.to_json())
        output.mkdir(exist_ok=True)
        for part in sorted(folder.iterdir(), key=lambda part: part.name == "configs"):  # these last: they make a bundle
            if (output / part.name).exists():
                (output / part.name).rename(Path(temporary) / part.name)
            part.rename(output / part.name)
    adopt(output)


def _check_output(output: Path, *, force: bool) -> None:
    if any(output.glob("models/*.pt")) or any(output.glob("fold_*/models/*.pt")):
        raise DataError("the output folder holds a trained run", file=output, remedy="give another --output")
    config = output / "configs" / "train.json"
    planned = config.is_file() and read_json(config).get("planned") is True
    if not planned:
        reject_other_files(output)
    elif not force:
        raise DataError(
            "the output folder holds a planned bundle, which may have been edited",
            file=output,
            remedy="give another --output, or replace the bundle: --force",
        )


def _metadata(metadata: Mapping[str, Any], print_: Fingerprint) -> dict[str, Any]:
    changed = dict(metadata)
    kinds = ", ".join(dict.fromkeys(_MODALITIES[channel.kind] for channel in print_.channels))
    classes = ", ".join(print_.class_names)
    changed["name"] = f"U-Net for {print_.name}"
    changed["task"] = f"Segmentation of {classes} in {print_.spatial_dims}D images"
    changed["description"] = (
        f"A padded {print_.spatial_dims}D U-Net with batch norm, planned by medunet for {print_.name} "
        f"({len(print_.cases)} cases)."
    )
    changed["data_source"] = print_.name
    changed["image_type"] = kinds
    image = changed["network_data_format"]["inputs"]["image"]
    image["modality"] = kinds
    image["channel_def"] = {str(index): channel.name for index, channel in enumerate(print_.channels)}
    return changed


def _with_reasons(docs: str, chosen: Plan) -> str:
    print_ = chosen.fingerprint
    lines = [
        "## Why these values",
        "",
        f"From {len(print_.cases)} labelled cases of {print_.name}; their figures are in `{FINGERPRINT_NAME}`.",
        "",
        "| id | value | reason | from which numbers |",
        "| --- | --- | --- | --- |",
        *(row(decision) for decision in (*chosen.decisions, *chosen.notes)),
        "",
    ]
    if print_.broken:
        lines += ["Cases that were left out:", ""]
        lines += [f"- {name}: {cause}" for name, cause in print_.broken.items()] + [""]
    section = "\n".join(lines)
    return docs.replace("## Commands\n", f"{section}\n## Commands\n", 1)
