from __future__ import annotations

import monai.transforms
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medunet.errors import ConfigError
from medunet.transforms import RandNoised


def test_noise_has_the_strength_asked_for_and_no_mean():
    noise = RandNoised("image", prob=1.0, std=(0.5, 0.5)).set_random_state(0)({"image": torch.zeros(1, 60, 60, 60)})
    assert noise["image"].std().item() == pytest.approx(0.5, rel=0.01)
    assert noise["image"].mean().item() == pytest.approx(0.0, abs=0.01)


def test_strength_is_drawn_from_its_range():
    transform = RandNoised("image", prob=1.0, std=(0.2, 0.6)).set_random_state(0)
    strengths = [transform({"image": torch.zeros(1, 50, 50)})["image"].std().item() for _ in range(60)]
    assert 0.18 < min(strengths) < 0.28
    assert 0.52 < max(strengths) < 0.62


def test_the_same_state_gives_the_same_noise_and_each_call_another():
    image = torch.zeros(1, 9, 9)
    first, second = (RandNoised("image", prob=1.0).set_random_state(1) for _ in range(2))
    once = first({"image": image})["image"]
    assert torch.equal(once, second({"image": image})["image"])
    assert not torch.equal(once, first({"image": image})["image"])
    assert image.abs().max() == 0


def test_each_key_has_its_own_noise():
    item = RandNoised(["a", "b"], prob=1.0, std=(1.0, 1.0))({"a": torch.zeros(1, 9, 9), "b": torch.zeros(1, 9, 9)})
    assert not torch.equal(item["a"], item["b"])


@pytest.mark.parametrize(
    ("dtype", "want"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.uint8, torch.float32)],
)
def test_floating_types_are_kept(dtype, want):
    image = MetaTensor(torch.full((1, 9, 9), 7).to(dtype), meta={"filename_or_obj": "a.png"})
    noisy = RandNoised("image", prob=1.0)({"image": image})["image"]
    assert noisy.dtype == want
    assert noisy.meta["filename_or_obj"] == "a.png"
    assert noisy.float().mean().item() == pytest.approx(7, abs=0.1)


def test_without_noise_the_image_is_the_same_object():
    image = np.zeros((1, 4, 4), dtype=np.float32)
    assert RandNoised("image", prob=0.0)({"image": image})["image"] is image


@pytest.mark.parametrize("std", [(0.2, 0.1), (-0.1, 0.1), (0.1,)])
def test_an_impossible_range_is_a_config_error(std):
    with pytest.raises(ConfigError):
        RandNoised("image", std=std)


@pytest.mark.parametrize("invert", [False, True])
def test_gamma_of_monai_keeps_mean_and_spread(invert):
    image = torch.rand(1, 30, 31, generator=torch.Generator().manual_seed(0)) * 5 - 2
    gamma = monai.transforms.RandAdjustContrastd(
        "image", prob=1.0, gamma=(2.0, 2.0), retain_stats=True, invert_image=invert
    )
    changed = gamma({"image": image})["image"]
    assert changed.mean().item() == pytest.approx(image.mean().item(), abs=1e-4)
    assert changed.std().item() == pytest.approx(image.std().item(), rel=1e-4)
    # gamma 2 widens the bright half; inverted, the dark half
    skew = ((changed - changed.mean()) ** 3).mean()
    assert (skew < 0) if invert else (skew > 0)


def test_contrast_of_monai_keeps_the_mean():
    image = torch.rand(1, 30, 31, generator=torch.Generator().manual_seed(0))
    contrast = monai.transforms.RandScaleIntensityFixedMeand("image", prob=1.0, factors=(0.5, 0.5), fixed_mean=True)
    changed = contrast({"image": image})["image"]
    assert changed.mean().item() == pytest.approx(image.mean().item(), abs=1e-5)
    assert changed.std().item() == pytest.approx(1.5 * image.std().item(), rel=1e-4)
