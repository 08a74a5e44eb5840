from __future__ import annotations

import pytest
import torch

from medunet.errors import ConfigError
from medunet.inferers import OverlapTileInferer
from medunet.networks import UNet
from medunet.runtime import EnsembleLogits


def make_network(seed: int, **options) -> UNet:
    torch.manual_seed(seed)
    return UNet(2, 1, 3, **{"channels": (4, 6), "norm": "batch", **options}).eval()


def test_probabilities_are_averaged():
    members, image = [make_network(seed) for seed in range(3)], torch.randn(1, 1, 20, 22)
    with torch.inference_mode():
        expected = sum(member(image).softmax(dim=1) for member in members) / 3
        torch.testing.assert_close(EnsembleLogits(members)(image).exp(), expected)
        sigmoids = sum(member(image).sigmoid() for member in members) / 3
        torch.testing.assert_close(EnsembleLogits(members, activation="sigmoid")(image).sigmoid(), sigmoids)


def test_tiles_change_no_voxel():
    ensemble, image = EnsembleLogits([make_network(seed) for seed in range(2)]), torch.randn(1, 1, 75, 81)
    with torch.inference_mode():
        torch.testing.assert_close(
            OverlapTileInferer(40)(image, ensemble), OverlapTileInferer(None)(image, ensemble), atol=1e-5, rtol=0
        )


def test_a_member_that_cannot_be_tiled_is_named():
    ensemble = EnsembleLogits([make_network(0), make_network(1, norm="instance")])
    assert not ensemble.tileable
    assert "instance" in ensemble.tileable_reason


def test_networks_that_do_not_go_together_are_rejected():
    with pytest.raises(ConfigError, match="different sizes"):
        EnsembleLogits([make_network(0), make_network(1, channels=(4, 6, 8))])
    with pytest.raises(ConfigError, match="needs a network"):
        EnsembleLogits([])
    with pytest.raises(ConfigError, match="unknown activation"):
        EnsembleLogits([make_network(0)], activation="tanh")
