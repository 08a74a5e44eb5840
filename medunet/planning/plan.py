"""From a data set to the values of a bundle, each with its reason."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medunet.datasets import FOLDS, SECOND_CASE, SegmentationDataset
from medunet.errors import ConfigError, DataError
from medunet.inferers import free_memory
from medunet.runtime import resolve_device, resolve_dtype

from . import choices
from .fingerprint import Fingerprint
from .probe import StepCost, measure_step, training_bytes
from .regions import region_values
from .schedule import Schedule, fit_schedule, spell_time
from .topology import Budget, Decision, Spacing, Topology, choose_budget, choose_topology, target_spacing

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 20
"""Times that patch or batch are made smaller where a step does not fit."""

MIN_BATCH = 2
"""Batch norm needs two patches."""

SHRINK = 0.75
"""Factor of the patch's voxels at each of them."""


@dataclass(frozen=True)
class Plan:
    """Values for a bundle.

    Args:
        fingerprint: what they were made from.
        decisions: one a value, in the order in which a person reads them.
        notes: what was measured or estimated and is no value of the bundle.
        topology: of the network.
        cost: of a training step, measured; None where that was not wanted.
        seconds: expected duration of the training; None without measurement.
    """

    fingerprint: Fingerprint
    decisions: tuple[Decision, ...]
    notes: tuple[Decision, ...]
    topology: Topology
    cost: StepCost | None = None
    seconds: float | None = None

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
        dataset: what to train on.
        config: unresolved ``train.json`` of the bundle that the values are for.
        fingerprint: of the data set.
        dims: 2 for a network in the plane also where the images are volumes; None for the images' own.
        memory: bytes that training may take, on a CPU all together, on CUDA of the GPU; None for what is free.
        seconds: time for training; None for no limit.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        measure: whether to make real training steps; without them memory is only estimated and epochs stay.

    Raises:
        ConfigError: dimensions that the images do not have; a time without measurement; too little memory.
        DataError: one case only.
    """
    if len(fingerprint.cases) < 2:
        raise DataError(
            "training needs a second case, which validates",
            file=dataset.root,
            received=", ".join(fingerprint.cases),
            remedy=SECOND_CASE,
        )
    if seconds is not None and not measure:
        raise ConfigError("a time cannot be planned without measuring a step", remedy="leave out one of the two")
    flat_axis = _flat_axis(fingerprint, dims)
    where = resolve_device(device)
    kind = 2 if flat_axis is not None else fingerprint.spatial_dims
    budget = choose_budget(kind, cuda=where.type == "cuda", seconds=seconds)
    grid = _grid(fingerprint, budget, flat=flat_axis is not None)
    decisions = [*_data(dataset), choices.normalisation(fingerprint)]
    if fingerprint.spatial_dims == 3:
        decisions.append(Decision("spacing_mm", list(grid.spacing_mm), grid.reason, grid.numbers))
    decisions += choices.cropping(fingerprint)
    mirroring = choices.mirroring(fingerprint, flat_axis=flat_axis)
    (flips,) = (d.value for d in mirroring if d.id == choices.FLIP_AXES)
    views = choices.views(fingerprint, grid.size, grid.spacing_mm, flips=flips, flat=flat_axis is not None)
    decisions += [*mirroring, *views]
    decisions += choices.turning(fingerprint, config["augment"]["deform"], grid.spacing_mm, flat_axis=flat_axis)
    decisions += choices.loss(fingerprint, config["loss"])

    available = memory or free_memory(where)
    search = _Search(
        config=overlay(config, {d.id: d.value for d in decisions if d.id not in choices.ENGINE_IDS}),
        grid=grid,
        budget=budget,
        flat_axis=flat_axis,
        n_cases=len(fingerprint.cases),
        memory=available,
        device=where,
    )
    topology, cost, note = search.run(measure=measure)
    decisions += topology.decisions
    if memory is not None:
        half = f"{memory >> 21}MB"
        reason = "validation shares the memory that was given: larger images are cut into tiles"
        decisions.append(Decision("validate::inferer::memory", half, reason, _gigabytes(memory)))
    notes = [note]
    duration = None
    validated = math.ceil(len(dataset.cases) / _folds(dataset))
    if cost is not None:
        schedule = fit_schedule(
            cost,
            steps_per_epoch=config["steps_per_epoch"],
            validation_cases=validated,
            seconds=seconds,
            device=where.type,
        )
        duration = schedule.seconds
        decisions += [
            Decision("epochs", schedule.epochs, schedule.reason, schedule.numbers),
            Decision("steps_per_epoch", schedule.steps_per_epoch, _epoch_reason(config, schedule)),
            Decision("val_interval", schedule.val_interval, "the last epoch is validated as well", schedule.numbers),
        ]
        steps = schedule.epochs * schedule.steps_per_epoch
        notes.append(Decision("time", spell_time(duration), f"expected for {steps:,} steps", schedule.numbers))
    reason = "the schedule ends in small steps; and figures of cases that had chosen an epoch would be too good"
    decisions.append(Decision("keep_epoch", "last", reason, f"{validated} cases validate"))
    decisions.append(Decision("planned", True, "`medunet train` keeps these values"))
    return Plan(
        fingerprint=fingerprint,
        decisions=tuple(decisions),
        notes=tuple(notes),
        topology=topology,
        cost=cost,
        seconds=duration,
    )


@dataclass
class _Search:
    """Patch, batch and network that fit the memory: estimated first, then tried."""

    config: dict[str, Any]
    grid: Spacing
    budget: Budget
    flat_axis: int | None
    n_cases: int
    memory: int
    device: torch.device

    def run(self, *, measure: bool) -> tuple[Topology, StepCost | None, Decision]:
        batch: int | None = None
        voxels: int | None = None
        given = f"{_gigabytes(self.memory)} are there for a step"
        for _ in range(MAX_ATTEMPTS):
            topology = choose_topology(
                self.grid.size,
                self.grid.spacing_mm,
                budget=self.budget,
                n_cases=self.n_cases,
                patch_voxels=voxels,
                batch_size=batch,
                flat_axis=self.flat_axis,
            )
            config = overlay(self.config, {decision.id: decision.value for decision in topology.decisions})
            estimate = self._estimate(config)
            if estimate <= self.memory:
                estimated = Decision("memory", _gigabytes(estimate), "estimated for a training step", given)
                if not measure:
                    return topology, None, estimated
                logger.info(
                    "measuring a training step: %d patches of %s", topology.batch_size, _times(topology.patch_size)
                )
                cost = measure_step(config, image_size=self.grid.size, device=str(self.device))
                if cost.fits and cost.peak_bytes <= self.memory:
                    words = f"{estimated.value} estimated; {given}"
                    return topology, cost, Decision("memory", _gigabytes(cost.peak_bytes), "measured peak", words)
            # first fewer patches, then smaller ones
            if topology.batch_size > MIN_BATCH:
                batch = max(MIN_BATCH, topology.batch_size // 2)
            else:
                voxels = int(math.prod(topology.patch_size) * SHRINK)
        raise ConfigError(
            "memory is too small to train even small patches",
            received=_gigabytes(self.memory),
            expected=f"about {_gigabytes(estimate)}",
            remedy="give a larger --memory, or close other programs",
        )

    def _estimate(self, config: Mapping[str, Any]) -> int:
        network_def = {key: value for key, value in config["network_def"].items() if key != "_target_"}
        network_def |= {key: config[key] for key in ("spatial_dims", "in_channels")}
        network_def["out_channels"] = len(config.get("region_names") or config["label_values"])
        window = (config["batch_size"], config["in_channels"], *config["patch_size"])
        itemsize = resolve_dtype(self.device, config["autocast_dtype"]).itemsize
        return training_bytes(network_def, window, itemsize=itemsize, cpu=self.device.type == "cpu")


def overlay(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config with values changed by id; parents must be there.

    Example:
        >>> overlay({"augment": {"noise": {"prob": 0.1}}}, {"augment::noise::prob": 0.2})
        {'augment': {'noise': {'prob': 0.2}}}
    """
    changed = deepcopy(dict(config))
    for id_, value in values.items():
        *parents, last = id_.split("::")
        place = changed
        for parent in parents:
            place = place[parent]
        place[last] = value
    return changed


def _flat_axis(print_: Fingerprint, dims: int | None) -> int | None:
    """The axis across the planes, where a network in the plane is wanted for volumes: the coarsest one."""
    if dims in (None, print_.spatial_dims):
        return None
    if dims != 2:
        raise ConfigError(
            f"the images are {print_.spatial_dims}-D", received=f"--dims {dims}", remedy="use --dims auto"
        )
    median = np.median(print_.spacings_mm, axis=0)
    return int(len(median) - 1 - np.argmax(median[::-1]))


def _grid(print_: Fingerprint, budget: Budget, *, flat: bool) -> Spacing:
    images = np.array(choices.kept_shapes(print_))
    if print_.spatial_dims == 2:
        size = tuple(int(n) for n in np.median(images, axis=0))
        return Spacing((1.0, 1.0), size, "images in the plane are not resampled", "")
    thinnest = print_.thinnest
    return target_spacing(
        print_.spacings_mm,
        images.tolist(),
        max_voxels=math.inf if flat else budget.image_patches * budget.patch_voxels,
        context_voxels=math.inf if flat else budget.context_patches * budget.patch_voxels,
        thinnest_mm=thinnest.thickness_mm if thinnest is not None else math.inf,
    )


def _data(dataset: SegmentationDataset) -> list[Decision]:
    source = f"{dataset.name}, {len(dataset.cases)} cases"
    regions = []
    if dataset.regions:
        unions = ", ".join(f"{region.name}: {list(region.values)}" for region in dataset.regions)
        reason = "classes that overlap: each is a channel of its own, and later ones are written over earlier ones"
        regions = [Decision(id_, value, reason, unions) for id_, value in region_values(dataset).items()]
    return [
        Decision("in_channels", len(dataset.channels), "channels of the images", ", ".join(dataset.channels)),
        Decision("label_values", list(dataset.labels.values()), "values in the label files", source),
        Decision("label_names", list(dataset.labels), "their names", source),
        *regions,
        Decision("folds", _folds(dataset), "cross-validation; few images: leave one out", source),
        *(Decision(id_, value, "chosen by the user", "") for id_, value in dataset.read.chosen.items()),
    ]


def _epoch_reason(config: Mapping[str, Any], schedule: Schedule) -> str:
    usual = config["steps_per_epoch"]
    kept = schedule.steps_per_epoch == usual
    return "an epoch is a number of steps, as in the bundle" if kept else f"the time does not hold {usual} steps"


def _folds(dataset: SegmentationDataset) -> int:
    return max(2, min(FOLDS, dataset.n_groups))


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 30):.3g} GB"


def _times(values: Any) -> str:
    return " x ".join(f"{value:g}" for value in values)
