"""Normalisation, noise of single images, and brightness and noise of batches, whose images draw independently."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandFlipd,
    RandScaleIntensityd,
    RandShiftIntensityd,
)

from medunet.errors import ConfigError
from medunet.transforms import BatchIntensity, NormalizeChannelsd, RandBiasd, RandNoised

ONES = torch.ones(64, 2, 5, 6)
CT = {"low": -100.0, "high": 300.0, "mean": 100.0, "std": 50.0}


def test_ct_is_scaled_by_fixed_numbers_and_other_channels_by_their_own_statistics():
    image = torch.stack([torch.tensor([-2000.0, 100.0, 150.0, 900.0]), torch.tensor([2.0, 2.0, 4.0, 4.0])])[..., None]
    ct, mr = NormalizeChannelsd("image", [CT, None])({"image": image})["image"][..., 0]
    assert ct.tolist() == [-4.0, 0.0, 1.0, 4.0]
    assert mr.tolist() == [-1.0, -1.0, 1.0, 1.0]


def test_normalised_images_keep_their_metadata():
    image = MetaTensor(torch.ones(1, 3, 3), meta={"filename_or_obj": "a.nii.gz"}, applied_operations=[{"class": "X"}])
    scaled = NormalizeChannelsd("image", [None])({"image": image})["image"]
    assert scaled.meta["filename_or_obj"] == "a.nii.gz"
    assert len(scaled.applied_operations) == 1
    assert not scaled.as_tensor().any()  # a constant image
    with pytest.raises(ConfigError, match=r"a\.nii\.gz: wrong number of channels"):
        NormalizeChannelsd("image", [CT, None])({"image": image})
    with pytest.raises(ConfigError, match="invalid normalisation"):
        NormalizeChannelsd("image", [{"low": 1.0}])


def steps(prob: float, *, noise: float = 0.0) -> list[object]:
    return [
        RandScaleIntensityd("image", factors=0.25, prob=prob),
        RandShiftIntensityd("image", offsets=0.2, prob=prob),
        RandNoised("image", std=(0.0, 0.1), prob=noise),
    ]


def test_noise_has_zero_mean_and_a_strength_within_its_range():
    transform = RandNoised("image", prob=1.0, std=(0.2, 0.6)).set_random_state(0)
    noise = torch.stack([transform({"image": torch.zeros(1, 50, 50)})["image"] for _ in range(60)])
    strengths = noise.flatten(1).std(dim=1)
    assert 0.18 < strengths.min() < 0.28
    assert 0.52 < strengths.max() < 0.62
    assert noise.mean().item() == pytest.approx(0.0, abs=0.01)


def test_noise_depends_on_random_state_call_and_key():
    image = torch.zeros(1, 9, 9)
    first, second = (RandNoised(["a", "b"], prob=1.0).set_random_state(1) for _ in range(2))
    once = first({"a": image, "b": image})
    assert torch.equal(once["a"], second({"a": image, "b": image})["a"])
    assert not torch.equal(once["a"], once["b"])
    assert not torch.equal(once["a"], first({"a": image, "b": image})["a"])
    assert image.abs().max() == 0


@pytest.mark.parametrize(("dtype", "want"), [(torch.bfloat16, torch.bfloat16), (torch.uint8, torch.float32)])
def test_noise_keeps_floating_types_and_metadata(dtype, want):
    image = MetaTensor(torch.full((1, 9, 9), 7).to(dtype), meta={"filename_or_obj": "a.png"})
    noisy = RandNoised("image", prob=1.0)({"image": image})["image"]
    assert noisy.dtype == want
    assert noisy.meta["filename_or_obj"] == "a.png"
    assert noisy.float().mean().item() == pytest.approx(7, abs=0.1)
    assert RandNoised("image", prob=0.0)({"image": image})["image"] is image


def test_invalid_ranges_are_rejected():
    for std in ((0.2, 0.1), (-0.1, 0.1), (0.1,)):
        with pytest.raises(ConfigError, match="std must be"):
            RandNoised("image", std=std)


def test_factor_and_offset_follow_the_order_of_the_steps():
    scale = RandScaleIntensityd("image", factors=(1.0, 1.0), prob=1.0)
    shift = RandShiftIntensityd("image", offsets=(3.0, 3.0), prob=1.0)
    quiet = RandNoised("image", std=(0.0, 0.0), prob=1.0)
    for order, want in (([scale, shift], 5.0), ([shift, scale], 8.0), ([scale, quiet, shift], 5.0)):
        assert BatchIntensity(order)(ONES, seed=0).unique().tolist() == [want]


def test_batches_have_the_distribution_of_single_images():
    single = Compose(steps(0.5, noise=0.5)).set_random_state(0)
    alone = torch.stack([single({"image": image})["image"].as_tensor() for image in ONES.repeat(8, 1, 1, 1)])
    together = BatchIntensity(steps(0.5, noise=0.5))(ONES.repeat(8, 1, 1, 1), seed=0)
    for part in (alone, together):
        means, spread = part.flatten(1).mean(1), part.flatten(1).std(1)
        # variance of the mean: half of a uniform factor's 0.25**2 / 3, half of a uniform offset's 0.2**2 / 3
        assert float(means.mean()) == pytest.approx(1.0, abs=0.03)
        assert float(means.var()) == pytest.approx((0.25**2 + 0.2**2) / 6, rel=0.25)
        assert float((spread > 1e-4).float().mean()) == pytest.approx(0.5, abs=0.1)


def test_the_seed_alone_determines_a_batch():
    change = BatchIntensity(steps(0.5, noise=0.5))
    first = change(ONES, seed=(3, 0, 7))
    torch.manual_seed(99)
    np.random.seed(99)
    state = torch.get_rng_state()
    assert torch.equal(change(ONES, seed=(3, 0, 7)), first)
    assert torch.equal(torch.get_rng_state(), state)
    for other in ((3, 0, 8), (3, 1, 7), (4, 0, 7)):
        assert not torch.equal(change(ONES, seed=other), first)


def test_batches_are_not_changed_in_place_and_keep_their_type():
    images = torch.ones(4, 1, 8, 8, dtype=torch.float16).to(memory_format=torch.channels_last)
    assert BatchIntensity(steps(1.0, noise=1.0))(images, seed=0).dtype == torch.float16
    assert torch.equal(images, torch.ones_like(images))
    assert BatchIntensity(steps(0.0))(images, seed=0) is images
    assert BatchIntensity([])(images, seed=0) is images


@pytest.mark.parametrize("step", [RandFlipd("image", prob=1.0), RandAdjustContrastd("image"), Compose()])
def test_transforms_that_may_move_voxels_are_rejected_with_a_remedy(step):
    with pytest.raises(ConfigError, match="move it from intensity_steps to contrast_steps"):
        BatchIntensity([step])


def test_every_kind_of_change_is_drawn_per_image_and_depends_on_the_seed_only():
    images = torch.rand(6, 2, 7, 8, 9, generator=torch.Generator().manual_seed(0))
    for step in (
        RandBiasd("image", prob=0.5),
        RandShiftIntensityd("image", offsets=0.5, prob=0.5, channel_wise=True),
    ):
        before, change = images.clone(), BatchIntensity([step])
        first = change(images, seed=5)
        assert torch.equal(images, before)
        assert torch.equal(first, change(images, seed=5))
        assert (type(first), first.dtype, first.shape) == (torch.Tensor, images.dtype, images.shape)
        changed = (first != images).flatten(1).any(1)
        assert 0 < changed.sum() < 6
        assert not torch.equal(first, change(images, seed=6))


def test_shading_a_normalised_image_is_shading_before_normalisation():
    image = torch.rand(1, 12, 10, 8, generator=torch.Generator().manual_seed(0)).mul_(900)
    image -= image.min()

    def shade() -> RandBiasd:
        return RandBiasd("image", prob=1.0, std=(0.8, 0.8)).set_random_state(3)

    normalise = NormalizeChannelsd("image", [None])
    first = shade()(normalise({"image": image}))["image"]
    second = normalise(shade()({"image": image}))["image"]
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)
    ratio = (shade()({"image": torch.ones(1, 12, 10, 8).index_fill_(1, torch.tensor([0]), 0.0)}))["image"]
    assert ratio[0, 1:].std() > 0.1
    assert RandBiasd("image", prob=0.0)({"image": image})["image"] is image


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_draws_the_same_factors():
    change = BatchIntensity(steps(0.5))
    torch.testing.assert_close(change(ONES.cuda(), seed=2).cpu(), change(ONES, seed=2))
