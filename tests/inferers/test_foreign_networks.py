"""`OverlapTileInferer` with networks of MONAI, which have no attribute `shapes`."""

import copy
import logging
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.inferers import Inferer
from monai.networks.nets import AttentionUnet, BasicUNet, DynUNet, SegResNet, UNet
from torch import nn

from medunet.errors import ConfigError
from medunet.inferers import LabelInferer, MirrorInferer, OverlapTileInferer, ProbabilityInferer, ScaleInferer
from medunet.networks import UNet as OwnUNet
from medunet.runtime import FastNetwork

STRIDE = 4
"""Product of the strides of all networks here but `BasicUNet`, whose is 16."""
HALO = 64
"""Voxels; more than the receptive radius of every network here."""
ROUNDING = 1e-5
"""Largest difference in standard deviations of the logits: another window size sums in another order."""
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "UNet": lambda: UNet(2, 1, 2, (4, 8, 8), (2, 2), num_res_units=1, norm="batch"),
    "SegResNet": lambda: SegResNet(2, 8, 1, 2, norm="batch", blocks_down=(1, 1, 1), blocks_up=(1, 1)),
    "DynUNet": lambda: DynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8], norm_name="batch"),
    "BasicUNet": lambda: BasicUNet(2, 1, 2, (4, 4, 4, 4, 4, 4), norm="batch"),
}
GLOBAL: dict[str, Callable[[], nn.Module]] = {
    "UNet with instance norm": lambda: UNet(2, 1, 2, (4, 8, 8), (2, 2)),
    "SegResNet with group norm": lambda: SegResNet(2, 8, 1, 2, blocks_down=(1, 1, 1), blocks_up=(1, 1)),
    "AttentionUnet": lambda: AttentionUnet(2, 1, 2, (4, 8, 8), (2, 2)),
}


def make_network(make: Callable[[], nn.Module]) -> nn.Module:
    """In evaluation mode, with batch norm that has seen other data than it gets here."""
    torch.manual_seed(0)
    network = make().eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def random_image(*size: int) -> torch.Tensor:
    return torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(sum(size)))


def whole_image(network: nn.Module, image: torch.Tensor, stride: int) -> torch.Tensor:
    """One pass over the image, mirrored at its far ends to a multiple of the stride."""
    size = image.shape[2:]
    padded = np.pad(image.numpy(), [(0, 0), (0, 0), *((0, -n % stride) for n in size)], mode="reflect")
    with torch.inference_mode():
        return network(torch.from_numpy(padded))[(..., *(slice(n) for n in size))]


@pytest.mark.parametrize("size", [(208, 176), (201, 183)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_tiling_changes_no_voxel_of_a_local_network(name: str, size: tuple[int, int]) -> None:
    network, image = make_network(NETWORKS[name]), random_image(*size)
    stride = 16 if name == "BasicUNet" else STRIDE
    inferer = OverlapTileInferer(2 * HALO + 2 * stride, halo=HALO, tile_stride=stride)
    assert len(inferer.plan(size, network).tiles) > 1
    expected = whole_image(network, image, stride)
    assert expected.std() > 0
    with torch.inference_mode():
        found = inferer(image, network)
    torch.testing.assert_close(found, expected, atol=ROUNDING * float(expected.std()), rtol=0)


@pytest.mark.parametrize("name", [*NETWORKS, *GLOBAL])
@pytest.mark.parametrize("tile_size", [None, "auto"])
def test_the_whole_image_may_have_any_size(name: str, tile_size: str | None) -> None:
    network, image = make_network({**NETWORKS, **GLOBAL}[name]), random_image(33, 35)
    stride = 16 if name == "BasicUNet" else STRIDE
    with torch.inference_mode():
        found = OverlapTileInferer(tile_size, tile_stride=stride)(image, network)
    torch.testing.assert_close(found, whole_image(network, image, stride), atol=0, rtol=0)


@pytest.mark.parametrize("wrap", [lambda network: network, FastNetwork], ids=["plain", "fast"])
@pytest.mark.parametrize("name", GLOBAL)
def test_a_network_that_depends_on_the_window_is_blended_with_one_warning(
    name: str, wrap: Callable[[nn.Module], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    network, image = wrap(make_network(GLOBAL[name])).eval(), random_image(101, 97)
    inferer = OverlapTileInferer(64, tile_stride=STRIDE)
    with torch.inference_mode(), caplog.at_level(logging.WARNING, "medunet.inferers"):
        assert inferer(image, network).shape == (1, 2, 101, 97)
        assert inferer(image, network).shape == (1, 2, 101, 97)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("medunet.inferers")]
    assert len(messages) == 1
    assert "Norm2d depends on the whole window" in messages[0] or "GroupNorm depends" in messages[0]


def test_a_size_that_the_network_rejects_is_a_typed_error() -> None:
    with (
        torch.inference_mode(),
        pytest.raises(ConfigError, match=r"UNet fails on .* size: .*received \(33, 35\).*tile_stride"),
    ):
        OverlapTileInferer(None)(random_image(33, 35), make_network(NETWORKS["UNet"]))


class Excitation(nn.Module):
    """A convolution whose channels are weighted by their means, in the notation of timm: no pooling layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = self.conv(image)
        return logits * logits.mean((2, 3), keepdim=True).sigmoid()


@pytest.mark.parametrize("wrap", [lambda network: network, FastNetwork], ids=["plain", "fast"])
@pytest.mark.parametrize(("make", "name"), [(Excitation, "Excitation"), (GLOBAL["AttentionUnet"], "AttentionUnet")])
def test_a_network_without_exact_tiles_is_named_with_the_reason(
    make: Callable[[], nn.Module], name: str, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    network, image = wrap(make_network(make)).eval(), random_image(100, 60)
    with pytest.raises(ConfigError, match=rf"^{name} cannot .* without tile_stride: .*depends on the whole window"):
        OverlapTileInferer(48)(image, network)
    with torch.inference_mode():
        assert OverlapTileInferer()(image, network).shape == (1, 2, 100, 60)  # one pass is exact


class Returns(nn.Module):
    """A network whose logits are wrapped."""

    def __init__(self, wrap: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, window: torch.Tensor) -> object:
        return self.wrap(window * 2)


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: [x, -x], lambda x: (x, "more"), lambda x: {"out": x}, lambda x: {"out": [x, -x]}],
    ids=["tensor", "list", "tuple", "dictionary", "dictionary of a list"],
)
def test_the_first_output_is_used(wrap: Callable[[torch.Tensor], object]) -> None:
    image, inferer = random_image(33, 34), OverlapTileInferer(16, halo=0, tile_stride=1)
    assert torch.equal(inferer(image, Returns(wrap)), 2 * image)
    with torch.inference_mode():
        assert torch.equal(inferer(image, FastNetwork(Returns(wrap), dtype="float32").eval()), 2 * image)


@pytest.mark.parametrize(
    ("wrap", "received"),
    [
        (lambda x: {"out": x, "aux": -x}, "dict of out, aux"),
        (lambda x: {}, "dict of"),
        (lambda x: [], "list"),
        (lambda x: None, "NoneType"),
    ],
)
def test_an_output_that_is_ambiguous_is_rejected(wrap: Callable[[torch.Tensor], object], received: str) -> None:
    with pytest.raises(ConfigError, match=rf"must return a tensor.*received {received}"):
        OverlapTileInferer(None)(random_image(33, 34), Returns(wrap))


INFERERS: list[Callable[[], Inferer]] = [
    OverlapTileInferer,
    lambda: MirrorInferer(OverlapTileInferer(), axes=[0]),
    lambda: ScaleInferer(OverlapTileInferer(), scales=[1.0]),
    lambda: LabelInferer(OverlapTileInferer(), to_source=False),
    lambda: ProbabilityInferer(OverlapTileInferer(), to_source=False),
]


@pytest.mark.parametrize("make", INFERERS)
def test_an_inferer_that_was_used_can_be_pickled_and_copied(make: Callable[[], Inferer]) -> None:
    inferer, image = make(), random_image(33, 35)
    network = make_network(lambda: OwnUNet(2, 1, 2, (4, 8)))
    with torch.inference_mode():
        expected = inferer(image, network)
        for copied in (pickle.loads(pickle.dumps(inferer)), copy.deepcopy(inferer)):
            assert torch.equal(copied(image, network), expected)
