"""Export a bundle's network, and compare the file with PyTorch on noise and on the labels of a real case."""

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from skimage.segmentation import find_boundaries

from medunet.errors import ConfigError, DataError, MedunetError
from medunet.files import check_target, require_new
from medunet.prediction import Predictor

from .formats import FORMATS, Runner
from .network import EXACT, ExportedNetwork, TileNetwork, load_tile_network

SEED = 0  # of the noise

# largest root-mean-square difference of logits, in standard deviations of the network's logits: in float32 another
# order of sums differs by 1e-6 to 1e-5; bfloat16 differs by 1e-2
MAX_RMS = 1e-4
# largest share of voxels with another class: about this share is within MAX_RMS of a tie, which rounding can turn
MAX_UNLIKE = 1e-4


@dataclass(frozen=True)
class Agreement:
    """Difference between a file's outputs and PyTorch's in float32."""

    sizes: tuple[tuple[int, ...], ...]  # of the noise inputs, `(B, C, *spatial)`
    rms: float  # largest root-mean-square difference of logits, in standard deviations
    unlike: float  # largest share of voxels with another class
    case_unlike: int | None = None  # voxels of the real case with another label; None without a case
    case_voxels: int = 0  # voxels of the real case

    @property
    def fault(self) -> str | None:
        """Reason to reject the file; None if it agrees."""
        if not self.rms <= MAX_RMS:
            return f"its logits differ by {self.rms:.2g} standard deviations"
        if self.unlike > MAX_UNLIKE:
            return f"{100 * self.unlike:.3g} % of the voxels of noise get another class"
        if self.case_unlike is not None and self.case_unlike > MAX_UNLIKE * self.case_voxels:
            return f"{self.case_unlike} of {self.case_voxels} voxels of the case get another label"
        return None

    def lines(self) -> Iterator[str]:
        """Yield the figures as sentences."""
        sizes = ", ".join("x".join(map(str, size)) for size in self.sizes)
        yield f"noise ({sizes}): logits differ by {self.rms:.1e} standard deviations (limit {MAX_RMS:g})"
        if self.case_unlike is not None:
            yield f"case: {self.case_unlike} of {self.case_voxels} voxels differ (limit {MAX_UNLIKE:g} of them)"


@dataclass(frozen=True)
class Export:
    """Result of an export."""

    paths: tuple[Path, ...]  # the file, then further files of the format
    program: str  # name and version of the program that ran the file
    agreement: Agreement  # with PyTorch in float32
    seconds: float  # duration of writing and comparing


def export_bundle(
    bundle: Path, output: Path, *, to: str, image: Path | None = None, overwrite: bool = False, trust: bool = False
) -> Export:
    """Write a bundle's network to a file, run the file, and compare; a file that disagrees is removed.

    Args:
        bundle: folder of a bundle or run with weights.
        output: file to write, with the suffix of its format.
        to: name of the format, a key of `FORMATS`.
        image: a case whose labels are compared, too.
        overwrite: replace an existing file.
        trust: export a bundle that could run its own code.

    Raises:
        SecurityError: an untrusted bundle.
        ConfigError: unknown format, another suffix, missing package or device, or a network that the format does not
            support.
        DataError: the file exists, or it disagrees with the network.
    """
    begun = time.perf_counter()
    if to not in FORMATS:
        raise ConfigError("unknown format", received=to, expected=", ".join(FORMATS))
    selected = FORMATS[to]
    if output.suffix != selected.suffix:
        cause, received = f"the suffix of {to} files must be {selected.suffix}", output.suffix or "none"
        raise ConfigError(cause, file=output, received=received)
    require_new(output, force=overwrite)
    program = selected.program()
    check_target(output.parent)
    network = load_tile_network(bundle, trust=trust)
    network = network.limited(selected.largest(network))
    output.parent.mkdir(parents=True, exist_ok=True)
    # a file gets its name only after the comparison
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as folder:
        written = Path(folder) / output.name
        try:
            selected.write(network, written)
            if selected.describe(written) != network.description:
                raise DataError("the description in the file differs from the network's", file=output)
            agreement = compare(network, selected.open(written), image=image, trust=trust)
        except MedunetError:
            raise
        except Exception as error:  # exporters raise any kind of exception
            cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ConfigError(f"the network cannot be written as {to}: {cause[:300]}", file=bundle) from error
        if agreement.fault is not None:
            cause = f"the exported network disagrees with PyTorch and was removed: {agreement.fault}"
            raise DataError(cause, file=output, remedy="report this with the bundle's configs")
        further = sorted(path for path in Path(folder).iterdir() if path != written)
        for path in (*further, written):  # the file that names the others comes last
            path.replace(output.parent / path.name)
    paths = (output, *(output.parent / path.name for path in further))
    return Export(paths, program, agreement, time.perf_counter() - begun)


def compare(network: TileNetwork, run: Runner, *, image: Path | None = None, trust: bool = False) -> Agreement:
    """Compare a file with its network: on noise of the usual tile and of a batch of odd size, and on a case."""
    sizes = (1, network.channels, *network.patch), (2, network.channels, *network.sizes.example())
    generator = torch.Generator().manual_seed(SEED)
    with torch.inference_mode():
        noises = [torch.randn(size, generator=generator) for size in sizes]
        differences = [difference(run(noise), network.reference(noise)) for noise in noises]
    rms, unlike = map(max, zip(*differences, strict=True))
    counts = (None, 0) if image is None else _compare_labels(network, run, image, trust=trust)
    return Agreement(sizes, rms, unlike, *counts)


def difference(logits: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Return the root-mean-square difference in standard deviations, and the share of voxels with a different class.

    The difference is infinite if shapes differ or a logit is not finite.
    """
    if logits.shape != expected.shape or not bool(logits.isfinite().all()):
        return math.inf, 1.0
    spread = float(expected.double().std()) or 1.0
    rms = float((logits.double() - expected.double()).square().mean().sqrt()) / spread
    one, other = (part.argmax(dim=1) if part.shape[1] > 1 else part > 0 for part in (logits, expected))
    return rms, float((one != other).double().mean())


def _compare_labels(network: TileNetwork, run: Runner, image: Path, *, trust: bool) -> tuple[int, int]:
    """Return how many voxels of a case get a label that differs from PyTorch's with the same tiles, and the total."""
    overrides: dict[str, Any] = dict(EXACT)
    if network.largest is not None:
        overrides["tile_size"] = _limit_tile(network.description["tile"]["size"], network.largest)
    predictor = Predictor(network.bundle, device="cpu", overrides=overrides, trust=trust)
    numbers = network.description["objects"] is not None
    expected = _comparable(predictor.decide(image)["pred"], numbers=numbers)
    predictor.network = ExportedNetwork(run, network.reference).eval()
    try:
        labels = _comparable(predictor.decide(image)["pred"], numbers=numbers)
    except MedunetError:
        raise
    except Exception as error:  # engines raise any kind of exception for a size that they do not accept
        raise ConfigError(f"the file cannot be run on the case: {str(error)[:200]}", file=image) from error
    unlike = int((labels != expected).sum()) if labels.shape == expected.shape else expected.size
    return unlike, expected.size


def _comparable(labels: torch.Tensor, *, numbers: bool) -> npt.NDArray[Any]:
    """Return a label map; for object numbers, all of which one voxel can shift, the objects' insides and borders."""
    voxels = np.asarray(labels)
    return find_boundaries(voxels[0], mode="inner")[None] + 1 * (voxels > 0) if numbers else voxels


def _limit_tile(tile_size: Any, largest: Sequence[int]) -> list[int]:
    """Limit a bundle's `tile_size` to the largest tile that a file accepts."""
    if tile_size is None or isinstance(tile_size, str):
        return list(largest)
    sizes = [tile_size] * len(largest) if isinstance(tile_size, int) else tile_size
    return [most if n is None or n < 1 else min(n, most) for n, most in zip(sizes, largest, strict=True)]
