"""The U-Net, in two and three dimensions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medunet.errors import ConfigError

from .arguments import Option, PerRow, choose, counts, integer, parse_option
from .blocks import ACTIVATIONS, NORMS, DecoderLevel, Style, initialise, named
from .shapes import UNetShapes

DROPOUT_LEVELS = 2  # the coarsest of the encoder: "at the end of the contracting path" (Ronneberger et al. 2015)


class UNet(nn.Module):
    """U-Net of Ronneberger et al. 2015 (2D) and Cicek et al. 2016 (3D), with options of later variants.

    ```
    encoder.0  ----------- skip ----------->  decoder.2 -> head      finest level, channels[0]
       encoder.1  -------- skip ------->  decoder.1 (-> coarse_heads.0)
          encoder.2  ----- skip --->  decoder.0 (-> coarse_heads.1)
             encoder.3  --------------^                              coarsest level, channels[-1]
    ```

    `(B, in_channels, *spatial) -> (B, out_channels, *spatial')`: logits, unless `out_activation` is set. Padded
    networks (`padding="same"`) keep any size of at least `shapes.total_stride`; for valid ones see
    `shapes.output_size`. In training with deep supervision `forward` returns a list, finest first, the coarser ones at
    their own resolution; a scripted network always returns the finest.

    All arguments can be written in JSON: lists replace tuples.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the output, one per class.
        channels: feature channels of every level, finest first; at least two levels.
        strides: factor between levels: one integer, one per transition, or one per transition and axis, such as
            `[[1, 2, 2], 2]` for thick slices.
        kernel_sizes: kernels: one integer, one per level, or one per level and axis.
        convs_per_level: convolutions of each encoder level: one integer, or one per level, finest first.
        decoder_convs: convolutions of each decoder level: one integer, or one per level, finest first; None: as the
            encoder level.
        padding: `"same"`: zeros around every convolution; `"valid"`: no padding, as in the paper.
        norm: None, `"batch"`, `"instance"` (with scale and shift), `"group"` (8 groups), or a name with keywords of the
            torch layer, `["group", {"num_groups": 4}]`; between convolution and activation.
        act: MONAI's name for an activation, or name and keywords: `["leakyrelu", {"negative_slope": 0.1}]`.
        downsample: `"maxpool"`; `"conv"`: a convolution with kernel = stride, norm and activation; or `"strided"`: the
            first convolution of each level, as in nnU-Net. Sizes must then be multiples of `shapes.total_stride`.
        upsample: `"transposed"`: convolution with kernel = stride; `"linear"`: interpolation with half-pixel centres
            (`align_corners=False`, the same weights for every position of a tile), after a 1x1 convolution if
            `up_channels` needs fewer channels. Valid networks drop the half coarse pixel at the border that cannot be
            interpolated.
        up_channels: where the decoder reduces the channels: `"halve"`: in the upsampling, to the finer level's;
            `"keep"`: in the convolutions after the concatenation (Cicek); `"before"`: in the last convolution of the
            coarser decoder level.
        widen_before_pool: all convolutions of an encoder level but the last have half its channels (Cicek).
        block: `"plain"`; `"residual"`: a shortcut around the convolutions of a level; or `"residual_encoder"`: a first
            convolution, then a shortcut around each two convolutions of the encoder, as in nnU-Net's ResEnc networks.
        dropout: probability in training, on the two coarsest encoder levels.
        deep_supervision: number of additional heads, on the next coarser decoder levels; padded networks only.
        resize_output: interpolate a valid network's logits linearly to the size of its input.
        head_kernel_size: kernel of the output convolution.
        norm_after_up: also normalise after the upsampling.
        act_after_up: also activate after the upsampling and its normalisation.
        out_activation: None (logits), `"sigmoid"`, or `"softmax"` over the channels.

    Attributes:
        shapes: sizes, receptive field, halo; missing in a scripted network.
        tileable: whether tiles can reproduce the whole image (in evaluation mode, with origins at multiples of
            `shapes.total_stride` and `shapes.halo` pixels of context).
        tileable_reason: why not; empty if tileable.

    Raises:
        ConfigError: invalid arguments; when called, an image of a wrong size.

    Examples:
        >>> network = UNet(3, 1, 2, channels=[8, 16, 32], norm="batch")
        >>> network(torch.zeros(1, 1, 9, 10, 11)).shape
        torch.Size([1, 2, 9, 10, 11])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (64, 128, 256, 512, 1024),
        strides: PerRow = 2,
        *,
        kernel_sizes: PerRow = 3,
        convs_per_level: int | Sequence[int] = 2,
        decoder_convs: int | Sequence[int] | None = None,
        padding: str = "same",
        norm: Option | None = None,
        act: Option = "relu",
        downsample: str = "maxpool",
        upsample: str = "transposed",
        up_channels: str = "halve",
        widen_before_pool: bool = False,
        block: str = "plain",
        dropout: float = 0.0,
        deep_supervision: int = 0,
        resize_output: bool = False,
        head_kernel_size: int | Sequence[int] = 1,
        norm_after_up: bool = False,
        act_after_up: bool = False,
        out_activation: str | None = None,
    ) -> None:
        super().__init__()
        choose("up_channels", up_channels, ("halve", "keep", "before"))
        choose("block", block, ("plain", "residual", "residual_encoder"))
        choose("out_activation", out_activation, (None, "sigmoid", "softmax"))
        choose("widen_before_pool", widen_before_pool, (True, False))
        choose("norm_after_up", norm_after_up, (True, False))
        choose("act_after_up", act_after_up, (True, False))
        if isinstance(channels, str) or not isinstance(channels, Sequence) or len(channels) < 2:
            raise ConfigError("channels must be at least two integers, finest level first", received=repr(channels))
        widths = [integer(f"channels[{level}]", width) for level, width in enumerate(channels)]
        if widen_before_pool and any(width % 2 for width in widths):
            raise ConfigError("channels must be even if widen_before_pool is set", received=widths)
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ConfigError("dropout must be in [0, 1)", received=repr(dropout))
        if integer("deep_supervision", deep_supervision, least=0, most=len(widths) - 2) and padding == "valid":
            # the coarser outputs of a valid network show more of the image than its finest
            raise ConfigError('deep_supervision needs padding "same"', received=padding)
        self.in_channels = integer("in_channels", in_channels)
        self.out_channels = integer("out_channels", out_channels)
        self.deep_supervision = deep_supervision
        convs = counts("convs_per_level", convs_per_level, len(widths), "level")
        by_two = block == "residual_encoder"
        if by_two and (widen_before_pool or any(count % 2 for count in convs)):
            received = f"convs_per_level {list(convs)}, widen_before_pool {widen_before_pool}"
            cause = 'block "residual_encoder" needs even convs_per_level, and no widen_before_pool'
            raise ConfigError(cause, received=received)
        self.shapes = UNetShapes(
            spatial_dims,
            len(widths),
            kernel_sizes=kernel_sizes,
            strides=strides,
            convs_per_level=(convs[0] + 1, *convs[1:]) if by_two else convs,
            decoder_convs=convs[:-1] if decoder_convs is None else decoder_convs,
            padding=padding,
            downsample=downsample,
            upsample=upsample,
            head_kernel_size=head_kernel_size,
            resize_output=resize_output,
        )
        style = Style(
            spatial_dims,
            same=padding == "same",
            norm=None if norm is None else parse_option("norm", norm, list(NORMS)),
            act=parse_option("act", act, list(ACTIVATIONS)),
            residual=block == "residual",
            linear=upsample == "linear",
            norm_after_up=norm_after_up,
            act_after_up=act_after_up,
        )
        self.norm = "none" if style.norm is None else style.norm[0]
        self.resize_output = resize_output and padding == "valid"
        self.resize_mode = "bilinear" if spatial_dims == 2 else "trilinear"
        self.out_activation = "none" if out_activation is None else str(out_activation)
        self.tileable_reason = ""
        if self.norm in ("instance", "group"):
            self.tileable_reason = f"{self.norm} normalisation takes its statistics from the whole tile"
        elif style.norm is not None and not style.norm[1].get("track_running_stats", True):
            self.tileable_reason = "batch normalisation without running statistics takes them from the whole tile"
        elif self.resize_output:
            self.tileable_reason = "the output is resized to the input, so its scale depends on the size of the tile"
        self.tileable = not self.tileable_reason

        kernels, steps = self.shapes.kernel_sizes, self.shapes.strides
        self.encoder = nn.ModuleList()
        width = in_channels
        for level, (wide, kernel) in enumerate(zip(widths, kernels, strict=True)):
            narrow = wide // 2 if widen_before_pool else wide
            stride = steps[level - 1] if level > 0 and downsample == "strided" else None
            if by_two:
                blocks = style.residual_blocks(width, wide, convs[level] // 2, kernel, stride, stem=level == 0)
            else:
                blocks = style.block([width, *(narrow,) * (convs[level] - 1), wide], kernel, stride)
            down: nn.Module = nn.Identity()
            if level > 0 and downsample == "conv":
                down = style.unit(width, width, steps[level - 1], stride=steps[level - 1])
            elif level > 0 and downsample == "maxpool":
                down = style.layer("MaxPool")(steps[level - 1])
            drops = dropout > 0 and level >= len(widths) - DROPOUT_LEVELS
            self.encoder.append(named(down=down, convs=blocks, dropout=nn.Dropout(dropout) if drops else nn.Identity()))
            width = wide

        self.decoder = nn.ModuleList()
        self.coarse_heads = nn.ModuleList()
        for level in reversed(range(len(widths) - 1)):
            wide = widths[level]
            above = wide if up_channels == "halve" else width
            last = widths[level - 1] if up_channels == "before" and level > 0 else wide
            up = style.up(width, above, steps[level])
            count = self.shapes.decoder_convs[level]
            blocks = style.block([wide + above, *(wide,) * (count - 1), last], kernels[level])
            self.decoder.append(DecoderLevel(style, steps[level], up, blocks))
            width = last
            if 0 < level <= deep_supervision:
                # inserted in front, so that coarse_heads.0 is the finest of them
                self.coarse_heads.insert(0, style.conv(width, out_channels, self.shapes.head_kernel_size))
        self.head = style.conv(width, out_channels, self.shapes.head_kernel_size)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Map `(B, in_channels, *spatial)` to `(B, out_channels, *spatial')`, or to a list with deep supervision.

        Raises:
            ConfigError: an image with a wrong number of axes or channels, or a size that the network does not accept.
        """
        if not torch.jit.is_scripting():
            self._check(image)
        skips: list[Tensor] = []
        x = image
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        x = skips.pop()
        decoded: list[Tensor] = []
        for level in self.decoder:
            x = level(x, skips)
            if self.training and self.deep_supervision > 0:
                decoded.append(x)
        output = self._output(self.head(x), image)
        if self.training and self.deep_supervision > 0 and not torch.jit.is_scripting():
            return self._supervised(output, decoded)
        return output

    @torch.jit.unused
    def _supervised(self, output: Tensor, decoded: list[Tensor]) -> Tensor:
        coarser = zip(self.coarse_heads, decoded[-2::-1], strict=False)
        # TorchScript allows one return type only: the annotations name that of a scripted network
        return [output, *(self._output(head(y), y) for head, y in coarser)]  # type: ignore[return-value]

    def _output(self, logits: Tensor, image: Tensor) -> Tensor:
        if self.resize_output:
            logits = F.interpolate(logits, size=image.shape[2:], mode=self.resize_mode, align_corners=False)
        if self.out_activation == "sigmoid":
            return torch.sigmoid(logits)
        if self.out_activation == "softmax":
            return torch.softmax(logits, dim=1)
        return logits

    @torch.jit.unused
    def _check(self, image: Tensor) -> None:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return  # sizes may be symbols, and a graph cannot raise
        if image.dim() != self.shapes.spatial_dims + 2 or image.size(1) != self.in_channels:
            expected = f"(B, {self.in_channels}, {', '.join('HWD'[: self.shapes.spatial_dims])})"
            raise ConfigError("the image does not fit the network", received=tuple(image.shape), expected=expected)
        one_value = math.prod(self.shapes.coarsest_size(image.shape[2:])) == 1
        if one_value and (self.norm == "instance" or (self.norm == "batch" and self.training and len(image) == 1)):
            raise ConfigError(
                f"the coarsest level is a single pixel, which {self.norm} normalisation cannot normalise",
                received=tuple(image.shape),
                expected=f"more than one block of {self.shapes.total_stride} pixels",
            )
