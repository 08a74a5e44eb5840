"""The exported network: image channels in, logits out, one tile at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medunet.config import read_json
from medunet.errors import ConfigError
from medunet.inferers import smallest_tile
from medunet.networks import UNetShapes
from medunet.networks.activation import PROBABILITY_FLOOR, SIGMOID_FLOOR
from medunet.prediction.configuration import parse_inference
from medunet.runtime import EnsembleLogits, fold_batch_norm, load_weights

from .description import describe

EXACT = {"autocast_dtype": "float32"}  # overrides of the bundle that a file is compared with
LARGEST_FACTOR = 2  # formats with a largest tile accept at least so many times the usual tile, per axis


@dataclass(frozen=True)
class TileSizes:
    """Sizes `multiple * n + remainder` that are at least `least`, per axis.

    The network's smallest size is left out: with one voxel on the coarsest level, some engines would broadcast an axis.
    """

    least: tuple[int, ...]
    remainder: tuple[int, ...]
    multiple: tuple[int, ...]

    @classmethod
    def of(cls, shapes: UNetShapes) -> "TileSizes":
        """Return the sizes of a network."""
        stride = shapes.total_stride
        smallest = shapes.next_valid_input((1,) * shapes.spatial_dims)
        least = tuple(n + s for n, s in zip(smallest, stride, strict=True))
        if shapes.padding == "same" and shapes.downsample != "strided":  # odd sizes are padded in the decoder
            return cls(least, (0,) * len(stride), (1,) * len(stride))
        return cls(least, tuple(n % s for n, s in zip(smallest, stride, strict=True)), stride)

    def fit(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the smallest accepted size of at least `size`.

        Examples:
            >>> TileSizes.of(UNetShapes(2, 5, padding="valid")).fit((560, 572))
            (572, 572)
        """
        return tuple(
            max(least, n + (rest - n) % step)
            for n, least, rest, step in zip(size, self.least, self.remainder, self.multiple, strict=True)
        )

    def example(self) -> tuple[int, ...]:
        """Return a size above the smallest, with a different number on every axis."""
        return self.fit([n + (n // 2 | 1) + axis for axis, n in enumerate(self.least)])


def largest_tile(shapes: UNetShapes, patch: tuple[int, ...]) -> tuple[int, ...]:
    """Return the largest tile of a format that must declare one; with it, images of any size are evaluated exactly.

    Inside an image, only voxels that are a halo away from all edges of a tile are kept, so the largest tile has the
    usual patch and its halo on both sides.

    Examples:
        >>> largest_tile(UNetShapes(3, 4), (40, 56, 40))
        (152, 168, 152)
    """
    sizes = TileSizes.of(shapes)
    context = shapes.margin if any(shapes.margin) else shapes.halo
    needed = (
        tuple(n + 2 * width for n, width in zip(patch, context, strict=True)),
        tuple(LARGEST_FACTOR * n for n in patch),
        smallest_tile(shapes, extend=1),  # labels are interpolated between neighbours within one tile
        sizes.example(),  # of the comparison
    )
    return sizes.fit(tuple(map(max, *needed)))


@dataclass(frozen=True)
class TileNetwork:
    """A bundle's network, ready for export."""

    bundle: Path
    module: nn.Module  # to export: batch norm folded, float32, on the CPU; it can be scripted and exported
    reference: nn.Module  # the bundle's own network, with which files are compared
    shapes: UNetShapes
    sizes: TileSizes  # that files accept
    patch: tuple[int, ...]  # the usual tile, from the bundle's metadata
    description: dict[str, Any]  # to store in the file
    metadata: dict[str, Any]  # of the bundle, without hashes of its files
    largest: tuple[int, ...] | None = None  # largest tile that the file accepts; None for any

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return int(self.description["in_channels"])

    def limited(self, largest: tuple[int, ...] | None) -> "TileNetwork":
        """Return the network for files that accept tiles up to a size."""
        if largest is None:
            return self
        tile = {**self.description["tile"], "largest": list(largest)}
        return replace(self, largest=largest, description={**self.description, "tile": tile})

    def export(self) -> torch.export.ExportedProgram:
        """Return the network as a graph with variable batch and tile sizes."""
        shapes: dict[int, Any] = {0: torch.export.Dim("batch")}
        rows = zip("xyz", self.sizes.least, self.sizes.remainder, self.sizes.multiple, strict=False)
        for axis, (name, least, remainder, multiple) in enumerate(rows, start=2):
            tiles = torch.export.Dim(name, min=-(-(least - remainder) // multiple))
            shapes[axis] = tiles if multiple == 1 else multiple * tiles + remainder
        example = torch.zeros(2, self.channels, *self.sizes.example())  # a batch of one would become a constant
        with torch.no_grad():
            program = torch.export.export(self.module, (example,), dynamic_shapes=(shapes,))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # source code, with paths of this machine
        return program


class MeanLogits(nn.Module):
    """Ensemble with the same mean as :class:`medunet.runtime.EnsembleLogits`, in a form that TorchScript supports."""

    def __init__(self, members: Sequence[nn.Module], *, activation: str) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.is_softmax, self.is_plain = activation == "softmax", activation == "none"
        self.least, self.eps = PROBABILITY_FLOOR, SIGMOID_FLOOR

    def forward(self, image: Tensor) -> Tensor:
        """Map `(B, C, *spatial)` to `(B, classes, *spatial)`."""
        shares: list[Tensor] = []
        for member in self.members:
            share = member(image)
            if self.is_softmax:
                share = torch.softmax(share, dim=1)
            elif not self.is_plain:
                share = torch.sigmoid(share)
            shares.append(share)
        mean = torch.stack(shares).mean(dim=0)
        if self.is_plain:
            return mean
        return mean.clamp_min(self.least).log() if self.is_softmax else torch.logit(mean, eps=self.eps)


class ExportedNetwork(nn.Module):
    """An exported file that replaces the network `reference` in an inferer; `run` runs the file."""

    def __init__(self, run: Callable[[Tensor], Tensor], reference: nn.Module) -> None:
        super().__init__()
        self.run, self.reference = run, reference
        self.shapes: Any = reference.shapes
        self.tileable = bool(getattr(reference, "tileable", True))
        self.tileable_reason = str(getattr(reference, "tileable_reason", ""))

    def forward(self, image: Tensor) -> Tensor:
        """Map `(B, C, *spatial)` to logits in float32."""
        logits: Tensor = self.reference(image) if image.device.type == "meta" else self.run(image)
        return logits


def load_tile_network(bundle: Path, *, trust: bool = False) -> TileNetwork:
    """Read a bundle's network with its weights.

    Args:
        bundle: folder of a bundle or run with weights.
        trust: read a bundle that could run its own code.

    Raises:
        SecurityError: an untrusted bundle.
        DataError: no weights, or weights of a different network.
        ConfigError: a network without known sizes.
    """
    parser = parse_inference(bundle, device=torch.device("cpu"), overrides=EXACT, trust=trust)
    reference: nn.Module = parser.get_parsed_content("network_def")
    load_weights(reference, parser.get_parsed_content("ckpt_path"))
    reference = reference.float().eval().requires_grad_(False)
    shapes = getattr(reference, "shapes", None)
    if not isinstance(shapes, UNetShapes):
        cause, expected = "the network must declare its input and output sizes", "a network of medunet.networks"
        remedy = "`python -m monai.bundle onnx_export` exports networks of other libraries"
        raise ConfigError(cause, file=bundle, received=type(reference).__name__, expected=expected, remedy=remedy)
    if isinstance(reference, EnsembleLogits):
        members = [fold_batch_norm(member) for member in reference.members]
        module: nn.Module = MeanLogits(members, activation=reference.activation).eval()
    else:
        module = fold_batch_norm(reference)
    metadata, sizes = read_json(bundle / "configs" / "metadata.json"), TileSizes.of(shapes)
    image = metadata.get("network_data_format", {}).get("inputs", {}).get("image", {})
    patch = image.get("spatial_shape") or sizes.least
    is_usable = len(patch) == len(sizes.least) and all(isinstance(n, int) for n in patch)
    tile: dict[str, Any] = {name: list(getattr(sizes, name)) for name in ("least", "remainder", "multiple")}
    tile |= {"largest": None, "exact": bool(getattr(reference, "tileable", True))}  # some formats have a largest tile
    return TileNetwork(
        bundle=bundle,
        module=module.requires_grad_(False),
        reference=reference,
        shapes=shapes,
        sizes=sizes,
        patch=sizes.fit(patch) if is_usable else sizes.least,
        description=describe(parser, metadata=metadata, shapes=shapes, tile=tile),
        metadata={key: value for key, value in metadata.items() if key != "weights"},
    )
