import pytest
import torch

from medunet.errors import ConfigError
from medunet.inferers import OverlapTileInferer
from medunet.networks import UNet, window_dependence
from medunet.runtime import EnsembleLogits


def make_network(seed: int, **options) -> UNet:
    torch.manual_seed(seed)
    return UNet(2, 1, 3, **{"channels": (4, 6), "norm": "batch", **options}).eval()


def test_probabilities_are_averaged_with_and_without_tiles():
    members, image = [make_network(seed) for seed in range(3)], torch.randn(1, 1, 75, 81)
    with torch.inference_mode():
        softmax = sum(member(image).softmax(dim=1) for member in members) / 3
        sigmoid = sum(member(image).sigmoid() for member in members) / 3
        for inferer in (OverlapTileInferer(40), OverlapTileInferer(None)):
            found = inferer(image, EnsembleLogits(members))
            torch.testing.assert_close(found.exp(), softmax, atol=1e-5, rtol=0)
            found = inferer(image, EnsembleLogits(members, activation="sigmoid"))
            torch.testing.assert_close(found.sigmoid(), sigmoid, atol=1e-5, rtol=0)


def test_one_member_that_cannot_be_tiled_makes_the_ensemble_untileable():
    assert "instance" in window_dependence(EnsembleLogits([make_network(0), make_network(1, norm="instance")]))


@pytest.mark.parametrize("members", [[], [make_network(0), make_network(1, channels=(4, 6, 8))]], ids=len)
def test_an_ensemble_needs_networks_of_the_same_sizes(members):
    with pytest.raises(ConfigError, match="of the same sizes"):
        EnsembleLogits(members)
