"""Test-time augmentation: mirrored, transposed and scaled views."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer

from medunet.errors import ConfigError
from medunet.inferers import MirrorInferer, OverlapTileInferer, ScaleInferer


def make_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv2d(1, 3, kernel_size=3, padding=1).eval()


@torch.inference_mode()
def test_the_mean_over_the_dihedral_group_is_equivariant() -> None:
    network, image = make_network(), torch.rand(2, 1, 9, 9)
    inferer = MirrorInferer(SimpleInferer(), axes=[0, 1], transpose=True)
    turned = inferer(image.rot90(1, (2, 3)), network)
    torch.testing.assert_close(turned, inferer(image, network).rot90(1, (2, 3)))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@torch.inference_mode()
def test_mirrored_views_are_averaged_as_probabilities(activation: str) -> None:
    network, image = make_network(), torch.rand(1, 1, 5, 8)
    apply = torch.sigmoid if activation == "sigmoid" else torch.nn.Softmax(dim=1)
    mean = apply(MirrorInferer(SimpleInferer(), axes=[1], activation=activation)(image, network))
    torch.testing.assert_close(mean, (apply(network(image)) + apply(network(image.flip(3))).flip(3)) / 2)


@pytest.mark.parametrize(
    "inferer",
    [MirrorInferer(OverlapTileInferer(None), axes=[]), ScaleInferer(SimpleInferer(), scales=[1.0])],
    ids=["no axis", "scale 1"],
)
@torch.inference_mode()
def test_a_single_view_is_the_softmax_and_keeps_metadata(inferer: MirrorInferer | ScaleInferer) -> None:
    network, image = make_network(), MetaTensor(torch.rand(2, 1, 5, 8), meta={"filename_or_obj": "a.png"})
    output = inferer(image, network)
    torch.testing.assert_close(output.as_tensor(), network(image.as_tensor()).log_softmax(dim=1))
    assert output.meta["filename_or_obj"] == "a.png"


@pytest.mark.parametrize("batch_size", [2, 3, 8])
@pytest.mark.parametrize("size", [(1, 1, 9, 9), (2, 1, 12, 17)], ids=str)
@torch.inference_mode()
def test_batched_views_match_single_views(size: tuple[int, ...], batch_size: int) -> None:
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


class Brightness(torch.nn.Module):
    """Probability of class 1 is the sigmoid of the pixel, so a mean can be computed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tuple(image.shape[2:]))
        return torch.cat([torch.zeros_like(image), image], dim=1)


@pytest.mark.parametrize("size", [(33, 35), (17, 18, 19)])
def test_a_constant_image_is_constant_at_every_scale(size: tuple[int, ...]) -> None:
    network = Brightness()
    result = ScaleInferer(SimpleInferer(), scales=[0.5, 1.0, 1.5])(torch.full((1, 1, *size), 0.7), network)
    expected = torch.log_softmax(torch.tensor([0.0, 0.7]), dim=0)
    torch.testing.assert_close(result[0].flatten(1), expected[:, None].expand(2, int(np.prod(size))), atol=1e-5, rtol=0)
    assert network.sizes == [tuple(round(n * scale) for n in size) for scale in (0.5, 1.0, 1.5)]


def test_a_smaller_view_averages_noise_away() -> None:
    checkers = ((torch.arange(32)[:, None] + torch.arange(32)) % 2).float()[None, None] * 4 - 2
    alone = ScaleInferer(SimpleInferer(), scales=[0.5])(checkers, Brightness()).exp()[0, 1]
    assert (alone - 0.5).abs()[4:-4, 4:-4].max() < 0.05  # at full size 0.12 and 0.88


@pytest.mark.parametrize("scales", [[], [1.0, -0.5]])
def test_invalid_scales_are_rejected(scales: list[float]) -> None:
    with pytest.raises(ConfigError, match="positive factors"):
        ScaleInferer(SimpleInferer(), scales=scales)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"activation": "relu"}, {"axes": [2]}], ids=str)
def test_invalid_options_of_mirroring_are_rejected(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        MirrorInferer(SimpleInferer(), **{"axes": [0], **options})(torch.rand(1, 1, 4, 4), make_network())
