"""Grey values of a batch: each image draws for itself, as if it were alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandAdjustContrastd, RandScaleIntensityd, RandShiftIntensityd

from medunet.errors import ConfigError
from medunet.transforms import BatchIntensity, RandNoised

ONES = torch.ones(64, 2, 5, 6)


def steps(prob: float, *, noise: float = 0.0) -> list[object]:
    return [
        RandScaleIntensityd("image", factors=0.25, prob=prob),
        RandShiftIntensityd("image", offsets=0.2, prob=prob),
        RandNoised("image", std=(0.0, 0.1), prob=noise),
    ]


def test_every_image_has_numbers_of_its_own() -> None:
    found = BatchIntensity(steps(0.5))(ONES, seed=1)
    values = found.flatten(1)
    assert torch.equal(values.amin(1), values.amax(1))  # one factor and one offset an image
    assert 40 < len(values[:, 0].unique()) <= 64
    assert 5 < int((values[:, 0] == 1).sum()) < 30  # a quarter is left alone


def test_the_order_of_factor_and_offset_is_that_of_the_steps() -> None:
    scale = RandScaleIntensityd("image", factors=(1.0, 1.0), prob=1.0)
    shift = RandShiftIntensityd("image", offsets=(3.0, 3.0), prob=1.0)
    assert BatchIntensity([scale, shift])(ONES, seed=0).unique().tolist() == [5.0]
    assert BatchIntensity([shift, scale])(ONES, seed=0).unique().tolist() == [8.0]
    quiet = RandNoised("image", std=(0.0, 0.0), prob=1.0)
    assert BatchIntensity([scale, quiet, shift])(ONES, seed=0).unique().tolist() == [5.0]


def test_it_is_distributed_as_single_images_are() -> None:
    single = Compose(steps(0.5, noise=0.5)).set_random_state(0)
    alone = torch.stack([single({"image": image})["image"].as_tensor() for image in ONES.repeat(8, 1, 1, 1)])
    together = BatchIntensity(steps(0.5, noise=0.5))(ONES.repeat(8, 1, 1, 1), seed=0)
    for part in (alone, together):
        means, spread = part.flatten(1).mean(1), part.flatten(1).std(1)
        # variance of the mean: half of a uniform factor's 0.25**2 / 3, half of a uniform offset's 0.2**2 / 3
        assert float(means.mean()) == pytest.approx(1.0, abs=0.03)
        assert float(means.var()) == pytest.approx((0.25**2 + 0.2**2) / 6, rel=0.25)
        assert float((spread > 1e-4).float().mean()) == pytest.approx(0.5, abs=0.1)


def test_a_seed_means_one_result_and_another_seed_another() -> None:
    change = BatchIntensity(steps(0.5, noise=0.5))
    assert torch.equal(change(ONES, seed=(3, 0, 7)), change(ONES, seed=(3, 0, 7)))
    for other in ((3, 0, 8), (3, 1, 7), (4, 0, 7)):
        assert not torch.equal(change(ONES, seed=(3, 0, 7)), change(ONES, seed=other))


def test_numbers_do_not_depend_on_random_states_around() -> None:
    change = BatchIntensity(steps(0.5, noise=0.5))
    first = change(ONES, seed=5)
    torch.manual_seed(99)
    np.random.seed(99)
    state = torch.get_rng_state()
    assert torch.equal(change(ONES, seed=5), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_input_is_left_alone_and_its_type_kept() -> None:
    images = torch.ones(4, 1, 8, 8, dtype=torch.float16).to(memory_format=torch.channels_last)
    found = BatchIntensity(steps(1.0, noise=1.0))(images, seed=0)
    assert torch.equal(images, torch.ones_like(images))
    assert found.dtype == torch.float16
    assert BatchIntensity(steps(0.0))(images, seed=0) is images
    assert BatchIntensity([])(images, seed=0) is images


@pytest.mark.parametrize(
    "step",
    [
        RandAdjustContrastd("image", prob=1.0),
        RandShiftIntensityd("image", offsets=0.1, channel_wise=True),
        RandScaleIntensityd("image", factors=0.1, channel_wise=True),
    ],
)
def test_other_changes_are_refused_with_a_remedy(step: object) -> None:
    with pytest.raises(ConfigError, match="set batch_intensity to false"):
        BatchIntensity([step])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_draws_the_same_factors() -> None:
    change = BatchIntensity(steps(0.5))
    torch.testing.assert_close(change(ONES.cuda(), seed=2).cpu(), change(ONES, seed=2))
