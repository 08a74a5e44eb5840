from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer

from medunet.errors import ConfigError
from medunet.inferers import ScaleInferer


class Brightness(torch.nn.Module):
    """Probability of class 1 is the sigmoid of the pixel: what is averaged can be computed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tuple(image.shape[2:]))
        return torch.cat([torch.zeros_like(image), image], dim=1)


def test_one_scale_of_one_is_the_image_itself():
    image = torch.randn(2, 1, 33, 35)
    network = Brightness()
    found = ScaleInferer(SimpleInferer(), scales=[1.0])(image, network)
    torch.testing.assert_close(found, torch.log_softmax(network(image), dim=1))


@pytest.mark.parametrize("size", [(33, 35), (17, 18, 19)])
def test_constant_image_is_constant_at_every_scale(size):
    network = Brightness()
    found = ScaleInferer(SimpleInferer(), scales=[0.5, 1.0, 1.5])(torch.full((1, 1, *size), 0.7), network)
    expected = torch.log_softmax(torch.tensor([0.0, 0.7]), dim=0)
    torch.testing.assert_close(found[0].flatten(1), expected[:, None].expand(2, int(np.prod(size))), atol=1e-5, rtol=0)
    assert network.sizes == [tuple(round(n * scale) for n in size) for scale in (0.5, 1.0, 1.5)]


def test_smaller_view_averages_noise_away():
    checkers = ((torch.arange(32)[:, None] + torch.arange(32)) % 2).float()[None, None] * 4 - 2
    network = Brightness()
    alone = ScaleInferer(SimpleInferer(), scales=[0.5])(checkers, network).exp()[0, 1]
    assert (alone - 0.5).abs()[4:-4, 4:-4].max() < 0.05  # at full size 0.12 and 0.88


def test_meta_data_are_kept():
    image = MetaTensor(torch.randn(1, 1, 8, 9), meta={"name": "a"})
    found = ScaleInferer(SimpleInferer(), scales=[0.5, 1.0])(image, Brightness())
    assert isinstance(found, MetaTensor)
    assert found.meta["name"] == "a"


@pytest.mark.parametrize("scales", [[], [0.0], [1.0, -0.5]])
def test_impossible_scales_are_refused(scales):
    with pytest.raises(ConfigError, match="impossible scales"):
        ScaleInferer(SimpleInferer(), scales=scales)
