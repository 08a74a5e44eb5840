"""Inferers whose result is on the grid of the file, not on that of the network: label maps and probabilities."""

import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from traceback import clear_frames
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer

from medunet.errors import ConfigError, GeometryError
from medunet.networks import check_activation
from medunet.runtime.cuda import is_out_of_memory
from medunet.transforms import thick_axis

from .grids import GridMap
from .overlap_tile import OverlapTileInferer, TileLogits
from .restore import MIXED, restore_labels, restore_probabilities


class SourceGridInferer(Inferer, ABC):
    """Base of inferers that return to the source grid tile by tile.

    Args:
        inferer: evaluates the network.
        to_source: whether to return to the grid that the image was read on.
        plan_spacing: spacing of the network's grid in a plan of nnU-Net, None for an axis that keeps the image's.
            Logits are then brought back as nnU-Net does: slices of thick-sliced images are not interpolated, voxels
            that were cropped away are background, and logits are rounded to float16.
    """

    def __init__(
        self, inferer: Inferer, *, to_source: bool = True, plan_spacing: Sequence[float | None] | None = None
    ) -> None:
        super().__init__()
        self.inferer = inferer
        self.to_source = to_source
        self.plan_spacing = plan_spacing

    @abstractmethod
    def _empty(self, images: int, classes: int, size: tuple[int, ...]) -> torch.Tensor:
        """Allocate the result `(images, channels, *size)`."""

    @abstractmethod
    def _put(self, logits: torch.Tensor, grid: GridMap, out: torch.Tensor, region: tuple[slice, ...]) -> None:
        """Write one tile's part into `out`, the result of one image."""

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Evaluate `network` on `inputs`.

        Args:
            inputs: `(B, C, *grid)`; with `to_source` a MetaTensor with `original_affine` and `spatial_shape`.
            network: as for the inferer.
            args: passed on to `network`.
            kwargs: passed on to `network`.

        Returns:
            `(B, channels, *source)` on the CPU; a MetaTensor on the source grid if `inputs` is one.
        """
        grids = self._grids(inputs)
        if len({grid.source_size for grid in grids}) > 1:
            sizes = [grid.source_size for grid in grids]
            raise ConfigError("images of a batch must be equal in size", received=sizes, remedy="use a batch size of 1")
        tiles: Iterable[TileLogits]
        if isinstance(self.inferer, OverlapTileInferer):
            extend = 0 if grids[0].is_identity else 1
            tiles = self.inferer.tiles(inputs, network, *args, extend=extend, **kwargs)
        else:
            whole = tuple(slice(0, n) for n in inputs.shape[2:])
            outputs = torch.as_tensor(self.inferer(inputs, network, *args, **kwargs))
            tiles = (TileLogits(index, whole, logits) for index, logits in enumerate(outputs))
        output: torch.Tensor | None = None
        for tile in tiles:
            if output is None:
                output = self._empty(len(grids), len(tile.logits), grids[0].source_size)
            try:
                self._put(tile.logits, grids[tile.image], output[tile.image], tile.region)
            except RuntimeError as error:
                if not tile.logits.is_cuda or not is_out_of_memory(error):
                    raise
                clear_frames(error.__traceback__)  # they hold the tensors that did not fit
                self._put(tile.logits.cpu(), grids[tile.image], output[tile.image], tile.region)
        if output is None:
            raise ConfigError("the batch has no image", received=tuple(inputs.shape))
        if not isinstance(inputs, MetaTensor):
            return output
        result = MetaTensor(output).copy_meta_from(inputs)
        if self.to_source:
            result.affine = torch.as_tensor(np.asarray(inputs.meta["original_affine"]), dtype=torch.float64)
            result.applied_operations = []
        return result

    def _grids(self, inputs: torch.Tensor) -> list[GridMap]:
        size = tuple(inputs.shape[2:])
        if not self.to_source:
            return [GridMap(np.eye(len(size) + 1), size, size)] * len(inputs)
        meta = inputs.meta if isinstance(inputs, MetaTensor) else {}
        if missing := [key for key in ("original_affine", "spatial_shape") if key not in meta]:
            raise GeometryError(
                "the image lacks the grid that it was read on",
                received=f"no {' and '.join(missing)}",
                remedy="give a MetaTensor of LoadImaged, or set to_source to False",
            )
        affines = _each(inputs.affine, len(inputs), ndim=2)  # type: ignore[attr-defined]  # a MetaTensor, see above
        sources = _each(meta["original_affine"], len(inputs), ndim=2)
        shapes = _each(meta["spatial_shape"], len(inputs), ndim=1)
        grids = [
            GridMap.between(source, [int(n) for n in shape[: len(size)]], affine, size)
            for source, shape, affine in zip(sources, shapes, affines, strict=True)
        ]
        if self.plan_spacing is None:
            return grids
        return [_as_nnunet(grid, self.plan_spacing, source) for grid, source in zip(grids, sources, strict=True)]


def _as_nnunet(grid: GridMap, spacing: Sequence[float | None], source: np.ndarray[Any, Any]) -> GridMap:
    """Return a map that restores logits as nnU-Net does, see `SourceGridInferer`."""
    lengths = np.linalg.norm(source[: len(spacing), : len(spacing)], axis=0)
    axes = grid.axes or range(len(spacing))
    of_source = [float(lengths[list(axes).index(axis)]) for axis in range(len(spacing))]
    planned = [own if given is None else given for given, own in zip(spacing, of_source, strict=True)]
    return replace(grid, border=0.5, nearest=thick_axis(planned, of_source), half=True)


def _each(value: Any, count: int, *, ndim: int) -> Sequence[np.ndarray[Any, Any]]:
    """Return one array per image, from the stacked metadata of a batch or from those of a single image."""
    array = np.asarray(value)
    return list(array) if array.ndim > ndim else [array] * count


class LabelInferer(SourceGridInferer):
    """Evaluate a network and bring its labels to the source grid tile by tile, without logits of the whole image.

    It replaces `Invertd`, `Activationsd` and `AsDiscreted(argmax=True)` after the network. The labels are those of
    interpolating the logits linearly on the source grid and taking the largest, see `restore_labels`.

    Args:
        inferer: evaluates the network, `OverlapTileInferer` or another one.
        threshold: probability above which a voxel of a network with one channel (sigmoid) is class 1, or belongs to a
            region.
        order: for regions (sigmoid of each channel) the class index that each one is painted with, later over earlier;
            empty for exclusive classes (softmax).
        to_source: whether to return to the grid that the image was read on; otherwise labels stay on the network's.
        plan_spacing: spacing of a plan of nnU-Net, whose way of restoring labels is then followed.

    Raises:
        ConfigError: an invalid threshold or order; when called, images of different source grids in one batch.
        GeometryError: when called, an image without the grid that it was read on.

    Examples:
        >>> network = torch.nn.Conv2d(1, 3, kernel_size=3, padding=1)
        >>> inferer = LabelInferer(OverlapTileInferer(None), to_source=False)
        >>> with torch.inference_mode():
        ...     inferer(torch.rand(1, 1, 33, 35), network).shape
        torch.Size([1, 1, 33, 35])
    """

    def __init__(
        self,
        inferer: Inferer,
        *,
        threshold: float = 0.5,
        order: Sequence[int] = (),
        to_source: bool = True,
        plan_spacing: Sequence[float | None] | None = None,
    ) -> None:
        super().__init__(inferer, to_source=to_source, plan_spacing=plan_spacing)
        if not 0 < threshold < 1:
            raise ConfigError("threshold must be a probability between 0 and 1", received=threshold)
        if len(set(order)) != len(order) or not all(0 < index < MIXED for index in order):
            raise ConfigError(f"order must be different class indices from 1 to {MIXED - 1}", received=list(order))
        self.threshold = math.log(threshold / (1 - threshold))
        self.order = tuple(order)

    @property
    def activation(self) -> str:
        """The activation that gives probabilities, for the mean of an ensemble."""
        return "sigmoid" if self.order else "softmax"

    def _empty(self, images: int, classes: int, size: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros((images, 1, *size), dtype=torch.uint8)

    def _put(self, logits: torch.Tensor, grid: GridMap, out: torch.Tensor, region: tuple[slice, ...]) -> None:
        restore_labels(logits, grid, threshold=self.threshold, order=self.order, out=out[0], region=region)


class ProbabilityInferer(SourceGridInferer):
    """Evaluate a network and bring its class probabilities to the source grid, tile by tile.

    Logits are interpolated linearly, then activated. The result is in a temporary memory-mapped file that is deleted
    with the tensor, so a volume of many classes need not fit into memory.

    Args:
        inferer: evaluates the network, `OverlapTileInferer` or another one.
        activation: `softmax`, or `sigmoid` of each channel. Outside a cropped grid, softmax gives class 0 and sigmoid
            gives zeros.
        to_source: whether to return to the grid that the image was read on.
        plan_spacing: spacing of a plan of nnU-Net, whose way of restoring logits is then followed.
        temperature: divisor of the logits, which calibrates the probabilities (Guo et al., ICML 2017); labels that
            follow from them are the same at any temperature.

    Raises:
        ConfigError: an unknown activation, or a temperature that is not positive; when called, images of different
            source grids in one batch.
        GeometryError: when called, an image without the grid that it was read on.

    Examples:
        >>> network = torch.nn.Conv2d(1, 3, kernel_size=3, padding=1)
        >>> inferer = ProbabilityInferer(OverlapTileInferer(None), to_source=False)
        >>> with torch.inference_mode():
        ...     probabilities = inferer(torch.rand(1, 1, 33, 35), network)
        >>> probabilities.shape, probabilities.sum(dim=1).round(decimals=4).unique().tolist()
        (torch.Size([1, 3, 33, 35]), [1.0])
    """

    def __init__(
        self,
        inferer: Inferer,
        *,
        activation: str = "softmax",
        to_source: bool = True,
        plan_spacing: Sequence[float | None] | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(inferer, to_source=to_source, plan_spacing=plan_spacing)
        if temperature <= 0:
            raise ConfigError("temperature must be positive", received=temperature)
        self.activation = check_activation(activation)
        self.temperature = temperature

    def _empty(self, images: int, classes: int, size: tuple[int, ...]) -> torch.Tensor:
        # the file has no name, so it disappears with the last reference to it, even if the process crashes
        with tempfile.TemporaryFile() as file:
            return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="w+", shape=(images, classes, *size)))

    def _put(self, logits: torch.Tensor, grid: GridMap, out: torch.Tensor, region: tuple[slice, ...]) -> None:
        logits = logits if self.temperature == 1 else logits / self.temperature
        restore_probabilities(logits, grid, activation=self.activation, out=out, region=region)
