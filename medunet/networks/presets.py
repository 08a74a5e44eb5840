"""Published U-Nets by name: `unet_2015(in_channels=3, norm="batch")` is the paper's network with two changes.

Every preset returns a `UNet` and takes any of its arguments as a keyword, which replaces the published value. The
parameter counts are those of the defaults.
"""

from typing import Any

from .unet import UNet


def unet_2015(in_channels: int = 1, out_channels: int = 2, **overrides: Any) -> UNet:
    """Return the network of the paper: valid convolutions, 23 convolutional layers, 572 x 572 to 388 x 388, 2 classes.

    Source: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015,
    figure 1 and sections 2-3. Dropout "at the end of the contracting path" is here 0.5 on the two coarsest levels; the
    paper gives no figure. 31,030,658 parameters.
    """
    return UNet(**{**_io(in_channels, out_channels), "padding": "valid", "dropout": 0.5, **overrides})


def unet_2015_resized(in_channels: int = 1, out_channels: int = 2, **overrides: Any) -> UNet:
    """Return `unet_2015` with its logits interpolated linearly to the size of the input: 572 x 572 to 572 x 572.

    Use it if sizes must be equal. The output is a stretched view of the inner 388 x 388 pixels, off by up to 92 pixels
    at the border: train and apply it at one size, and do not tile it. 31,030,658 parameters, as `unet_2015`.
    """
    return unet_2015(in_channels, out_channels, **{"resize_output": True, **overrides})


def unet_2015_same(in_channels: int = 1, out_channels: int = 1, **overrides: Any) -> UNet:
    """Return `unet_2015` with zero padding, which keeps sizes, and one sigmoid channel instead of two classes.

    This is the usual binary form of public re-implementations, e.g. github.com/zhixuhao/unet (which has one more 3x3
    convolution, to 2 channels, before the last: 31,031,685 parameters for a one-channel image). 31,030,593
    parameters. Pass `out_activation=None` for logits.
    """
    return unet_2015(in_channels, out_channels, **{"padding": "same", "out_activation": "sigmoid", **overrides})


def unet_compact_bn(in_channels: int = 1, out_channels: int = 1, **overrides: Any) -> UNet:
    """Return a network with 8 to 128 channels, batch norm and ReLU after every convolution and up-convolution.

    This is a small variant in public code, without a paper of its own. 486,593 parameters, 64 times fewer than
    `unet_2015`. The public code has 487,449: 856 biases of convolutions, which the batch norm after them cancels. Pass
    `out_activation=None` for logits.
    """
    published = {
        **{"channels": (8, 16, 32, 64, 128), "norm": "batch", "norm_after_up": True, "act_after_up": True},
        **{"head_kernel_size": 3, "out_activation": "sigmoid"},
    }
    return UNet(**{**_io(in_channels, out_channels), **published, **overrides})


def unet_padded_bn(
    in_channels: int = 3, out_channels: int = 2, *, upsample: str = "transposed", **overrides: Any
) -> UNet:
    """Return a network with 64 to 1024 channels, zero padding and batch norm; odd sizes are padded.

    Source: github.com/milesial/Pytorch-UNet. `upsample="transposed"`: 31,037,698 parameters. `upsample="linear"`: its
    bilinear form, in which the last convolution of each level halves the channels before upsampling and the coarsest
    level has 512: 17,263,042 parameters.

    It differs in two ways, so that tiles agree with the whole image: linear upsampling has half-pixel centres (there
    `align_corners=True`), and odd sizes are padded at the far end only (the same for strides of 2).
    """
    linear = upsample == "linear"
    channels = (64, 128, 256, 512, 512 if linear else 1024)
    published = {"channels": channels, "norm": "batch", "up_channels": "before" if linear else "halve"}
    return UNet(**{**_io(in_channels, out_channels), **published, "upsample": upsample, **overrides})


def unet3d_2016(in_channels: int = 3, out_channels: int = 3, **overrides: Any) -> UNet:
    """Return the 3D U-Net: valid, batch norm before each ReLU, channels doubled before pooling.

    Source: Cicek, Abdulkadir, Lienkamp, Brox, Ronneberger, "3D U-Net: Learning Dense Volumetric Segmentation from
    Sparse Annotation", MICCAI 2016, figure 2. The up-convolutions keep the number of channels.

    132 x 132 x 116 to 44 x 44 x 28. 19,073,187 parameters; the paper states 19,069,955. It counts one shift per 3x3x3
    convolution channel (2,336: either its bias or the batch norm's), no scale of the batch norms (+2,336 here), and no
    bias in the up-convolutions (+896 here).
    """
    published = {
        **{"spatial_dims": 3, "channels": (64, 128, 256, 512), "padding": "valid", "norm": "batch"},
        **{"up_channels": "keep", "widen_before_pool": True},
    }
    return UNet(**{**_io(in_channels, out_channels), **published, **overrides})


def _io(in_channels: int, out_channels: int) -> dict[str, Any]:
    return {"spatial_dims": 2, "in_channels": in_channels, "out_channels": out_channels}


PRESETS = {
    preset.__name__: preset
    for preset in (unet_2015, unet_2015_resized, unet_2015_same, unet_compact_bn, unet_padded_bn, unet3d_2016)
}
