"""The folder of a trained nnU-Net v2 model: which files it has, and what its plan says."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunet.config import read_json
from medunet.datasets import ParsedLabels, labels_of
from medunet.errors import ConfigError, DataError

MODEL_FILES = ("plans.json", "dataset.json")
V1_FILES = ("plans.pkl", "fold_*/model_*.model")
FOLDS = re.compile(r"fold_(\d+|all)")

READERS = {"SimpleITKIO": False, "NibabelIO": False, "NaturalImage2DIO": False}  # whether images are turned to RAS
READERS |= {"SimpleITKIOWithReorient": True, "NibabelIOWithReorient": True}
RESAMPLING = "resample_data_or_seg_to_shape"
RESAMPLING_OPTIONS = {"data": (3, 0), "probabilities": (1, 0)}  # order in the plane, order through the planes
NORMS = {"InstanceNorm": "instance", "BatchNorm": "batch"}
ACTIVATIONS = {"LeakyReLU": "leakyrelu", "ReLU": "relu"}
NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")
SCHEMES = {
    "ZScoreNormalization": None,
    "NoNormalization": "none",
    "RescaleTo01Normalization": "minmax",
    "RGBTo01Normalization": "rgb",
}
ARCHITECTURE = frozenset(
    {"n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage"}
    | {"n_conv_per_stage_decoder", "conv_bias", "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs"}
    | {"nonlin", "nonlin_kwargs", "deep_supervision"}
)
"""Arguments of nnU-Net's networks that medunet's U-Net can express; others must be absent or null."""


@dataclass(frozen=True)
class NnunetModel:
    """A model folder, read and checked; axes are in nnU-Net's order."""

    folder: Path
    plans: Mapping[str, Any]
    configuration: Mapping[str, Any]  # the part of the plan that was trained
    name: str  # of the configuration
    labels: ParsedLabels
    channels: tuple[str, ...]

    @property
    def dims(self) -> int:
        """Axes of the network: 2 or 3."""
        return len(self.configuration["patch_size"])

    @property
    def image_dims(self) -> int:
        """Axes of the images: volumes may be segmented slice by slice."""
        shape = self.plans.get("original_median_shape_after_transp") or [0]
        return 2 if self.dims == 2 and shape[0] == 1 else 3

    @property
    def reorient(self) -> bool:
        """Whether nnU-Net's reader turns images to RAS."""
        return READERS[self.plans["image_reader_writer"]]

    @property
    def axes(self) -> list[int]:
        """For each axis of the network's input, the axis of the image: x, y, z here, but z, y, x in nnU-Net."""
        forward = self.plans["transpose_forward"]
        return [2 - axis for axis in forward[3 - self.dims :]]

    @property
    def permutation(self) -> list[int]:
        """For each axis of the image that the network sees, in ascending order, nnU-Net's axis."""
        return sorted(range(self.dims), key=lambda index: self.axes[index])

    @property
    def slice_axis(self) -> int | None:
        """The axis of the image along which a 2D network takes slices."""
        return 2 - int(self.plans["transpose_forward"][0]) if self.image_dims > self.dims else None

    def by_image(self, values: Sequence[Any]) -> list[Any]:
        """Return values per axis of the network in the order of the image's axes."""
        return [values[index] for index in self.permutation]

    @property
    def spacing(self) -> list[float | None]:
        """The spacing of the plan per axis of the image; None along slices."""
        values: list[float | None] = self.by_image([float(length) for length in self.configuration["spacing"]])
        if self.slice_axis is not None:
            values.insert(self.slice_axis, None)
        return values

    @property
    def normalisation(self) -> list[Any]:
        """The normalisation of each channel, as `NormalizeChannelsd` takes it."""
        config = self.configuration
        result: list[Any] = []
        numbers = self.plans["foreground_intensity_properties_per_channel"]
        masks = config["use_mask_for_norm"]
        for index, scheme in enumerate(config["normalization_schemes"]):
            if scheme == "CTNormalization":
                own = numbers[str(index)]
                keys = {"low": "percentile_00_5", "high": "percentile_99_5", "mean": "mean", "std": "std"}
                result.append({key: float(own[name]) for key, name in keys.items()})
            else:
                is_masked = scheme == "ZScoreNormalization" and masks[index]
                result.append("masked" if is_masked else SCHEMES[scheme])
        return result

    @property
    def out_channels(self) -> int:
        """Channels of the network's output."""
        return len(self.labels.regions or self.labels.labels)

    @property
    def architecture(self) -> dict[str, Any]:
        """Name and arguments of nnU-Net's network; plans before version 2.3 spell them differently."""
        config = self.configuration
        if "architecture" in config:
            kind = str(config["architecture"]["network_class_name"]).rpartition(".")[2]
            return {"kind": kind, **config["architecture"]["arch_kwargs"]}
        stages = len(config["n_conv_per_stage_encoder"])
        first, most = config["UNet_base_num_features"], config["unet_max_num_features"]
        convs = "n_blocks_per_stage" if config["UNet_class_name"] == "ResidualEncoderUNet" else "n_conv_per_stage"
        return {
            "kind": config["UNet_class_name"],
            "n_stages": stages,
            "features_per_stage": [min(first * 2**stage, most) for stage in range(stages)],
            "kernel_sizes": config["conv_kernel_sizes"],
            "strides": config["pool_op_kernel_sizes"],
            convs: config["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": config["n_conv_per_stage_decoder"],
            "norm_op": "InstanceNorm",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": "LeakyReLU",
        }


def read_model(folder: Path, name: str | None = None) -> NnunetModel:
    """Read the plan of a model folder; `name` is that of its configuration, by default the only one it can be.

    Raises:
        DataError: not the folder of an nnU-Net v2 model, or an incomplete plan.
        ConfigError: something that medunet cannot reproduce.
    """
    if not folder.is_dir() or any(not (folder / file).is_file() for file in MODEL_FILES):
        _reject_folder(folder)
    plans, dataset = (read_json(folder / file) for file in MODEL_FILES)
    try:
        name = name or folder.name.rpartition("__")[2]
        model = NnunetModel(
            folder,
            plans,
            _configuration(plans["configurations"], name, folder),
            name,
            labels_of(dataset, folder / "dataset.json"),
            tuple(str(channel) for channel in (dataset.get("channel_names") or dataset["modality"]).values()),
        )
        _check(model)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        received = f"{type(error).__name__}: {error}"
        raise DataError("the plan is incomplete", file=folder / "plans.json", received=received) from error
    return model


def network_def(model: NnunetModel) -> dict[str, Any]:
    """Return the arguments of medunet's `UNet` for the network of a plan."""
    given = model.architecture
    stages, residual = int(given["n_stages"]), given["kind"] == "ResidualEncoderUNet"

    def per_stage(value: Any) -> list[Any]:
        return list(value) if isinstance(value, list | tuple) else [value] * stages

    def per_axis(value: Any) -> list[Any]:
        return model.by_image(value) if isinstance(value, list | tuple) else [value] * model.dims

    strides = [per_axis(stride) for stride in per_stage(given["strides"])]
    if math.prod(strides[0]) != 1:
        raise ConfigError("the first stage must have no stride", file=model.folder, received=strides[0])
    convs = per_stage(given["n_blocks_per_stage" if residual else "n_conv_per_stage"])
    decoder = given["n_conv_per_stage_decoder"]
    decoder = [decoder] * (stages - 1) if isinstance(decoder, int) else list(decoder)
    norm = _named(given["norm_op"], NORMS, "normalisation", model.folder)
    act = _named(given["nonlin"], ACTIVATIONS, "activation", model.folder)
    slope = (given.get("nonlin_kwargs") or {}).get("negative_slope", 0.01)
    kwargs = {"affine": True, **(given.get("norm_op_kwargs") or {})}
    return {
        "_target_": "medunet.networks.UNet",
        "spatial_dims": model.dims,
        "in_channels": "@in_channels",
        "out_channels": "@out_channels",
        "channels": per_stage(given["features_per_stage"]),
        "strides": strides[1:],
        "kernel_sizes": [per_axis(kernel) for kernel in per_stage(given["kernel_sizes"])],
        "convs_per_level": [2 * count for count in convs] if residual else convs,
        "decoder_convs": decoder[::-1],
        "downsample": "strided",
        "block": "residual_encoder" if residual else "plain",
        "norm": [norm, kwargs],
        "act": [act, {"negative_slope": slope}] if act == "leakyrelu" else act,
        "deep_supervision": stages - 2,
    }


def _configuration(configurations: Mapping[str, Any], name: str, folder: Path) -> Mapping[str, Any]:
    if name not in configurations:
        cause, expected = "the plan has no such configuration", ", ".join(configurations)
        raise DataError(cause, file=folder / "plans.json", received=name, expected=expected)
    config = dict(configurations[name])
    if "inherits_from" in config:
        config = {**_configuration(configurations, config.pop("inherits_from"), folder), **config}
    return config


def _check(model: NnunetModel) -> None:
    """Raise ConfigError for parts of a plan that medunet cannot reproduce."""
    plans, config, given = model.plans, model.configuration, model.architecture
    if config.get("previous_stage"):
        cause = "the second stage of a cascade cannot be imported: it needs the first stage's result"
        raise ConfigError(cause, file=model.folder, received=model.name, remedy="import 3d_fullres or 3d_lowres")
    _named(given["kind"], {kind: kind for kind in NETWORKS}, "network", model.folder, exact=True)
    other = sorted(key for key in given.keys() - ARCHITECTURE - {"kind"} if given[key] not in (None, False))
    if other:
        raise ConfigError("arguments of the network are unknown", file=model.folder, received=", ".join(other))
    for key, value, known in (
        ("image reader", plans["image_reader_writer"], READERS),
        ("preprocessor", config.get("preprocessor_name", "DefaultPreprocessor"), ("DefaultPreprocessor",)),
        ("label manager", plans.get("label_manager", "LabelManager"), ("LabelManager",)),
        *(("normalisation", name, [*SCHEMES, "CTNormalization"]) for name in config["normalization_schemes"]),
        *(("resampling", config[f"resampling_fn_{of}"], (RESAMPLING,)) for of in RESAMPLING_OPTIONS),
    ):
        if value not in known:
            raise ConfigError(
                f"unknown {key} in the plan", file=model.folder, received=value, expected=", ".join(known)
            )
    for of, (order, order_z) in RESAMPLING_OPTIONS.items():
        own = {"order": order, "order_z": order_z, "force_separate_z": None}
        chosen = {key: value for key, value in config[f"resampling_fn_{of}_kwargs"].items() if key in own}
        if {**own, **chosen} != own:
            raise ConfigError(f"unknown options to resample {of}", file=model.folder, received=chosen, expected=own)
    if not len(model.channels) == len(config["normalization_schemes"]) == len(config["use_mask_for_norm"]):
        cause, received = "the plan contradicts dataset.json", f"{len(model.channels)} channels"
        raise DataError(cause, file=model.folder, received=received, expected=len(config["normalization_schemes"]))
    if sorted(plans["transpose_forward"]) != [0, 1, 2] or (model.image_dims == 2 and plans["transpose_forward"][0]):
        raise ConfigError("invalid transpose_forward", file=model.folder, received=plans["transpose_forward"])


def _named(value: Any, known: Mapping[str, str], what: str, folder: Path, *, exact: bool = False) -> str:
    """Return medunet's name for a class that a plan names by its import path."""
    name = str(value).rpartition(".")[2]
    name = name if exact else re.sub(r"[23]d$", "", name)
    if name not in known:
        raise ConfigError(f"unknown {what} in the plan", file=folder, received=value, expected=", ".join(known))
    return known[name]


def _reject_folder(folder: Path) -> None:
    if any(any(folder.glob(pattern)) for pattern in V1_FILES):
        raise ConfigError("this is a model of nnU-Net v1", file=folder, remedy="train it again with nnU-Net v2")
    if not folder.is_dir():
        raise DataError("no such folder", file=folder)
    inner = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob("**/plans.json"))
    remedy = f"give one of the folders in it: {', '.join(inner)}" if inner else None
    raise DataError("this is not the folder of an nnU-Net model", file=folder, expected="plans.json", remedy=remedy)
