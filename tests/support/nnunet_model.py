"""A model folder in nnU-Net's format with random weights, and a plain copy of nnU-Net's prediction to compare with.

The networks repeat the module names of `dynamic_network_architectures`, and the steps those of nnU-Net 2.8, in its own
order of axes (z, y, x). Nothing here uses medunet.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import binary_fill_holes, gaussian_filter, map_coordinates
from skimage.transform import resize
from torch import nn


def _conv_block(
    dims: int, before: int, after: int, kernel: list[int], stride: list[int], *, act: bool = True
) -> nn.Module:
    block = nn.Module()
    conv = nn.Conv3d if dims == 3 else nn.Conv2d
    norm = nn.InstanceNorm3d if dims == 3 else nn.InstanceNorm2d
    block.conv = conv(before, after, kernel, stride, [(k - 1) // 2 for k in kernel])
    block.norm = norm(after, affine=True)
    layers = [block.conv, block.norm, *([nn.LeakyReLU()] if act else [])]
    block.all_modules = nn.Sequential(*layers)
    block.forward = block.all_modules.forward  # type: ignore[method-assign]
    return block


def _stack(dims: int, before: int, after: int, kernel: list[int], stride: list[int], *, count: int) -> nn.Module:
    stack, one = nn.Module(), [1] * dims
    blocks = [_conv_block(dims, after if i else before, after, kernel, one if i else stride) for i in range(count)]
    stack.convs = nn.Sequential(*blocks)
    stack.forward = stack.convs.forward  # type: ignore[method-assign]
    return stack


class _Residual(nn.Module):
    def __init__(self, dims: int, before: int, after: int, kernel: list[int], stride: list[int]) -> None:
        super().__init__()
        one = [1] * dims
        self.conv1 = _conv_block(dims, before, after, kernel, stride)
        self.conv2 = _conv_block(dims, after, after, kernel, one, act=False)
        pool = nn.AvgPool3d if dims == 3 else nn.AvgPool2d
        skip: list[nn.Module] = [pool(stride, stride)] if max(stride) > 1 else []
        if before != after:
            skip.append(_conv_block(dims, before, after, one, one, act=False))
        self.skip = nn.Sequential(*skip)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.leaky_relu(self.conv2(self.conv1(x)) + self.skip(x))


class ReferenceNetwork(nn.Module):
    """PlainConvUNet or ResidualEncoderUNet."""

    def __init__(self, plan: dict[str, Any], channels: int, classes: int, *, residual: bool) -> None:
        super().__init__()
        dims, n = len(plan["kernel_sizes"][0]), plan["n_stages"]
        widths, kernels, strides = plan["features_per_stage"], plan["kernel_sizes"], plan["strides"]
        self.encoder, self.decoder = nn.Module(), nn.Module()
        stages, before = [], channels
        if residual:
            self.encoder.stem = _stack(dims, channels, widths[0], kernels[0], [1] * dims, count=1)
            before = widths[0]
        for i in range(n):
            if residual:
                stage = nn.Module()
                counts = range(plan["n_blocks_per_stage"][i])
                first = [before, *[widths[i]] * len(counts)]
                steps = [strides[i], *[[1] * dims] * len(counts)]
                stage.blocks = nn.Sequential(
                    *(_Residual(dims, first[k], widths[i], kernels[i], steps[k]) for k in counts)
                )
                stage.forward = stage.blocks.forward  # type: ignore[method-assign]
            else:
                count = plan["n_conv_per_stage"][i]
                stage = nn.Sequential(_stack(dims, before, widths[i], kernels[i], strides[i], count=count))
            stages.append(stage)
            before = widths[i]
        self.encoder.stages = nn.Sequential(*stages)
        up = nn.ConvTranspose3d if dims == 3 else nn.ConvTranspose2d
        conv, one = (nn.Conv3d if dims == 3 else nn.Conv2d), [1] * dims
        decoder = plan["n_conv_per_stage_decoder"]
        levels = range(n - 2, -1, -1)
        pairs = enumerate(levels)
        self.decoder.encoder = self.encoder
        self.decoder.stages = nn.ModuleList(
            _stack(dims, 2 * widths[i], widths[i], kernels[i], one, count=decoder[k]) for k, i in pairs
        )
        self.decoder.transpconvs = nn.ModuleList(
            up(widths[i + 1], widths[i], strides[i + 1], strides[i + 1]) for i in levels
        )
        self.decoder.seg_layers = nn.ModuleList(conv(widths[i], classes, 1) for i in levels)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self.encoder, "stem"):
            x = self.encoder.stem(x)
        skips = []
        for stage in self.encoder.stages:
            x = stage(x)
            skips.append(x)
        x = skips.pop()
        for up, stage in zip(self.decoder.transpconvs, self.decoder.stages, strict=True):
            x = stage(torch.cat([up(x), skips.pop()], dim=1))
        return self.decoder.seg_layers[-1](x)


def write_model(
    folder: Path,
    *,
    dims: int = 3,
    residual: bool = False,
    labels: dict[str, Any] | None = None,
    order: list[int] | None = None,
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    patch: tuple[int, ...] = (16, 16, 16),
    transpose: tuple[int, ...] = (0, 1, 2),
    normalisation: tuple[str, ...] = ("ZScoreNormalization",),
    masks: tuple[bool, ...] = (False,),
    mirror: tuple[int, ...] = (0, 1, 2),
    folds: tuple[int, ...] = (0,),
    picture: bool = False,
    trainer: str = "nnUNetTrainer",
    **changes: Any,
) -> Path:
    """Write `plans.json`, `dataset.json` and a checkpoint per fold; return the folder."""
    labels = labels or {"background": 0, "front": 1, "back": 2}
    strides = [[1] * dims, [2] * dims, [1, *[2] * (dims - 1)]]
    architecture: dict[str, Any] = {
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[1, *[3] * (dims - 1)], [3] * dims, [3] * dims],
        "strides": strides,
        "n_conv_per_stage_decoder": [1, 1] if residual else [2, 1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    architecture["n_blocks_per_stage" if residual else "n_conv_per_stage"] = [1, 2, 3] if residual else [2, 1, 2]
    name = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    configuration = {
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": list(patch),
        "spacing": list(spacing),
        "normalization_schemes": list(normalisation),
        "use_mask_for_norm": list(masks),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**resampling, "order": 3},
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
            "arch_kwargs": architecture,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        **changes,
    }
    key = f"{dims}d_fullres" if dims == 3 else "2d"
    numbers = {"mean": 90.0, "std": 40.0, "percentile_00_5": 5.0, "percentile_99_5": 180.0}
    plans = {
        "dataset_name": "Dataset900_Synthetic",
        "plans_name": "nnUNetPlans",
        "original_median_shape_after_transp": [1, 40, 40] if picture else [30, 40, 40],
        "image_reader_writer": "NaturalImage2DIO" if picture else "SimpleITKIO",
        "transpose_forward": list(transpose),
        "transpose_backward": np.argsort(transpose).tolist(),
        "configurations": {"base": configuration, key: {"inherits_from": "base"}},
        "foreground_intensity_properties_per_channel": {str(i): numbers for i in range(len(normalisation))},
        "label_manager": "LabelManager",
    }
    dataset: dict[str, Any] = {"channel_names": {str(i): f"channel {i}" for i in range(len(normalisation))}}
    dataset |= {"labels": labels, "file_ending": ".png" if picture else ".nii.gz", "numTraining": 1}
    if order:
        dataset["regions_class_order"] = order
    folder = folder / f"{trainer}__nnUNetPlans__{key}"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    classes = len([name for name in labels if name not in ("ignore", *(["background"] if order else []))])
    for fold in folds:
        torch.manual_seed(fold)
        network = ReferenceNetwork(architecture, len(normalisation), classes, residual=residual)
        (folder / f"fold_{fold}").mkdir()
        content = {
            "network_weights": network.state_dict(),
            "logging": {"mean_fg_dice": [np.float64(0.5)], "epoch_start_timestamps": [np.float32(1.5)]},
            "_best_ema": np.float64(0.5),
            "current_epoch": 3,
            "init_args": {"plans": plans, "configuration": key, "fold": fold, "dataset_json": dataset},
            "trainer_name": trainer,
            "inference_allowed_mirroring_axes": mirror[:dims] or None,
        }
        torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def predict(folder: Path, image: np.ndarray, spacing: tuple[float, ...], *, mirror: bool = False) -> np.ndarray:
    """Return nnU-Net's label map of an image `(C, z, y, x)` with its spacing in the same order."""
    plans, dataset = (json.loads((folder / f"{name}.json").read_text()) for name in ("plans", "dataset"))
    config = plans["configurations"]["base"]
    forward = plans["transpose_forward"]
    data = image.astype(np.float32).transpose(0, *(axis + 1 for axis in forward))
    spacing = tuple(spacing[axis] for axis in forward)
    before = data.shape[1:]
    mask = binary_fill_holes((data != 0).any(axis=0))
    box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(mask))
    data, mask = data[(slice(None), *box)].copy(), mask[box]
    target = [*([spacing[0]] if len(config["spacing"]) == 2 else []), *config["spacing"]]
    shape = [round(n * old / new) for n, old, new in zip(mask.shape, spacing, target, strict=True)]
    for channel, scheme in enumerate(config["normalization_schemes"]):
        values = data[channel]
        if scheme == "CTNormalization":
            numbers = plans["foreground_intensity_properties_per_channel"][str(channel)]
            values = np.clip(values, numbers["percentile_00_5"], numbers["percentile_99_5"])
            data[channel] = (values - numbers["mean"]) / numbers["std"]
        elif scheme == "ZScoreNormalization":
            part = mask if config["use_mask_for_norm"][channel] else np.ones_like(mask)
            data[channel][part] = (values[part] - values[part].mean()) / values[part].std()
        elif scheme == "RescaleTo01Normalization":
            data[channel] = (values - values.min()) / (values.max() - values.min())
        elif scheme == "RGBTo01Normalization":
            data[channel] = values / 255
    data = _resample(data, shape, spacing, target, order=3).astype(np.float32)
    members = sorted(folder.glob("fold_*/checkpoint_final.pth"))
    logits = sum(_logits(path, data, config, mirror=mirror) for path in members)
    logits = (logits / len(members)).numpy() if len(members) > 1 else logits.numpy()
    logits = _resample(logits, mask.shape, target, spacing, order=1).astype(np.float16).astype(np.float32)
    order = dataset.get("regions_class_order")
    inner = np.zeros(mask.shape, np.uint8)
    if order:
        for channel, value in enumerate(order):
            inner[logits[channel] > 0] = value
    else:
        inner = logits.argmax(axis=0).astype(np.uint8)
    result = np.zeros(before, np.uint8)
    result[box] = inner
    return result.transpose(plans["transpose_backward"])


def _thick(spacing: tuple[float, ...]) -> list[int]:
    is_thick = max(spacing) / min(spacing) > 3
    return [axis for axis in range(3) if spacing[axis] == max(spacing)] if is_thick else []


def _resample(data: np.ndarray, shape: Any, old: Any, new: Any, *, order: int) -> np.ndarray:
    if tuple(shape) == data.shape[1:]:
        return data
    options = {"mode": "edge", "anti_aliasing": False}
    thick = _thick(tuple(old)) or _thick(tuple(new))
    if len(thick) != 1:
        return np.stack([resize(part.astype(float), shape, order, **options) for part in data])
    axis = thick[0]
    plane = [n for k, n in enumerate(shape) if k != axis]
    result = []
    for part in data.astype(float):
        slices = [resize(one, plane, order, **options) for one in np.moveaxis(part, axis, 0)]
        middle = np.moveaxis(np.stack(slices), 0, axis)
        if middle.shape != tuple(shape):
            grid = np.mgrid[tuple(slice(0, n) for n in shape)]
            scale = [was / n for was, n in zip(middle.shape, shape, strict=True)]
            places = [s * (one + 0.5) - 0.5 for s, one in zip(scale, grid, strict=True)]
            middle = map_coordinates(middle, places, order=0, mode="nearest")
        result.append(middle)
    return np.stack(result)


def _logits(path: Path, data: np.ndarray, config: dict[str, Any], *, mirror: bool) -> torch.Tensor:
    checkpoint = torch.load(path, weights_only=False)
    architecture = config["architecture"]["arch_kwargs"]
    weights = checkpoint["network_weights"]
    classes = len(weights["decoder.seg_layers.0.weight"])
    residual = "ResidualEncoder" in config["architecture"]["network_class_name"]
    network = ReferenceNetwork(architecture, len(data), classes, residual=residual).eval()
    network.load_state_dict(weights)
    patch = config["patch_size"]
    size = data.shape[1:]
    full = [*([size[0]] if len(patch) == 2 else []), *patch]
    missing = [max(0, p - n) for p, n in zip(full, size, strict=True)]
    padded = np.pad(data, [(0, 0), *((n // 2, n - n // 2) for n in missing)])
    axes = range(3 - len(patch), 3)
    steps = []
    for axis in axes:
        n, p = padded.shape[axis + 1], full[axis]
        count = int(np.ceil((n - p) / (p / 2))) + 1
        steps.append([int(np.round((n - p) / max(count - 1, 1) * k)) for k in range(count)])
    weight = np.zeros(patch)
    weight[tuple(p // 2 for p in patch)] = 1
    weight = gaussian_filter(weight, [p / 8 for p in patch], mode="constant")
    gaussian = torch.from_numpy(weight / (weight.max() / 10)).half()
    gaussian[gaussian == 0] = gaussian[gaussian > 0].min()
    total = torch.zeros((classes, *padded.shape[1:]), dtype=torch.half)
    count_map = torch.zeros(padded.shape[1:], dtype=torch.half)
    flips = [dims for k in range(len(patch) + 1) for dims in itertools.combinations(range(2, 2 + len(patch)), k)]
    slices = [(z,) for z in range(padded.shape[1])] if len(patch) == 2 else [()]
    for first, place in itertools.product(slices, itertools.product(*steps)):
        window: Any = (*first, *(slice(n, n + p) for n, p in zip(place, patch, strict=True)))
        image = torch.from_numpy(padded)[(slice(None), *window)][None]
        views = flips if mirror else [()]
        with torch.inference_mode():
            output = sum(network(image.flip(dims)).flip(dims) for dims in views)[0] / len(views)
        total[(slice(None), *window)] += output * gaussian
        count_map[window] += gaussian
    total /= count_map
    inner = tuple(slice(n // 2, n // 2 + k) for n, k in zip(missing, size, strict=True))
    return total[(slice(None), *inner)]
