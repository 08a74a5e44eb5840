"""The training data of a bundle as a raw folder of nnU-Net, to compare both on the same folds."""

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np

from medunet.bundle.read import read_own
from medunet.config import strict_json
from medunet.datasets import SegmentationDataset, make_folds, open_as
from medunet.errors import ConfigError
from medunet.files import claim, reject_other_files, write_atomically
from medunet.io import read_label, read_volume, write_volume

SPLITS = "splits_final.json"  # nnU-Net reads it from `nnUNet_preprocessed/DATASET`


def write_nnunet_raw(run: Path, output: Path, *, data: Path | None = None) -> SegmentationDataset:
    """Write images and labels as NIfTI, `dataset.json` and `splits_final.json`; return the data set.

    Labels are numbered as nnU-Net needs it: classes from 0 without gaps, then the ignore label.

    Args:
        run: A run, or a bundle; its folds become the split.
        output: Folder of the data set, named `DatasetXXX_NAME`.
        data: Data set. Default: the one that the run was trained on.

    Raises:
        ConfigError: A name that nnU-Net does not accept, or labels that number objects.
        DataError: The data set cannot be read.
    """
    if not re.fullmatch(r"Dataset\d{3}_\w+", output.name):
        raise ConfigError("invalid name of a data set of nnU-Net", received=output.name, expected="DatasetXXX_NAME")
    reject_other_files(output)
    train = read_own(run, "train")
    dataset = open_as(train, data or Path(train["dataset_dir"]))
    if dataset.instances:
        raise ConfigError("nnU-Net has no labels that number objects", file=dataset.root)
    numbers = {value: index for index, value in enumerate(dataset.labels.values())}
    if dataset.ignore is not None:
        numbers[dataset.ignore] = len(numbers)
    labels: dict[str, object] = {name: numbers[value] for name, value in dataset.labels.items()}
    if dataset.regions:
        labels = {"background": 0, **{r.name: [numbers[v] for v in r.values] for r in dataset.regions}}
    about = {
        "channel_names": {str(index): name for index, name in enumerate(dataset.channels)},
        "labels": labels | ({} if dataset.ignore is None else {"ignore": numbers[dataset.ignore]}),
        **({"regions_class_order": [numbers[r.written] for r in dataset.regions]} if dataset.regions else {}),
        "numTraining": len(dataset.cases),
        "file_ending": ".nii.gz",
    }
    count = min(dataset.n_groups, train["folds"])  # with few cases leave one out
    parts = train.get("split") or [[case.name for case in fold] for fold in make_folds(dataset.cases, count)]
    names = [case.name for case in dataset.cases]
    split = [{"train": [name for name in names if name not in part], "val": list(part)} for part in parts]
    table = np.zeros(max(numbers) + 1, np.uint8)
    table[list(numbers)] = list(numbers.values())
    with claim(output):
        for folder in ("imagesTr", "labelsTr"):
            (output / folder).mkdir(parents=True)
        for case in dataset.cases:
            images = read_volume(case.images, **asdict(dataset.read_options))
            affine = images.record.geometry.affine
            for index, channel in enumerate(images.image.numpy()):
                voxels = channel if channel.ndim == 3 else channel[..., None]
                write_volume(voxels, output / "imagesTr" / f"{case.name}_{index:04}.nii.gz", affine=affine)
            reference, named = images.record.geometry, dataset.allowed_labels
            label = read_label(case.label or "", reference=reference, labels=named).image.numpy()[0].astype(np.int64)
            label = table[label if label.ndim == 3 else label[..., None]]
            write_volume(label, output / "labelsTr" / f"{case.name}.nii.gz", affine=affine)
        write_atomically(output / SPLITS, strict_json(split))
        write_atomically(output / "dataset.json", strict_json(about))
    return dataset
