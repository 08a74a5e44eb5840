"""The bundle that is written for a trained nnU-Net model."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunet.bundle.check import check_config
from medunet.bundle.render import write_bundle
from medunet.bundle.specialise import derive
from medunet.config import to_json
from medunet.errors import ConfigError, DataError
from medunet.files import check_target, claim, reject_other_files
from medunet.networks import UNet
from medunet.planning import Decision
from medunet.resources import find_bundle
from medunet.runs.ensemble import with_members
from medunet.runtime import save_weights
from medunet.trust import adopt, record_weights, require_trust

from .joint import Part, join
from .model import FOLDS, NnunetModel, network_def, read_model
from .weights import convert_weights, read_checkpoint

# Trainers of nnU-Net that build the network of the plan, as words of their names: nnUNetTrainer_250epochs_NoMirroring
_WORDS = (
    r"\d+epochs?|NoMirroring|onlyMirror01\w*|DA5|DA5ord0|DAOrd0|DASegOrd0|noDummy2DDA|NoDA|BN|NoDeepSupervision|Vanilla\w*"
    r"|Adam\w*|SGD\w*|CosAnneal|Dice\w*|CE\w*|Topk\w*|warmup\w*|probabilisticOversampling\w*|Benchmark\w*"
)
TRAINERS = re.compile(rf"nnUNetTrainer(_?({_WORDS}))*")
REASON = "as in the plan of nnU-Net"


@dataclass(frozen=True)
class ImportedBundle:
    """What `import_nnunet` wrote."""

    bundle: Path
    network: str  # in words
    folds: tuple[str, ...]
    trainer: str
    views: int  # views of an image with `--tta mirror`, which nnU-Net takes by default
    labels: tuple[str, ...]


def import_nnunet(
    *model_folders: Path, output: Path, folds: str = "all", checkpoint: str = "final", any_trainer: bool = False
) -> ImportedBundle:
    """Write a bundle that predicts as a trained nnU-Net v2 model does; nothing of the model's code is run.

    Args:
        model_folders: Folder with `plans.json`, `dataset.json` and `fold_*`; several if they divide the classes.
        output: Folder of the bundle.
        folds: `all` that were trained, or their numbers: `0,1`.
        checkpoint: `final` or `best`.
        any_trainer: Accept a trainer that nnU-Net does not ship. It must build the network of the plan.

    Raises:
        DataError: The folder is incomplete, or its plan and its weights contradict each other.
        ConfigError: The model has something that medunet cannot reproduce.
        SecurityError: A checkpoint contains objects other than tensors, numbers and texts.
    """
    reject_other_files(output, own="configs")
    check_target(output)
    parts = [_read(folder, folds, checkpoint, any_trainer) for folder in model_folders]
    model = parts[0] if len(parts) == 1 else join(parts)
    count = len(model.weights)
    files = _texts(model)
    with claim(output):
        names = ["model"] if count == 1 else [f"fold_{number}" for number in range(count)]
        for name, weights in zip(names, model.weights, strict=True):
            save_weights(weights, output / "models" / f"{name}.pt")
        write_bundle(files, output)
        record_weights(output, to_text=to_json)
        adopt(output)
    plan, first = model.plan, model.first
    patch = " x ".join(map(str, plan.by_image(plan.configuration["patch_size"])))
    words = f"{plan.architecture['kind']}, {plan.dims}D, {plan.architecture['n_stages']} levels, patch {patch}"
    if len(parts) > 1:
        words = f"{len(parts)} networks: {words}"
    return ImportedBundle(output, words, model.folds, first.trainer, 2 ** len(first.mirror_axes), _class_names(plan))


def _read(folder: Path, folds: str, kind: str, any_trainer: bool) -> Part:
    """Read one model folder, and convert its weights."""
    plan = read_model(folder) if "__" in folder.resolve().name else None
    paths = _checkpoints(folder, folds, kind)
    checkpoints = [read_checkpoint(path) for path in paths.values()]
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if (other.configuration, other.trainer) != (first.configuration, first.trainer):
            received, expected = f"{other.trainer}, {other.configuration}", f"{first.trainer}, {first.configuration}"
            raise DataError("folds were trained differently", file=other.path, received=received, expected=expected)
    if not any_trainer and not TRAINERS.fullmatch(first.trainer):
        cause = "unknown trainer, which may build another network than the plan says"
        remedy = "pass --any-trainer if it only changes the training"
        raise ConfigError(cause, file=first.path, received=first.trainer, remedy=remedy)
    if plan is None or plan.name != first.configuration:
        plan = read_model(folder, first.configuration)
    definition = network_def(plan)
    if any("running_mean" in name for name in first.weights):  # nnUNetTrainerBN ignores the plan here
        definition["norm"] = ["batch", definition["norm"][1]]
    arguments = {key: value for key, value in definition.items() if key != "_target_"}
    arguments |= {"in_channels": len(plan.channels), "out_channels": plan.out_channels}
    network = UNet(**arguments)
    weights = [convert_weights(one, network, plan) for one in checkpoints]
    return Part(plan, first, tuple(paths), definition, weights, plan.normalisation)


def _class_names(plan: NnunetModel) -> tuple[str, ...]:
    regions = plan.labels.regions
    return tuple(region.name for region in regions) if regions else tuple(plan.labels.labels)


def _checkpoints(folder: Path, folds: str, kind: str) -> dict[str, Path]:
    """Return the checkpoint of each fold by the fold's name."""
    if kind not in ("final", "best"):
        raise ConfigError("unknown checkpoint", received=kind, expected="final, best")
    found = {match[1]: path for path in folder.glob("fold_*") if (match := FOLDS.fullmatch(path.name))}
    names = sorted((name for name in found if name != "all"), key=int) or sorted(found)
    if folds != "all":
        names = [name.strip() for name in folds.split(",")]
        if unknown := [name for name in names if name not in found]:
            received, expected = ", ".join(unknown), ", ".join(sorted(found)) or "fold_0, fold_1, ..."
            raise DataError("the model has no such fold", file=folder, received=received, expected=expected)
    paths = {name: found[name] / f"checkpoint_{kind}.pth" for name in names}
    present = {name: path for name, path in paths.items() if path.is_file()}
    if not present or (folds != "all" and len(present) < len(paths)):
        missing = next((path for name, path in paths.items() if name not in present), folder / "fold_0")
        others = sorted(path.name for path in missing.parent.glob("checkpoint_*.pth"))
        remedy = "finish its training, or pass --checkpoint best" if "checkpoint_best.pth" in others else None
        raise DataError("the fold has no such checkpoint", file=missing, received=", ".join(others), remedy=remedy)
    return present


def _texts(model: Part) -> dict[str, str]:
    """Return the texts of the bundle by path."""
    plan, first, values = model.plan, model.first, _values(model)
    base = find_bundle(f"unet_{plan.image_dims}d")
    name, shown = plan.plans.get("dataset_name", "a data set"), ", ".join(_class_names(plan))
    about = {
        "name": f"nnU-Net for {name}",
        "task": f"Segmentation of {shown}",
        "description": f"The {plan.architecture['kind']} of nnU-Net's configuration {plan.name}, trained by "
        f"{first.trainer} for {first.epoch} epochs and imported by medunet.",
        "authors": "The owners of the nnU-Net model",
        "copyright": "Copyright (c) the owners of the nnU-Net model",
        "data_source": str(name),
        "image_type": ", ".join(plan.channels),
    }
    ids = ("network_def", "patch_size", "spacing_mm", "steps::normalize", "label_values", "tta_axes")
    decisions = [Decision(id_, values[id_], REASON) for id_ in ids if id_ in values]
    configs, files = derive(require_trust(base), values, metadata=about, decisions=decisions, define=True)
    if len(model.weights) > 1:
        numbers = range(len(model.weights))
        for workflow in ("evaluate", "inference"):
            configs[workflow] = with_members(configs[workflow], numbers, "none")
            check_config(configs[workflow], source=f"{workflow}.json")
            files[f"configs/{workflow}.json"] = to_json(configs[workflow])
    for preset in ("few", "sgd_poly"):
        files.pop(f"configs/{preset}.json", None)
    return files


def _values(model: Part) -> dict[str, Any]:
    """Return the overlay of the bundle `unet_2d` or `unet_3d`."""
    plan, first = model.plan, model.first
    order, regions = plan.permutation, plan.labels.regions
    patch = [int(n) for n in plan.by_image(plan.configuration["patch_size"])]
    seen = [axis for axis in range(plan.image_dims) if axis != plan.slice_axis]  # axes of the image, for the network
    views = [order.index(axis) for axis in first.mirror_axes]
    window = {
        "_target_": "medunet.inferers.BlendedInferer",
        "roi_size": "@patch_size",
        "axis_order": [order.index(axis) for axis in range(plan.dims)],
        "slice_axis": plan.slice_axis,
    }
    crop = {
        "_target_": "CropForegroundd",
        "keys": "@grid_keys",
        "source_key": "image",
        "select_fn": {"_target_": "medunet.transforms.NonZero"},
        "start_coord_key": None,
        "end_coord_key": None,
    }
    spacing = {
        "_target_": "medunet.transforms.SplineSpacingd",
        "keys": "@grid_keys",
        "spacing": "@spacing_mm",
        "mode": "@grid_modes",
    }
    normalize = {"_target_": "medunet.transforms.NormalizeChannelsd", "keys": "image", "channels": model.normalisation}
    steps = ["@steps#crop_nonzero", "@steps#normalize", "@steps#spacing"]
    return {
        "in_channels": len(plan.channels),
        "label_values": list(plan.labels.labels.values()),
        "label_names": list(plan.labels.labels),
        "region_names": [region.name for region in regions],
        "region_values": [list(region.values) for region in regions],
        "regions_class_order": [region.written for region in regions],
        "network_def": model.definition,
        "patch_size": patch,
        "tile_size": patch,
        "spacing_mm": plan.spacing,
        "steps::crop_nonzero": crop,
        "steps::normalize": normalize,
        "steps::spacing": spacing,
        "image_steps": ["@steps#orient", *steps] if plan.reorient else steps,
        "mirror_inferer": {
            "_target_": "medunet.inferers.MirrorInferer",
            "inferer": {"_target_": "SimpleInferer"},
            "axes": "@mirror_axes",
            "activation": "none",
        },
        "tile_inferer": {**window, "window_inferer": "@mirror_inferer"},
        "view_inferer": "@tile_inferer",
        "tta_axes": sorted(views),
        "label_inferer::plan_spacing": "@spacing_mm",
        "prob_inferer::plan_spacing": "@spacing_mm",
        "validate::inferer": window,
        "augment::deform::flip_axes": sorted(seen[axis] for axis in views),
        "planned": True,
    }
