"""The overlap-tile strategy of the U-Net paper as a MONAI inferer: tiling changes no voxel."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from numbers import Integral
from traceback import clear_frames
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from monai.inferers import Inferer, SlidingWindowInferer

from medunet.errors import ConfigError, MedunetError, first_lines
from medunet.networks import only_tensor, window_dependence
from medunet.runtime import FastNetwork
from medunet.runtime.cuda import is_out_of_memory, timed_kernels
from medunet.transforms import like, plain
from medunet.units import parse_size

from .memory import bytes_per_voxel, free_memory, most_voxels
from .receptive_field import measure_shapes
from .tiling import SameSizeShapes, Shapes, TilePlan, choose_halo, choose_tiles, plan_tiles
from .windows import take_window

logger = logging.getLogger(__name__)

BLEND_OVERLAP = 0.5  # of Gaussian-weighted windows, as in nnU-Net and MONAI's bundles
TIMED_WINDOWS = 8  # windows of one size from which it pays to let cuDNN time its algorithms

_Run = Callable[[torch.Tensor], torch.Tensor]

# stride and halo by network; not an attribute of the inferer, which must be picklable
_MEASURED: WeakKeyDictionary[Any, SameSizeShapes] = WeakKeyDictionary()
_NOT_MEASURED: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # and why not


class TileLogits(NamedTuple):
    """Logits of one tile.

    Args:
        image: index of the image in the batch.
        region: region of the image that the logits belong to.
        logits: `(classes, *region)` in the network's output type, on its device; may be a view of a larger tensor.
    """

    image: int
    region: tuple[slice, ...]
    logits: torch.Tensor


class OverlapTileInferer(Inferer):
    """Evaluate a network tile by tile and stitch its output without a seam (Ronneberger et al. 2015, figure 2).

    Each voxel comes from exactly one tile, whose window contains the voxel's whole receptive field; nothing is blended.
    The result equals that of one pass over the whole image, up to rounding. Instance and group norm are the exception:
    their statistics depend on the window. If an image is too large for one pass of such a network, MONAI's
    `SlidingWindowInferer` blends windows that overlap by half with Gaussian weights, and a warning is logged.

    - Padded ("same") network: windows overlap by a halo, which is trimmed from the output. Windows end where the image
      ends, so the network's own padding acts there as it does on the whole image.
    - Valid network: as in the paper. The image is mirrored at its borders, and the outputs abut.
    - Network without the attribute `shapes`, such as MONAI's: its stride and receptive radius are measured once
      (:func:`measure_shapes`), unless `tile_stride` and `halo` are given.

    If memory runs out, the image is evaluated again in smaller tiles, with the same result and a warning.

    Images may be smaller than a tile, than the network's margin or than its total stride: missing voxels are mirrored
    and trimmed.

    Args:
        tile_size: largest network input per axis in voxels (the paper's 572), or one number for all axes. None uses
            the whole image in one pass; None, 0 or -1 for an axis takes all of that axis. "auto" takes the whole image
            if it fits into `memory`, else the tiles that evaluate the fewest voxels.
        halo: for padded networks, voxels beyond the kept region on each side, per axis or one number; fewer than the
            receptive radius are approximate. "exact" takes `network.shapes.halo`, the receptive radius rounded up to
            the total stride. "auto" takes a part of it, with a warning, where memory is so small that the windows
            would have more than four times the voxels of the image. A valid network always sees its whole margin.
        batch_size: windows per call of the network; windows of one size share a batch, also across images.
        memory: limit of a pass for `tile_size` "auto": bytes, a text such as "8GB", or "auto" for a share of the free
            memory of the network's device.
        tile_stride: product of all strides of a network without the attribute `shapes`, per axis or one number; None
            measures it. The output must be as large as the input.
        sw_device: device of the windows and the network. Default: that of `inputs`.
        device: device of the stitched output. Default: that of `inputs`.
        roi_size: MONAI's name for `tile_size`.
        sw_batch_size: MONAI's name for `batch_size`.

    Raises:
        ConfigError: an invalid option. When called: a tile that is too small for the network, a network that cannot be
            tiled, or an output size that differs from what its `shapes` promise.

    Examples:
        >>> network = torch.nn.Conv2d(1, 2, kernel_size=3, padding=1)
        >>> inferer = OverlapTileInferer((16, 24), halo=1, tile_stride=1)
        >>> with torch.inference_mode():
        ...     inferer(torch.rand(1, 1, 33, 35), network).shape
        torch.Size([1, 2, 33, 35])
    """

    def __init__(
        self,
        tile_size: int | Sequence[int | None] | Literal["auto"] | None = "auto",
        *,
        halo: Literal["auto", "exact"] | int | Sequence[int] = "auto",
        batch_size: int = 1,
        memory: int | str = "auto",
        tile_stride: int | Sequence[int] | None = None,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        roi_size: int | Sequence[int | None] | None = None,
        sw_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        tile_size = tile_size if roi_size is None else roi_size
        batch_size = batch_size if sw_batch_size is None else sw_batch_size
        is_size = isinstance(tile_size, (Integral, Sequence)) and not isinstance(tile_size, str)
        if tile_size is not None and tile_size != "auto" and not is_size:
            raise ConfigError("tile_size must be an integer, one per axis, or auto", received=repr(tile_size))
        if halo not in ("auto", "exact"):
            _at_least(0, halo, "halo")
        if tile_stride is not None:
            _at_least(1, tile_stride, "tile_stride")
        _at_least(1, [batch_size], "batch_size")
        self.tile_size = tile_size
        self.halo = halo
        self.batch_size = batch_size
        self.memory = memory if memory == "auto" else parse_size(memory)
        self.tile_stride = tile_stride
        self.sw_device = sw_device
        self.device = device
        self._warned: set[str] = set()

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Evaluate `network` on `inputs`.

        Args:
            inputs: `(B, C, *spatial)`.
            network: in evaluation mode, on `sw_device`; may be wrapped by DistributedDataParallel or torch.compile. It
                returns a tensor, a list or tuple whose first entry is one (deep supervision), or a dictionary of one.
            args: passed on to `network` after the window.
            kwargs: passed on to `network`.

        Returns:
            `(B, out_channels, *spatial)` in the network's output type, or float32 if that is a half-precision type. A
            MetaTensor with the metadata of `inputs` if `inputs` is one.
        """
        image = plain(inputs)
        output: torch.Tensor | None = None
        for tile in self.tiles(image, network, *args, **kwargs):
            if output is None:
                dtype = tile.logits.dtype
                if dtype.is_floating_point:  # softmax and resampling lose digits in half precision
                    dtype = torch.promote_types(dtype, torch.float32)
                size = (len(image), len(tile.logits), *image.shape[2:])
                output = torch.empty(size, dtype=dtype, device=self.device or image.device)
            region = (slice(None), *tile.region)
            output[tile.image][region] = tile.logits
        if output is None:
            raise ConfigError("the batch has no image", received=tuple(inputs.shape))
        return like(output, inputs)

    def tiles(
        self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, extend: int = 0, **kwargs: Any
    ) -> Iterator[TileLogits]:
        """Evaluate `network` tile by tile, without keeping logits of the whole image.

        The regions of one image partition it. If memory runs out, they start again from the first, smaller.

        Args:
            inputs: `(B, C, *spatial)`.
            network: as for a call.
            args: passed on to `network` after the window.
            extend: voxels of the next regions that each region includes at its far side on every axis, so that a caller
                can interpolate between neighbouring voxels within one tile.
            kwargs: passed on to `network`.
        """
        image, module = plain(inputs), unwrap(network)
        device = torch.device(self.sw_device) if self.sw_device is not None else image.device

        def run(window: torch.Tensor) -> torch.Tensor:
            return only_tensor(network(window, *args, **kwargs))

        plan = self.plan(image.shape[2:], network, in_channels=image.shape[1], extend=extend, device=device)
        while True:
            try:
                yield from self._evaluate(image, run, plan, module=module, device=device)
                return
            except (RuntimeError, MemoryError, ValueError, AssertionError) as error:
                clear_frames(error.__traceback__)  # they hold the tensors of the pass that failed
                stated = self.tile_stride is not None or hasattr(module, "shapes") or isinstance(error, MedunetError)
                if not stated and not is_out_of_memory(error):
                    raise ConfigError(
                        f"{type(module).__name__} fails on an image of this size: {first_lines(error)}",
                        received=tuple(image.shape[2:]),
                        remedy="give the product of its strides as tile_stride: windows are rounded up to it",
                    ) from error
                smaller = self._smaller(plan, module, extend) if is_out_of_memory(error) else None
                if smaller is None:
                    raise
            plan = smaller
            same = "" if "halo" in self._warned else ", the result is the same"
            self._warn("memory", f"out of memory: continuing with smaller tiles{same}")
            if device.type == "cuda":
                torch.cuda.empty_cache()

    def plan(
        self,
        image_size: Sequence[int],
        network: Callable[..., Any],
        *,
        in_channels: int = 1,
        extend: int = 0,
        device: torch.device | str = "cpu",
    ) -> TilePlan:
        """Return the tiles with which `network` would be evaluated.

        Args:
            image_size: voxels per spatial axis.
            network: as for a call.
            in_channels: channels of the image, for the estimate of memory.
            extend: as for `tiles`.
            device: where the network runs, if `sw_device` is not set.

        Raises:
            ConfigError: a tile that is too small for the network, or a network that cannot be tiled.
        """
        module, device = unwrap(network), torch.device(self.sw_device or device)
        self._measure(module, in_channels, len(image_size), device)
        most = self._max_voxels(network, in_channels, device) if self.tile_size == "auto" else None
        plan = self._plan(image_size, module, extend=extend, max_voxels=most)
        largest = max(math.prod(tile.window_size) for tile in plan.tiles) * self.batch_size
        if hasattr(module, "shapes") and largest > (limit := most_voxels(module, in_channels, device)):
            plan = self._plan(image_size, module, extend=extend, max_voxels=limit / self.batch_size)
        return plan

    def _plan(self, image_size: Sequence[int], module: Any, *, extend: int, max_voxels: float | None) -> TilePlan:
        axes = len(image_size)
        shapes, tile = self._shapes(module, axes), None
        halo = None if isinstance(self.halo, str) else _per_axis(self.halo, axes, "halo")
        if self.tile_size not in (None, "auto"):
            tile = [n if n is not None and n > 0 else None for n in _per_axis(self.tile_size, axes, "tile_size")]
        if getattr(shapes, "resize_output", False) and getattr(shapes, "padding", None) == "valid":
            plan = plan_tiles(image_size, None, shapes=shapes)  # each tile would be stretched on its own
            window = plan.tiles[0].window_size
            if any(n is not None and n < size for n, size in zip(tile or (), window, strict=False)):
                cause = "a network that resizes its output cannot be tiled, and the image is larger than one tile"
                raise ConfigError(cause, received=tile, expected=f"null, or at least {window}")
        elif max_voxels is not None:
            plan = self._fit(image_size, max_voxels, shapes, halo=halo, extend=extend)
        else:
            plan = plan_tiles(image_size, tile, shapes=shapes, halo=halo, extend=extend)
        logger.debug("image %s, tile_size %s: %d windows", plan.image_size, self.tile_size, len(plan.tiles))
        return plan

    def _fit(
        self, size: Sequence[int], voxels: float, shapes: Shapes, *, halo: tuple[int, ...] | None, extend: int
    ) -> TilePlan:
        if self.halo != "auto" or any(shapes.margin):
            return choose_tiles(size, voxels, shapes=shapes, halo=halo, extend=extend)
        plan, chosen = choose_halo(size, voxels, shapes=shapes, extend=extend)
        if chosen != shapes.halo:
            self._warn(
                "halo",
                f"memory is short: tiles see {chosen} voxels of their surroundings instead of {shapes.halo}, so a few "
                "voxels where tiles meet may differ; free memory, increase `memory`, or set halo to exact",
            )
        return plan

    def _evaluate(
        self, image: torch.Tensor, run: _Run, plan: TilePlan, *, module: Any, device: torch.device
    ) -> Iterator[TileLogits]:
        if len(plan.tiles) > 1 and (reason := window_dependence(module)):
            blended = not any(plan.margin)
            how = "windows that overlap by half are blended" if blended else "tiles are laid side by side"
            what = f"tiles change the result of {type(module).__name__}: {reason}; {how}"
            self._warn("tiles", f"{what}; for the exact result take the whole image, tile_size=None")
            if blended:
                yield from self._blend(image, run, plan, device)
                return
        for size, tiles in plan.by_window_size().items():
            expected = tuple(n - 2 * margin for n, margin in zip(size, plan.margin, strict=True))
            work = [(b, tile) for b in range(len(image)) for tile in tiles]
            for start in range(0, len(work), self.batch_size):
                batch = work[start : start + self.batch_size]
                windows = [take_window(image[b : b + 1], tile.window, plan.margin).to(device) for b, tile in batch]
                with timed_kernels(device.type == "cuda" and len(work) >= TIMED_WINDOWS * self.batch_size):
                    logits = run(windows[0] if len(windows) == 1 else torch.cat(windows))
                if tuple(logits.shape[2:]) != expected:
                    raise ConfigError(
                        f"network returned a different size than its shapes promise for a window of {size}",
                        received=tuple(logits.shape[2:]),
                        expected=expected,
                    )
                for (b, tile), part in zip(batch, logits, strict=True):
                    trim = (slice(None), *tile.trim)
                    yield TileLogits(b, tile.keep, part[trim])

    def _blend(self, image: torch.Tensor, run: _Run, plan: TilePlan, device: torch.device) -> Iterator[TileLogits]:
        blend = SlidingWindowInferer(
            roi_size=plan.tiles[0].window_size,
            sw_batch_size=self.batch_size,
            overlap=BLEND_OVERLAP,
            mode="gaussian",
            sw_device=device,
            device=self.device,
        )
        whole = tuple(slice(0, n) for n in plan.image_size)
        for b in range(len(image)):
            yield TileLogits(b, whole, blend(image[b : b + 1], lambda window: run(window).float())[0])

    def _max_voxels(self, network: Any, channels: int, device: torch.device) -> float:
        """Return the number of voxels of a window that fits into the memory, and on CUDA into 32-bit indices."""
        module = unwrap(network)
        shapes = getattr(module, "shapes", _MEASURED.get(module) if device.type == "cuda" else None)
        if not isinstance(module, torch.nn.Module) or shapes is None:
            return math.inf  # nothing is known about it: try, and shrink if necessary
        cost = bytes_per_voxel(network, module, shapes, channels, device)
        budget = free_memory(device) if self.memory == "auto" else int(self.memory)
        return min(budget / cost, most_voxels(module, channels, device)) / self.batch_size

    def _smaller(self, plan: TilePlan, module: Any, extend: int) -> TilePlan | None:
        """Return a plan with windows of at most half the size; None if no such plan exists."""
        most = max(math.prod(tile.window_size) for tile in plan.tiles) / 2
        if self._can_tile(module):
            with suppress(ConfigError):
                smaller = self._plan(plan.image_size, module, extend=extend, max_voxels=most)
                if math.prod(smaller.tiles[0].window_size) <= most:
                    return smaller
        return None

    def _warn(self, kind: str, message: str) -> None:
        """Log a warning of each kind once."""
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message)

    def _shapes(self, module: Any, axes: int) -> Shapes:
        shapes: Shapes | None = getattr(module, "shapes", None) or _MEASURED.get(module)
        if shapes is None and self.tile_size not in (None, "auto") and not self._can_tile(module):
            raise ConfigError(
                f"{type(module).__name__} cannot be tiled without tile_stride: "
                f"{window_dependence(module) or _NOT_MEASURED.get(module, 'its stride and halo are unknown')}",
                received=f"halo={self.halo!r}, tile_stride={self.tile_stride!r}",
                remedy="give halo (receptive radius) and tile_stride (product of strides) in voxels, or tile_size=None",
            )
        if hasattr(module, "shapes") and shapes is not None:
            return shapes
        stride = self.tile_stride or (1 if shapes is None else shapes.total_stride)
        # neither one pass nor blended windows need a halo
        halo = self.halo if not isinstance(self.halo, str) else 0 if shapes is None else shapes.halo
        return SameSizeShapes(total_stride=_per_axis(stride, axes, "tile_stride"), halo=_per_axis(halo, axes, "halo"))

    def _can_tile(self, module: Any) -> bool:
        """Return whether windows smaller than the image can be planned for the network."""
        has_halo = not isinstance(self.halo, str) or bool(window_dependence(module))
        return hasattr(module, "shapes") or module in _MEASURED or (self.tile_stride is not None and has_halo)

    def _measure(self, module: Any, in_channels: int, axes: int, device: torch.device) -> None:
        """Measure a network that does not state its stride and halo, unless the caller gave them; keep the result."""
        if self.tile_size is None or self._can_tile(module) or window_dependence(module) or module in _NOT_MEASURED:
            return
        logger.info("measuring the stride and the receptive radius of %s", type(module).__name__)
        try:
            _MEASURED[module] = measure_shapes(module, in_channels, axes, device=device)
        except (ConfigError, RuntimeError, TypeError) as error:
            _NOT_MEASURED[module] = first_lines(error)


def unwrap(network: Any) -> Any:
    """Return the network behind torch.compile (`_orig_mod`), DistributedDataParallel (`module`) and FastNetwork."""
    while not hasattr(network, "shapes"):
        inner = getattr(network, "_orig_mod", None) or getattr(network, "module", None)
        inner = network.network if isinstance(network, FastNetwork) else inner
        if inner is None:
            break
        network = inner
    return network


def _at_least(least: int, value: Any, name: str) -> None:
    """Raise ConfigError unless `value` is an integer, or a sequence of integers, of at least `least`."""
    numbers = [value] if isinstance(value, Integral) else value
    if not isinstance(numbers, Sequence) or not all(isinstance(n, Integral) and int(n) >= least for n in numbers):
        raise ConfigError(f"{name} must be {least} or more, or one such number per axis", received=repr(value))


def _per_axis(value: Any, axes: int, name: str) -> tuple[Any, ...]:
    numbers = (value,) * axes if isinstance(value, Integral) else tuple(value)
    if len(numbers) != axes:
        raise ConfigError(f"{name} must have one number per spatial axis", received=value, expected=axes)
    return numbers
