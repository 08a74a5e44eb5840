"""Whether a file answers as the network does: on noise of several sizes, and on the labels of a real case."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medunet.errors import ConfigError, MedunetError
from medunet.prediction import Predictor

from .formats import Runner
from .tile_network import EXACT, ExportedNetwork, TileNetwork

MAX_RMS = 1e-4
"""Largest root-mean-square difference of logits, in standard deviations of the network's. Both sides compute in
float32, where sums in another order differ by 1e-6 to 1e-5; bfloat16 by 1e-2."""

MAX_UNLIKE = 1e-4
"""Largest share of voxels with another class. Rounding turns voxels whose classes are equally likely, and only those:
within `MAX_RMS` of a tie lie about as many."""

SEED = 0
"""Of the noise."""


@dataclass(frozen=True)
class Agreement:
    """How close a file's answers are to PyTorch's in float32.

    Args:
        sizes: of the inputs of noise, `(B, C, *spatial)`.
        rms: largest of their root-mean-square differences of logits, in standard deviations.
        unlike: largest share of their voxels with another class.
        case_unlike: voxels of the real case with another label; None without a case.
        case_voxels: its voxels.
    """

    sizes: tuple[tuple[int, ...], ...] = ()
    rms: float = 0.0
    unlike: float = 0.0
    case_unlike: int | None = None
    case_voxels: int = 0

    @property
    def fault(self) -> str | None:
        """What is wrong; None where the file answers rightly."""
        if not self.rms <= MAX_RMS:
            return f"its logits differ by {self.rms:.2g} standard deviations"
        if self.unlike > MAX_UNLIKE:
            return f"{100 * self.unlike:.3g} % of the voxels of noise get another class"
        if self.case_unlike is not None and self.case_unlike > MAX_UNLIKE * self.case_voxels:
            return f"{self.case_unlike} of {self.case_voxels} voxels of the case get another label"
        return None

    def lines(self) -> Iterator[str]:
        """In words."""
        shown = ", ".join("x".join(map(str, size)) for size in self.sizes)
        yield f"noise ({shown}): logits differ by {self.rms:.1e} standard deviations (up to {MAX_RMS:g} are rounding)"
        if self.case_unlike is not None:
            yield f"case: {self.case_unlike} of {self.case_voxels} voxels differ (up to {MAX_UNLIKE:g} of them may)"


def compare(network: TileNetwork, run: Runner, *, image: Path | None = None, trust: bool = False) -> Agreement:
    """Run a file beside the network that it was made of.

    Args:
        network: what was written.
        run: evaluates the file.
        image: a case whose labels are compared, too.
        trust: as of :func:`medunet.trust.require_trust`.

    Raises:
        DataError: an image that cannot be read.
    """
    rms = unlike = 0.0
    sizes = noise_sizes(network)
    generator = torch.Generator().manual_seed(SEED)
    for size in sizes:
        noise = torch.randn(size, generator=generator)
        with torch.inference_mode():
            expected = network.reference(noise)
        one, other = difference(run(noise), expected)
        rms, unlike = max(rms, one), max(unlike, other)
    counted: tuple[int | None, int] = (None, 0)
    if image is not None:
        counted = compare_labels(network, run, image, trust=trust)
    return Agreement(sizes, rms, unlike, *counted)


def noise_sizes(network: TileNetwork) -> tuple[tuple[int, ...], ...]:
    """The usual tile, and two images of an odd size."""
    return (1, network.channels, *network.patch), (2, network.channels, *network.sizes.example())


def difference(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Root-mean-square difference in standard deviations of the second, and the share of voxels of another class.

    Infinite where shapes differ or a number is none.

    Example:
        >>> difference(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 2.0, 3.0]]))
        (0.0, 0.0)
    """
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return math.inf, 1.0
    spread = float(expected.double().std()) or 1.0
    rms = float((found.double() - expected.double()).square().mean().sqrt()) / spread
    unlike = float((_decided(found) != _decided(expected)).double().mean())
    return rms, unlike


def compare_labels(network: TileNetwork, run: Runner, image: Path, *, trust: bool = False) -> tuple[int, int]:
    """Voxels of a case that a file labels otherwise than PyTorch in float32, and all of them.

    Both go the whole way of ``medunet predict``: reading, tiles, classes, the grid of the file; by the same tiles,
    which change the answer of some networks.
    """
    overrides: dict[str, Any] = dict(EXACT)
    if network.largest is not None:
        overrides["tile_size"] = within(network.description["tile"]["size"], network.largest)
    predictor = Predictor(network.bundle, device="cpu", overrides=overrides, trust=trust)
    expected = np.asarray(predictor.decide(image)["pred"])
    predictor.network = ExportedNetwork(run, network.reference).eval()
    try:
        found = np.asarray(predictor.decide(image)["pred"])
    except MedunetError:
        raise
    except Exception as error:  # whatever an engine raises for a size that it does not take
        cause = " ".join(str(error).split())[:200]
        raise ConfigError(f"the file cannot be run on the case: {cause}", file=image) from error
    if found.shape != expected.shape:
        return expected.size, expected.size
    return int((found != expected).sum()), expected.size


def within(tile_size: Any, largest: Sequence[int]) -> list[int]:
    """A bundle's `tile_size`, but nowhere larger than a file takes.

    Example:
        >>> within("auto", (152, 168)), within([-1, 64], (152, 168)), within(256, (152, 168))
        ([152, 168], [152, 64], [152, 168])
    """
    if tile_size is None or isinstance(tile_size, str):
        return list(largest)
    sizes = [tile_size] * len(largest) if isinstance(tile_size, int) else tile_size
    return [most if n is None or n < 1 else min(n, most) for n, most in zip(sizes, largest, strict=True)]


def _decided(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=1) if logits.shape[1] > 1 else logits > 0
