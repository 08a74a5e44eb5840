"""The network that is exported: image channels in, logits out, one tile at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medunet.config import read_json
from medunet.errors import ConfigError
from medunet.networks import UNetShapes
from medunet.networks.activation import PROBABILITY_FLOOR, SIGMOID_FLOOR
from medunet.prediction.configuration import parse_inference
from medunet.runtime import EnsembleLogits, fold_batch_norm, load_weights

from .description import describe
from .tile_sizes import TileSizes

EXACT = {"autocast_dtype": "float32"}
"""With this a bundle answers in float32; what is exported is compared with that."""


@dataclass(frozen=True)
class TileNetwork:
    """A bundle's network, ready to be written.

    Args:
        bundle: its folder.
        module: what is written: batch norm folded, float32, on the CPU; can be scripted and exported.
        reference: the network as the bundle has it, with which files are compared.
        shapes: of the network.
        sizes: of the tiles that files take.
        patch: a usual tile, as the bundle's metadata have it.
        description: what a file says about itself.
        metadata: the bundle's, without hashes of its files.
        largest: tile that the file takes; None for any.
    """

    bundle: Path
    module: nn.Module
    reference: nn.Module
    shapes: UNetShapes
    sizes: TileSizes
    patch: tuple[int, ...]
    description: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    largest: tuple[int, ...] | None = None

    @property
    def channels(self) -> int:
        """Of the image."""
        return int(self.description["in_channels"])

    def limited(self, largest: tuple[int, ...] | None) -> TileNetwork:
        """The same for files that take tiles up to a size, and say so."""
        if largest is None:
            return self
        tile = {**self.description["tile"], "largest": list(largest)}
        return replace(self, largest=largest, description={**self.description, "tile": tile})

    def dynamic_shapes(self) -> dict[int, Any]:
        """The axes whose sizes stay open, as `torch.export` takes them."""
        dims: dict[int, Any] = {0: torch.export.Dim("batch")}
        rows = zip("xyz", self.sizes.least, self.sizes.remainder, self.sizes.multiple, strict=False)
        for axis, (name, least, remainder, multiple) in enumerate(rows, start=2):
            tiles = torch.export.Dim(name, min=-(-(least - remainder) // multiple))
            dims[axis] = tiles if multiple == 1 else multiple * tiles + remainder
        return dims

    def export(self) -> torch.export.ExportedProgram:
        """The network as a graph with open sizes."""
        example = torch.zeros(2, self.channels, *self.sizes.example())  # a batch of one would be taken for a constant
        with torch.no_grad():
            program = torch.export.export(self.module, (example,), dynamic_shapes=(self.dynamic_shapes(),))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # lines of source code, and the paths of their files
        return program


class MeanLogits(nn.Module):
    """What :class:`medunet.runtime.EnsembleLogits` computes, in a form that TorchScript can say.

    Args:
        members: networks of one output.
        activation: `softmax` or `sigmoid`.
    """

    def __init__(self, members: Sequence[nn.Module], *, activation: str) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.is_softmax = activation == "softmax"
        self.count = len(members)
        self.least, self.eps = PROBABILITY_FLOOR, SIGMOID_FLOOR

    def forward(self, image: Tensor) -> Tensor:
        """`(B, C, *spatial)` to `(B, classes, *spatial)`."""
        shares: list[Tensor] = []
        for member in self.members:
            logits = member(image)
            shares.append(torch.softmax(logits, dim=1) if self.is_softmax else torch.sigmoid(logits))
        mean = torch.stack(shares).mean(dim=0)
        return mean.clamp_min(self.least).log() if self.is_softmax else torch.logit(mean, eps=self.eps)


class ExportedNetwork(nn.Module):
    """A file in the place of the network that it was made of, for an inferer.

    Args:
        run: evaluates the file.
        reference: the network; it answers questions about sizes and memory.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], reference: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.reference = reference

    @property
    def shapes(self) -> UNetShapes:
        """Sizes, as the network has them."""
        shapes: UNetShapes = self.reference.shapes  # type: ignore[assignment]  # an attribute that is no module
        return shapes

    @property
    def tileable(self) -> bool:
        """Whether tiles leave the result alone."""
        return bool(getattr(self.reference, "tileable", True))

    @property
    def tileable_reason(self) -> str:
        """Why, or why not."""
        return str(getattr(self.reference, "tileable_reason", ""))

    def forward(self, image: Tensor) -> Tensor:
        """`(B, C, *spatial)` to logits, float32."""
        if image.device.type == "meta":
            logits: Tensor = self.reference(image)
            return logits
        return self.run(image)


def load_tile_network(bundle: Path, *, trust: bool = False) -> TileNetwork:
    """Read a bundle's network with its weights.

    Args:
        bundle: folder of a bundle or run with weights.
        trust: of a bundle that could run code of its own, see :func:`medunet.trust.require_trust`.

    Raises:
        SecurityError: the bundle is not trusted.
        DataError: no weights, or weights of another network.
        ConfigError: a network whose sizes are not known.
    """
    parser = parse_inference(bundle, device=torch.device("cpu"), overrides=EXACT, trust=trust)
    reference: nn.Module = parser.get_parsed_content("network_def")
    load_weights(reference, parser.get_parsed_content("ckpt_path"))
    reference = reference.float().eval().requires_grad_(False)
    shapes = getattr(reference, "shapes", None)
    if not isinstance(shapes, UNetShapes):
        raise ConfigError(
            "the network does not say what it does to sizes",
            file=bundle,
            received=type(reference).__name__,
            expected="a network of medunet.networks, or an ensemble of them",
        )
    metadata = read_json(bundle / "configs" / "metadata.json")
    sizes = TileSizes.of(shapes)
    image = metadata.get("network_data_format", {}).get("inputs", {}).get("image", {})
    patch = image.get("spatial_shape") or sizes.least
    usable = len(patch) == len(sizes.least) and all(isinstance(n, int) for n in patch)
    return TileNetwork(
        bundle=bundle,
        module=_foldable(reference),
        reference=reference,
        shapes=shapes,
        sizes=sizes,
        patch=sizes.fit(tuple(patch)) if usable else sizes.least,
        description=describe(parser, metadata=metadata, shapes=shapes, network=reference, sizes=sizes),
        metadata={key: value for key, value in metadata.items() if key != "weights"},
    )


def _foldable(network: nn.Module) -> nn.Module:
    if isinstance(network, EnsembleLogits):
        members = [fold_batch_norm(member) for member in network.members]
        return MeanLogits(members, activation=network.activation).eval().requires_grad_(False)
    return fold_batch_norm(network).requires_grad_(False)
