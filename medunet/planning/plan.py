"""Decisions on all values of a bundle that depend on the data, the memory and the time."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from medunet.config import apply
from medunet.datasets import FOLDS, SECOND_CASE, SegmentationDataset
from medunet.errors import ConfigError, DataError
from medunet.inferers import free_memory
from medunet.runtime import resolve_device, resolve_dtype
from medunet.units import GB

from . import choices
from .adapt import region_values
from .fingerprint import Fingerprint
from .instances import image_steps, instances, object_budget, shrinking
from .probe import StepCost, measure_step, training_bytes
from .schedule import Schedule, fit_schedule, spell_time
from .topology import Budget, Decision, Spacing, Topology, choose_budget, choose_topology, target_spacing, times

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 20  # times that the patch or the batch is reduced if a step does not fit
MIN_BATCH = 2  # batch norm needs two patches
SHRINK = 0.75  # factor of the patch's voxels at each attempt
ENOUGH_STEPS = 600  # with fewer steps, a network of fewer channels is better (docs/benchmarks/training.md)
MIN_WIDTH = 0.25  # smallest share of the usual channels
HALF_WIDTH_GAIN = 4  # a network of half the channels makes about so many times as many steps


@dataclass(frozen=True)
class Plan:
    """Values for a bundle."""

    fingerprint: Fingerprint  # fingerprint they follow from
    decisions: tuple[Decision, ...]  # one per value, in the order in which a person reads them
    notes: tuple[Decision, ...]  # measured and estimated figures that are not values of the bundle
    cost: StepCost | None = None  # measured cost of a training step; None without measurement
    seconds: float | None = None  # expected duration of the training; None without measurement

    @property
    def values(self) -> dict[str, Any]:
        """The overlay: value by config id."""
        return {decision.id: decision.value for decision in self.decisions}


def plan(
    dataset: SegmentationDataset,
    config: Mapping[str, Any],
    *,
    fingerprint: Fingerprint,
    dims: int | None = None,
    memory: int | None = None,
    seconds: float | None = None,
    device: str = "auto",
    measure: bool = True,
) -> Plan:
    """Decide on every value that depends on the data, the memory and the time.

    Args:
        dataset: Data set to train on.
        config: Unresolved `train.json` of the bundle that the values are for.
        fingerprint: Fingerprint of the data set.
        dims: 2 for a 2D network, also if the images are volumes. Default: that of the images.
        memory: Bytes that training may use: process memory on a CPU, GPU memory on CUDA. Default: the free memory.
        seconds: Time for training. Default: no limit.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        measure: Try a training step. If False, memory is estimated and the number of epochs is unchanged.

    Raises:
        ConfigError: The images do not have these dimensions, a time is given without measurement, or memory is too
            small.
        DataError: There is only one case.
    """
    if len(fingerprint.cases) < 2:
        cause, only = "training needs a second case, which validates", ", ".join(fingerprint.cases)
        raise DataError(cause, file=dataset.root, received=only, remedy=SECOND_CASE)
    if seconds is not None and not measure:
        raise ConfigError("a time cannot be planned without measuring a step")
    flat_axis = _flat_axis(fingerprint, dims)
    is_flat = flat_axis is not None
    target = resolve_device(device)
    available = memory or free_memory(target)
    dims_of_budget = 2 if is_flat else fingerprint.spatial_dims
    budget = choose_budget(dims_of_budget, cuda=target.type == "cuda", seconds=seconds, memory=available)
    grid = choose_grid(fingerprint, budget, flat=is_flat)
    budget = object_budget(budget, fingerprint, grid.factor)
    decisions = [*_data(dataset), choices.normalisation(fingerprint)]
    spacing = Decision("spacing_mm", list(grid.spacing_mm), grid.reason, grid.numbers)
    decisions += [spacing] if fingerprint.spatial_dims == 3 else image_steps(fingerprint, grid)
    decisions += choices.cropping(fingerprint)
    mirroring = choices.mirroring(fingerprint, flat_axis=flat_axis)
    flips = mirroring[0].value
    mirroring.append(Decision("tta_axes", flips, "axes that `--tta` and `--review` mirror", "as in training"))
    decisions += [*mirroring, *choices.views(fingerprint, grid.size, grid.spacing_mm, flips=flips, flat=is_flat)]
    if fingerprint.spatial_dims == 2:
        decisions += choices.deformation_2d(fingerprint)
    else:
        decisions += choices.deformation_3d(fingerprint, config["augment"]["deform"], grid.spacing_mm, flat_axis)
    decisions += instances(fingerprint, grid.factor) if dataset.instances else choices.loss(fingerprint, config["loss"])

    base = apply(config, {d.id: d.value for d in decisions if d.id not in choices.ENGINE_IDS})
    n_cases = len(fingerprint.cases)
    choose = partial(choose_topology, grid.size, grid.spacing_mm, budget=budget, n_cases=n_cases, flat_axis=flat_axis)
    validated, usual = math.ceil(len(dataset.cases) / _folds(dataset)), config["steps_per_epoch"]
    fit = partial(fit_schedule, steps_per_epoch=usual, validation_cases=validated, seconds=seconds, device=target.type)
    topology, schedule, notes = _fit(
        base, choose, available, image_size=grid.size, device=target, schedule_of=fit if measure else None
    )
    decisions += topology.decisions
    steps = config["epochs"] * usual if schedule is None else schedule.steps
    decisions += choices.intensity(fingerprint, config, steps)
    if memory is not None:
        reason = "validation shares the given memory: larger images are tiled"
        decisions.append(Decision("validate::inferer::memory", f"{memory >> 21}MB", reason, _gigabytes(memory)))
    if schedule is not None:
        reason = "as in the bundle"
        if schedule.steps_per_epoch != usual:
            reason = f"the time is too short for {usual} steps"
        decisions += [
            Decision("epochs", schedule.epochs, schedule.reason, schedule.numbers),
            Decision("steps_per_epoch", schedule.steps_per_epoch, reason),
            Decision("val_interval", schedule.val_interval, "the last epoch is validated as well", schedule.numbers),
        ]
    reason = "the schedule ends in small steps, and metrics on the cases that selected the epoch are optimistic"
    decisions.append(Decision("keep_epoch", "last", reason, f"{validated} cases validate"))
    decisions.append(Decision("planned", True, "`medunet train` keeps these values"))
    cost, duration = (None, None) if schedule is None else (schedule.cost, schedule.seconds)
    return Plan(fingerprint, tuple(decisions), tuple(notes), cost, duration)


def _fit(
    base: Mapping[str, Any],
    choose: Callable[..., Topology],
    memory: int,
    *,
    image_size: Sequence[int],
    device: torch.device,
    schedule_of: Callable[[StepCost], Schedule] | None,
) -> tuple[Topology, Schedule | None, list[Decision]]:
    """Reduce patch and batch until a step fits the memory, then the width until the time has `ENOUGH_STEPS`."""
    batch: int | None = None
    voxels: int | None = None
    width, slow = 1.0, ""  # and the steps of a wider network
    available = f"{_gigabytes(memory)} are available for a step"
    for _ in range(MAX_ATTEMPTS):
        topology = choose(patch_voxels=voxels, batch_size=batch, width=width)
        config = apply(base, {decision.id: decision.value for decision in topology.decisions})
        estimate = _estimated_bytes(config, device)
        if estimate <= memory:
            if schedule_of is None:
                return topology, None, [Decision("memory", _gigabytes(estimate), "estimated for a step", available)]
            logger.info("measuring a step: %d patches of %s", topology.batch_size, times(topology.patch_size))
            cost = measure_step(config, image_size=image_size, device=str(device))
            if cost.fits and cost.peak_bytes <= memory:
                schedule = schedule_of(cost)
                if schedule.steps >= ENOUGH_STEPS or width == MIN_WIDTH:
                    numbers = f"{_gigabytes(estimate)} estimated; {available}"
                    peak = Decision("memory", _gigabytes(cost.peak_bytes), "measured peak", numbers)
                    reason, numbers = f"expected for {schedule.steps:,} steps{slow}", schedule.numbers
                    time = Decision("time", spell_time(schedule.seconds), reason, numbers)
                    return topology, schedule, [peak, time]
                slow = slow or f"; only {schedule.steps:,} with the usual channels"
                width = width / 2 if HALF_WIDTH_GAIN * schedule.steps >= ENOUGH_STEPS else MIN_WIDTH
                continue
        # first fewer patches, then smaller ones
        if topology.batch_size > MIN_BATCH:
            batch = max(MIN_BATCH, topology.batch_size // 2)
        else:
            voxels = int(math.prod(topology.patch_size) * SHRINK)
    expected = f"about {_gigabytes(estimate)}"
    raise ConfigError("memory is too small even for small patches", received=_gigabytes(memory), expected=expected)


def _estimated_bytes(config: Mapping[str, Any], device: torch.device) -> int:
    network_def = {key: value for key, value in config["network_def"].items() if key != "_target_"}
    network_def |= {key: config[key] for key in ("spatial_dims", "in_channels")}
    network_def["out_channels"] = len(config.get("region_names") or config["label_values"])
    window = (config["batch_size"], config["in_channels"], *config["patch_size"])
    itemsize = resolve_dtype(device, config["autocast_dtype"]).itemsize
    return training_bytes(network_def, window, itemsize=itemsize, cpu=device.type == "cpu")


def _flat_axis(data: Fingerprint, dims: int | None) -> int | None:
    """Return the coarsest axis if volumes get a 2D network, else None."""
    if dims in (None, data.spatial_dims):
        return None
    if dims != 2:
        raise ConfigError(f"the images are {data.spatial_dims}-D", received=f"--dims {dims}", remedy="use --dims auto")
    median = np.median(data.spacings_mm, axis=0)
    return int(len(median) - 1 - np.argmax(median[::-1]))


def choose_grid(data: Fingerprint, budget: Budget, *, flat: bool) -> Spacing:
    """Return the grid to which all images are resampled."""
    images = np.array(choices.cropped_shapes(data))
    if data.spatial_dims == 2:
        factor, numbers = shrinking(data)
        size = tuple(round(n / factor) for n in np.median(images, axis=0))
        spacing = tuple(float(f"{factor * length:.4g}") for length in data.spacings_mm[0])
        reason = "objects are large: with smaller images the network sees whole objects, and a step costs less"
        return Spacing(spacing, size, reason, numbers, factor)
    thinnest = data.thinnest
    return target_spacing(
        data.spacings_mm,
        images.tolist(),
        max_voxels=math.inf if flat else budget.image_patches * budget.patch_voxels,
        context_voxels=math.inf if flat else budget.context_patches * budget.patch_voxels,
        thinnest_mm=thinnest.thickness_mm if thinnest is not None else math.inf,
    )


def _data(dataset: SegmentationDataset) -> list[Decision]:
    source = f"{dataset.name}, {len(dataset.cases)} cases"
    folds = source + (f" in {dataset.n_groups} groups" if any(case.group for case in dataset.cases) else "")
    if dataset.split:
        folds += f", given as {', '.join(str(len(part)) for part in dataset.split)}"
    regions = []
    if dataset.regions:
        unions = ", ".join(f"{region.name}: {list(region.values)}" for region in dataset.regions)
        reason = "classes that overlap: each is a channel of its own, and later ones overwrite earlier ones"
        regions = [Decision(id_, value, reason, unions) for id_, value in region_values(dataset).items()]
    return [
        Decision("in_channels", len(dataset.channels), "channels of the images", ", ".join(dataset.channels)),
        Decision("label_values", list(dataset.labels.values()), "values in the label files", source),
        Decision("label_names", list(dataset.labels), "their names", source),
        *regions,
        Decision("folds", _folds(dataset), "cross-validation; with few images each is left out once", folds),
        *(Decision(id_, value, "chosen by the user") for id_, value in dataset.read.chosen.items()),
    ]


def _folds(dataset: SegmentationDataset) -> int:
    return len(dataset.split) or max(2, min(FOLDS, dataset.n_groups))


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / GB:.3g} GB"
