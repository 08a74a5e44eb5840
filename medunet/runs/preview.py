"""What a training run would do: its cases, steps and device, without writing or training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunet.bundle.explain import PLAN_FILE
from medunet.bundle.specialise import derive
from medunet.config import read_json
from medunet.datasets import datalist
from medunet.runtime import resolve_device
from medunet.trust import require_trust

from .folds import checked_folds
from .split import split_options
from .train import fit_bundle, reject_trained


@dataclass(frozen=True)
class TrainingPreview:
    """A training run that is not started."""

    bundle: Path
    output: Path
    device: str
    cases: dict[int, tuple[int, int]]  # numbers of training and of validation cases, by fold
    left_out: tuple[str, ...]  # names of unusable cases
    epochs: int
    steps_per_epoch: int
    batch_size: int
    patch_size: tuple[int, ...]
    memory: str | None  # of a step, according to the plan; None without a plan
    time: str | None  # of the training, according to the plan; None if the steps are not those of the plan


def preview_training(
    bundle: Path,
    data: Path,
    output: Path,
    *,
    folds: Sequence[int] | None = None,
    presets: Sequence[str] = (),
    device: str = "auto",
    resume: bool = False,
    trust: bool = False,
    **options: Any,
) -> TrainingPreview:
    """Return what `train_bundle` or `train_folds` would do; errors are theirs. Nothing is written.

    Args:
        bundle: folder of the bundle to start from.
        data: labelled data set.
        output: folder of the run.
        folds: folds of a cross-validation, an empty list for all; None for a single run.
        presets: names of overlays of the bundle.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        resume: whether a trained run in `output` would be continued.
        trust: approve a bundle that could run its own code.
        **options: further options of :func:`medunet.runs.fit_bundle`, such as `changes`.
    """
    chosen, verdict = resolve_device(device), require_trust(bundle, trust=trust)
    reject_trained(output, resume=resume)
    _, values = fit_bundle(bundle, data, output=output, **options)
    train = derive(verdict, values, data=data, presets=presets)[0]["train"]
    numbers = [train["fold"]] if folds is None else checked_folds(folds or None, train)
    split, cases = split_options(train), {}
    for fold in numbers:
        training, validation = (datalist(data, section=name, fold=fold, **split) for name in ("training", "validation"))
        cases[fold] = len(training), len(validation)
    path = bundle / PLAN_FILE
    planned = {one["id"]: one["value"] for one in read_json(path)["decisions"]} if path.is_file() else {}
    is_as_planned = all(planned.get(id_) == train[id_] for id_ in ("epochs", "steps_per_epoch"))
    return TrainingPreview(
        bundle=bundle,
        output=output,
        device=str(chosen),
        cases=cases,
        left_out=tuple(train.get("skip_cases", ())),
        epochs=train["epochs"],
        steps_per_epoch=train["steps_per_epoch"],
        batch_size=train["batch_size"],
        patch_size=tuple(train["patch_size"]),
        memory=planned.get("memory"),
        time=planned.get("time") if is_as_planned else None,
    )
