"""Weights of public U-Nets in a `UNet`, which shows that it computes the same function."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from medunet.networks import UNet

Layer = dict[str, torch.Tensor]  # tensors of a convolution or a normalisation by their names in PyTorch


class PublicForm(NamedTuple):
    """Structure of a public implementation."""

    arguments: dict[str, Any]  # of its `UNet`, beside the numbers of channels
    order: tuple[str, ...] = ()  # prefixes of its layers in the order of computation, if it registers them otherwise
    skip_first: bool = True  # the skip connection comes first in the concatenation, as in `UNet`


# Public implementations by their author, whose output `UNet` reproduces for images whose size is a multiple of the
# total stride (milesial: of any size). `UNet` has no counterpart of bilinear upsampling with `align_corners=True`
# (milesial with bilinear=True, usuyama), average pooling (jvanvugt), and nearest upsampling with a 2x2 convolution
# (zhixuhao).
PUBLIC: dict[str, PublicForm] = {
    # github.com/milesial/Pytorch-UNet with bilinear=False
    "milesial": PublicForm({"norm": "batch"}),
    # github.com/mateuszbuda/brain-segmentation-pytorch
    "mateuszbuda": PublicForm({"norm": "batch", "out_activation": "sigmoid"}, skip_first=False),
    # github.com/aladdinpersson/Machine-Learning-Collection, ML/Pytorch/image_segmentation
    "aladdinpersson": PublicForm({"norm": "batch"}, ("downs", "bottleneck", "ups")),
}


def load_public(state: Mapping[str, Any], source: str) -> UNet:
    """Return the `UNet` of a public implementation with its weights, in evaluation mode.

    The numbers of levels, channels and classes follow from the weights. A bias before a batch norm becomes part of the
    running mean, so the result is exact in evaluation mode.
    """
    form = PUBLIC[source]
    layers = _layers(state, form.order)
    kernels = [layer["weight"] for layer in layers if "weight" in layer and layer["weight"].ndim == 4]
    ups = sum(kernel.shape[-1] == 2 for kernel in kernels)
    channels = [kernel.shape[0] for kernel in kernels[1 : 2 * ups + 2 : 2]]
    network = UNet(2, kernels[0].shape[1], kernels[-1].shape[0], channels, **form.arguments)
    fill(network, layers, skip_first=form.skip_first)
    return network.eval()


def _layers(state: Mapping[str, Any], order: tuple[str, ...]) -> list[Layer]:
    """Return the layers of a state dictionary in the order of computation."""
    layers: dict[str, Layer] = {}
    for key, value in state.items():
        name, _, tensor = key.removeprefix("module.").rpartition(".")
        if isinstance(value, torch.Tensor):
            layers.setdefault(name, {})[tensor] = value

    def place(name: str) -> int:
        return next((index for index, start in enumerate(order) if name.startswith(start)), len(order))

    return [layers[name] for name in sorted(layers, key=place)]


def fill(network: UNet, layers: list[Layer], *, skip_first: bool) -> None:
    """Copy the tensors of a public network, layer by layer."""
    joined = {
        next(m for m in level.get_submodule("convs").modules() if isinstance(m, nn.Conv2d)) for level in network.decoder
    }
    bias: torch.Tensor | None = None
    modules = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d)]
    with torch.no_grad():
        for module, layer in zip(modules, layers, strict=True):
            values = dict(layer)
            if isinstance(module, nn.BatchNorm2d):
                if bias is not None:
                    values["running_mean"] = values["running_mean"] - bias
                values.setdefault("num_batches_tracked", torch.tensor(0))
            elif module in joined and not skip_first:
                values["weight"] = torch.cat(values["weight"].chunk(2, dim=1)[::-1], dim=1)
            bias = None if module.bias is not None else values.pop("bias", None)
            module.load_state_dict(values)
