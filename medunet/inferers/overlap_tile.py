"""The overlap-tile strategy of the U-Net paper as a MONAI inferer: tiling changes no voxel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from rich.progress import track

from medunet.errors import ConfigError

from .padding import PADDING_MODES, PaddingMode, take_window
from .tiling import SameSizeShapes, Tile, TileableShapes, TilePlan, plan_tiles

logger = logging.getLogger(__name__)


class OverlapTileInferer(Inferer):
    """Evaluate a network tile by tile and stitch its output without a seam (Ronneberger et al. 2015, figure 2).

    Each voxel is taken from exactly one tile, whose window holds the voxel's whole receptive field; nothing is blended.
    The result equals that of the whole image in one pass up to rounding, provided the network has no instance or
    group norm, whose statistics depend on the window.

    - Padded ("same") network: windows overlap by a halo, which is trimmed from the output. Windows end where the image
      ends, so that the network's own padding acts there as it does on the whole image.
    - Valid network: as in the paper. The image is mirrored at its borders, the outputs abut.

    Images may be smaller than a tile, than the network's margin or than its total stride: what is missing is mirrored
    and trimmed.

    Args:
        tile_size: largest network input per axis in voxels (MONAI's `roi_size`; the paper's 572), or one number for all
            axes. None takes the whole image in one pass; None, 0 or -1 for an axis takes all of that axis.
        halo: for padded networks, voxels to see beyond the kept region on each side, per axis or one number. "exact"
            takes `network.shapes.halo`, the receptive radius rounded up to the total stride; fewer are faster and
            approximate. A valid network always sees its whole margin.
        padding_mode: how positions outside the image are filled: "reflect" (mirrored, the edge not repeated, as in the
            paper), "replicate" or "constant" (zero).
        batch_size: windows per call of the network (MONAI's `sw_batch_size`); windows of one size share a batch, also
            across the images of `inputs`.
        tile_stride: product of all strides of a network that has no attribute `shapes`, per axis or one number. Its
            output must be as large as its input, and `halo` must be a number. Ignored for networks with `shapes`.
        sw_device: device of the windows, where the network is. Default: that of `inputs`.
        device: device of the stitched output. Default: that of `inputs`.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: an option is impossible. Calling raises it also where the tile is too small for the network, where
            the network cannot be tiled, or where its output does not have the size that its `shapes` promise.

    Example:
        >>> network = torch.nn.Conv2d(1, 2, kernel_size=3, padding=1)
        >>> inferer = OverlapTileInferer((16, 24), halo=1, tile_stride=1)
        >>> with torch.inference_mode():
        ...     inferer(torch.rand(1, 1, 33, 35), network).shape
        torch.Size([1, 2, 33, 35])
    """

    def __init__(
        self,
        tile_size: int | Sequence[int | None] | None,
        *,
        halo: Literal["exact"] | int | Sequence[int] = "exact",
        padding_mode: PaddingMode = "reflect",
        batch_size: int = 1,
        tile_stride: int | Sequence[int] | None = None,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__()
        if padding_mode not in PADDING_MODES:
            raise ConfigError("unknown padding_mode", received=padding_mode, expected=PADDING_MODES)
        if tile_size is not None and not isinstance(tile_size, (Integral, Sequence)):
            raise ConfigError(
                "tile_size is not a size", received=repr(tile_size), expected="an integer or one per axis"
            )
        if halo != "exact":
            _at_least(0, halo, "halo")
        if tile_stride is not None:
            _at_least(1, tile_stride, "tile_stride")
        _at_least(1, [batch_size], "batch_size")
        self.tile_size = tile_size
        self.halo = halo
        self.padding_mode = padding_mode
        self.batch_size = batch_size
        self.tile_stride = tile_stride
        self.sw_device = sw_device
        self.device = device
        self.progress = progress
        self._warned = False

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Evaluate `network` on `inputs`.

        Args:
            inputs: `(B, C, *spatial)`.
            network: in evaluation mode, on `sw_device`; may be wrapped by DistributedDataParallel or torch.compile. Of
                a list or tuple of outputs (deep supervision) the first is taken.
            args: passed on to `network` after the window.
            kwargs: passed on to `network`.

        Returns:
            `(B, out_channels, *spatial)` in the network's output type, but float32 where that is a half-precision type.
            A MetaTensor with the metadata of `inputs` if `inputs` is one.
        """
        plan = self.plan(inputs.shape[2:], network)
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        sw_device = torch.device(self.sw_device) if self.sw_device is not None else image.device

        output: torch.Tensor | None = None
        batches = list(self._batches(plan, len(image)))
        for batch in track(batches, description="tiles", disable=not self.progress):
            windows = [self._read(image[b : b + 1], tile, plan).to(sw_device) for b, tile in batch]
            logits = network(windows[0] if len(windows) == 1 else torch.cat(windows), *args, **kwargs)
            if isinstance(logits, (list, tuple)):
                logits = logits[0]
            _check_output(logits, batch[0][1], plan)
            if output is None:
                output = _empty_output(image, logits, device=self.device)
            for (b, tile), part in zip(batch, logits, strict=True):
                output[b][_all_channels(tile.keep)] = part[_all_channels(tile.trim)]
        if output is None:
            raise ConfigError("batch holds no image", received=tuple(inputs.shape), expected="(B, C, *spatial), B >= 1")
        return MetaTensor(output).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else output

    def plan(self, image_size: Sequence[int], network: Callable[..., Any]) -> TilePlan:
        """Cut an image of `image_size` (spatial axes only) into the tiles with which `network` would be evaluated.

        Raises:
            ConfigError: see the class.
        """
        module = _unwrap(network)
        axes = len(image_size)
        shapes = self._shapes(module, axes)
        tile = self._tile(axes)
        halo = None if isinstance(self.halo, str) else _per_axis(self.halo, axes, "halo")
        if _resizes_output(shapes):
            plan = _plan_one_window(image_size, tile, shapes)
        else:
            plan = plan_tiles(image_size, tile, shapes=shapes, halo=halo)
        sizes = {size: len(tiles) for size, tiles in plan.by_window_size().items()}
        logger.debug("image %s, tile_size %s: number of windows by size %s", plan.image_size, self.tile_size, sizes)
        if len(plan.tiles) > 1 and not getattr(module, "tileable", True) and not self._warned:
            self._warned = True
            logger.warning(
                "tiles change the result of %s: %s; for the exact result take the whole image, tile_size=None",
                type(module).__name__,
                getattr(module, "tileable_reason", "its output depends on the whole window"),
            )
        return plan

    def _tile(self, axes: int) -> tuple[int | None, ...] | None:
        if self.tile_size is None:
            return None
        return tuple(n if n is not None and n > 0 else None for n in _per_axis(self.tile_size, axes, "tile_size"))

    def _shapes(self, module: Any, axes: int) -> TileableShapes:
        shapes = getattr(module, "shapes", None)
        if shapes is not None:
            return shapes
        if self.tile_size is None:  # one pass needs neither phase nor halo
            return SameSizeShapes(total_stride=(1,) * axes, halo=(0,) * axes)
        if isinstance(self.halo, str) or self.tile_stride is None:
            raise ConfigError(
                f"{type(module).__name__} has no attribute `shapes`, from which stride and halo are taken",
                received=f"halo={self.halo!r}, tile_stride={self.tile_stride!r}",
                remedy="give halo (receptive radius) and tile_stride (product of strides) in voxels, or tile_size=None",
            )
        return SameSizeShapes(
            total_stride=_per_axis(self.tile_stride, axes, "tile_stride"), halo=_per_axis(self.halo, axes, "halo")
        )

    def _batches(self, plan: TilePlan, images: int) -> Iterator[list[tuple[int, Tile]]]:
        """Windows of one size, `batch_size` at a time, as pairs of image and tile."""
        for tiles in plan.by_window_size().values():
            work = [(image, tile) for image in range(images) for tile in tiles]
            yield from (work[i : i + self.batch_size] for i in range(0, len(work), self.batch_size))

    def _read(self, image: torch.Tensor, tile: Tile, plan: TilePlan) -> torch.Tensor:
        start = [s.start - margin for s, margin in zip(tile.window, plan.margin, strict=True)]
        stop = [s.stop - margin for s, margin in zip(tile.window, plan.margin, strict=True)]
        return take_window(image, start, stop, mode=self.padding_mode)


def _resizes_output(shapes: TileableShapes) -> bool:
    # A padded network's output has the size of its input anyway.
    return getattr(shapes, "resize_output", False) and getattr(shapes, "padding", None) == "valid"


def _plan_one_window(
    image_size: Sequence[int], tile: tuple[int | None, ...] | None, shapes: TileableShapes
) -> TilePlan:
    """Plan for a network that stretches its output to the size of its input: a tile would be stretched otherwise."""
    plan = plan_tiles(image_size, None, shapes=shapes)
    window = plan.tiles[0].window_size
    if tile is not None and any(limit is not None and limit < size for limit, size in zip(tile, window, strict=True)):
        raise ConfigError(
            "a network that resizes its output to its input cannot be tiled, and the image is larger than one tile",
            received=tile,
            expected=f"at least {window}",
            remedy="set tile_size to null for the whole image in one pass, or use the network without resizing",
        )
    return plan


def _unwrap(network: Any) -> Any:
    """Look through torch.compile (`_orig_mod`) and DistributedDataParallel (`module`) for the network with `shapes`."""
    while not hasattr(network, "shapes"):
        inner = getattr(network, "_orig_mod", None) or getattr(network, "module", None)
        if inner is None:
            break
        network = inner
    return network


def _check_output(logits: torch.Tensor, tile: Tile, plan: TilePlan) -> None:
    expected = tuple(n - 2 * margin for n, margin in zip(tile.window_size, plan.margin, strict=True))
    if tuple(logits.shape[2:]) != expected:
        raise ConfigError(
            f"network returned another size than its shapes promise for a window of {tile.window_size}",
            received=tuple(logits.shape[2:]),
            expected=expected,
            remedy="use a network with the attribute `shapes`, or one whose output is as large as its input",
        )


def _empty_output(image: torch.Tensor, logits: torch.Tensor, *, device: torch.device | str | None) -> torch.Tensor:
    """Allocate the stitched output: nothing is added up, so it need not be zero."""
    dtype = logits.dtype
    if dtype.is_floating_point:  # softmax and resampling lose digits in half precision
        dtype = torch.promote_types(dtype, torch.float32)
    return torch.empty(
        (len(image), logits.shape[1], *image.shape[2:]),
        dtype=dtype,
        device=image.device if device is None else device,
    )


def _all_channels(region: tuple[slice, ...]) -> tuple[slice, ...]:
    return (slice(None), *region)


def _at_least(least: int, value: Any, name: str) -> None:
    """Raise ConfigError unless `value` is an integer, or a sequence of integers, of at least `least`."""
    numbers = [value] if isinstance(value, Integral) else value
    if not isinstance(numbers, Sequence) or not all(isinstance(n, Integral) and int(n) >= least for n in numbers):
        raise ConfigError(f"impossible {name}", received=repr(value), expected=f"{least} or more, or one per axis")


def _per_axis(value: Any, axes: int, name: str) -> tuple[Any, ...]:
    """One number for each spatial axis."""
    if isinstance(value, Integral):
        return (value,) * axes
    if len(value) != axes:
        raise ConfigError(f"{name} does not have one number per spatial axis", received=value, expected=axes)
    return tuple(value)
