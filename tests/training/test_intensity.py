"""Batches are changed on the way to the network, the same ones after a resume."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.transforms import RandShiftIntensityd

from medunet.bundle import find_bundle
from medunet.training import IntensityHandler
from medunet.transforms import RandDeformd, RandNoised

STEPS = 3
"""Of an epoch."""


def seen(handler: IntensityHandler, *, epochs: int = 1, done: int = 0) -> list[torch.Tensor]:
    """The images that a network sees, in a training that goes on after some epochs."""
    images: list[torch.Tensor] = []
    engine = Engine(lambda _, batch: images.append(batch["image"]))
    engine.state.device = torch.device("cpu")

    @engine.on(Events.STARTED)
    def resume(_: Engine) -> None:
        engine.state.epoch, engine.state.iteration = done, done * STEPS

    handler.attach(engine)
    engine.run(({"image": torch.zeros(3, 1, 4, 4)} for _ in range(99)), max_epochs=epochs, epoch_length=STEPS)
    return images


def make(seed: int = 0, rank: int = 0) -> IntensityHandler:
    steps = [RandShiftIntensityd("image", offsets=1.0, prob=0.8), RandNoised("image", std=(0.0, 1.0), prob=0.8)]
    return IntensityHandler(steps, seed=seed, rank=rank)


def test_a_resumed_training_sees_the_same_batches() -> None:
    whole = seen(make(), epochs=2)
    rest = seen(make(), epochs=2, done=1)
    assert all(torch.equal(one, other) for one, other in zip(whole[STEPS:], rest, strict=True))
    assert not any(torch.equal(whole[0], other) for other in whole[1:])


@pytest.mark.parametrize("other", [make(seed=1), make(rank=1)])
def test_seeds_and_processes_see_different_ones(other: IntensityHandler) -> None:
    assert not torch.equal(seen(make())[0], seen(other)[0])


def test_nothing_is_done_without_steps() -> None:
    assert not any(bool(images.any()) for images in seen(IntensityHandler()))


@pytest.mark.parametrize("name", ["unet_2d", "unet_3d"])
def test_shipped_configs_change_grey_values_once(name: str) -> None:
    for batched in (True, False):
        parser = ConfigParser()
        parser.read_config(str(find_bundle(name) / "configs" / "train.json"))
        parser.update({"batch_intensity": batched, "device": torch.device("cpu")})
        patch_steps = parser.get_parsed_content("augment_steps")
        (entry,) = [h for h in parser["train"]["handlers"] if h["_target_"].endswith("IntensityHandler")]
        index = parser["train"]["handlers"].index(entry)
        handler = parser.get_parsed_content(f"train::handlers::{index}")
        assert isinstance(patch_steps[0], RandDeformd)
        assert (len(patch_steps), len(handler.change.steps)) == ((1, 3) if batched else (4, 0))
