"""Several nnU-Net models that divide the classes of one task, as one model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from medunet.errors import ConfigError

from .model import NnunetModel
from .weights import Checkpoint

BACKGROUND = "background"
SEPARATE = "import the models one by one"


@dataclass(frozen=True)
class Part:
    """A model folder with its weights as medunet's network takes them."""

    plan: NnunetModel
    first: Checkpoint
    folds: tuple[str, ...]
    definition: dict[str, Any]  # of the network, for the bundle's config
    weights: list[dict[str, torch.Tensor]]  # per fold
    normalisation: list[Any]  # per channel, as `NormalizeChannelsd` takes it


def join(parts: Sequence[Part]) -> Part:
    """Return one model with the background and the classes of all parts, in their order.

    Raises:
        ConfigError: the parts differ in grid, network, channels or folds, have regions, or share a class.
    """
    plan, first = parts[0].plan, parts[0].first
    names = [BACKGROUND]
    for part in parts:
        if part.plan.labels.regions or part.plan.labels.labels.get(BACKGROUND) != 0:
            raise ConfigError("models with regions cannot become one bundle", file=part.plan.folder, remedy=SEPARATE)
        own = [name for name in part.plan.labels.labels if name != BACKGROUND]
        if twice := sorted(set(own) & set(names)):
            cause, received = "two models have the same class", ", ".join(twice)
            raise ConfigError(cause, file=part.plan.folder, received=received, remedy=SEPARATE)
        names += own
        for what, value in _shared(part).items():
            if value != (expected := _shared(parts[0])[what]):
                cause = f"models with another {what} cannot become one bundle"
                raise ConfigError(cause, file=part.plan.folder, received=value, expected=expected, remedy=SEPARATE)
    labels = plan.labels._replace(labels={name: value for value, name in enumerate(names)}, ignore=None)
    definitions = [part.definition | {"out_channels": part.plan.out_channels, "deep_supervision": 0} for part in parts]
    definition: dict[str, Any] = {"_target_": "medunet.networks.JointNetwork", "members": definitions}
    normalisation = parts[0].normalisation
    if any(part.normalisation != normalisation for part in parts):
        numbers = [part.normalisation[0] for part in parts]
        if len(plan.channels) > 1 or not all(isinstance(one, Mapping) for one in numbers):
            cause = "models of different normalisations cannot become one bundle, except for CT"
            raise ConfigError(cause, file=plan.folder, received=numbers, remedy=SEPARATE)
        definition["intensities"], normalisation = numbers, ["none"]
    folds = zip(*(part.weights for part in parts), strict=True)
    weights = [
        {
            f"members.{index}.{name}": tensor
            for index, own in enumerate(members)
            for name, tensor in own.items()
            if not name.startswith("coarse_heads.")  # the joint network is trained without deep supervision
        }
        for members in folds
    ]
    return Part(replace(plan, labels=labels), first, parts[0].folds, definition, weights, normalisation)


def _shared(part: Part) -> dict[str, Any]:
    """Return what all parts must have in common, by its name in messages."""
    plan = part.plan
    keys = {key: value for key, value in part.definition.items() if key not in ("out_channels", "deep_supervision")}
    return {
        "spacing": plan.spacing,
        "patch size": plan.by_image(plan.configuration["patch_size"]),
        "order of axes": (plan.axes, plan.reorient),
        "channels": len(plan.channels),
        "network": keys,
        "mirroring": part.first.mirror_axes,
        "folds": part.folds,
    }
