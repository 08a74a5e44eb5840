"""Test-time mirroring."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer

from medunet.errors import ConfigError
from medunet.inferers import MirrorInferer, OverlapTileInferer


def make_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv2d(1, 3, kernel_size=3, padding=1).eval()


@torch.inference_mode()
def test_the_mean_over_the_dihedral_group_is_equivariant() -> None:
    network, image = make_network(), torch.rand(2, 1, 9, 9)
    inferer = MirrorInferer(SimpleInferer(), axes=[0, 1], transpose=True)
    turned = inferer(image.rot90(1, (2, 3)), network)
    torch.testing.assert_close(turned, inferer(image, network).rot90(1, (2, 3)))


@torch.inference_mode()
def test_two_views_are_the_mean_of_two_softmaxes() -> None:
    network, image = make_network(), torch.rand(1, 1, 5, 8)
    mean = MirrorInferer(SimpleInferer(), axes=[1])(image, network).softmax(dim=1)
    there = network(image).softmax(dim=1)
    back = network(image.flip(3)).softmax(dim=1).flip(3)
    torch.testing.assert_close(mean, (there + back) / 2)


@torch.inference_mode()
def test_no_axis_is_the_softmax_itself_and_meta_data_stay() -> None:
    network = make_network()
    image = MetaTensor(torch.rand(1, 1, 5, 8), meta={"filename_or_obj": "a.png"})
    output = MirrorInferer(OverlapTileInferer(None), axes=[])(image, network)
    torch.testing.assert_close(output.as_tensor(), network(image.as_tensor()).log_softmax(dim=1))
    assert output.meta["filename_or_obj"] == "a.png"


def test_an_axis_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="axis"):
        MirrorInferer(SimpleInferer(), axes=[2])(torch.rand(1, 1, 4, 4), make_network())


@pytest.mark.parametrize("batch_size", [2, 3, 8])
@pytest.mark.parametrize("size", [(1, 1, 9, 9), (2, 1, 12, 17)], ids=str)
@torch.inference_mode()
def test_views_in_batches_are_views_one_by_one(size: tuple[int, ...], batch_size: int) -> None:
    network, image = make_network(), torch.rand(size)
    calls: list[int] = []
    network.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    alone = MirrorInferer(SimpleInferer(), axes=[0, 1], transpose=True)(image, network)
    assert calls == [len(image)] * 8
    calls.clear()
    batched = MirrorInferer(SimpleInferer(), axes=[0, 1], transpose=True, batch_size=batch_size)(image, network)
    assert sum(calls) == 8 * len(image)
    assert max(calls) == min(batch_size, 4) * len(image)  # views that are transposed have another size
    torch.testing.assert_close(batched, alone)


@torch.inference_mode()
def test_sigmoid_channels_are_averaged_each() -> None:
    network, image = make_network(), torch.rand(1, 1, 5, 8)
    mean = MirrorInferer(SimpleInferer(), axes=[1], activation="sigmoid")(image, network).sigmoid()
    torch.testing.assert_close(mean, (network(image).sigmoid() + network(image.flip(3)).sigmoid().flip(3)) / 2)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"activation": "relu"}], ids=str)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        MirrorInferer(SimpleInferer(), axes=[0], **options)
