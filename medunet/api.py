"""The functions of `import medunet`, one per task; paths are `str` or `Path`."""

from __future__ import annotations

import base64
import math
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from medunet.bundle import PlannedBundle, plan_beside, plan_bundle, plan_once
from medunet.datasets import Examination, examine, list_inputs
from medunet.datasets.check.check import Level
from medunet.deploy.export import Export, export_bundle
from medunet.errors import ConfigError, MedunetError
from medunet.io import ReadOptions, read_volume
from medunet.io.reader import PathLike
from medunet.metrics import Summary
from medunet.notebook import Shown, Table
from medunet.planning import default_cache
from medunet.prediction import Prediction, PredictOptions, Predictor
from medunet.prediction.source import first_path
from medunet.reports import render_overlay
from medunet.reports.objects import TONE_NAMES, TONES, tones
from medunet.resources import find_bundle
from medunet.runs import TrainingResult, evaluate_bundle, report_runs, train_bundle
from medunet.units import parse_duration, parse_size

Image = npt.ArrayLike | torch.Tensor | PathLike | Sequence[PathLike]


def check(
    data: PathLike,
    *,
    headers_only: bool = False,
    instances: bool = False,
    group_by: str | None = None,
    read: ReadOptions | None = None,
) -> Examination:
    """Check a data set before training.

    Args:
        data: folder of a data set.
        headers_only: read no voxels; fast, but without statistics.
        instances: the labels number objects, whether or not `dataset.json` declares it.
        group_by: regular expression; its first group in a case's name is the patient.
        read: how to read files that can be interpreted in more than one way.

    Returns:
        Findings, errors first; `fails` tells whether training would fail.
    """
    level: Level = "header" if headers_only else "voxels"
    return examine(Path(data), level=level, instances=instances, group_by=group_by, read=read or ReadOptions())


def plan(
    data: PathLike,
    output: PathLike,
    *,
    time: str | None = None,
    memory: str | None = None,
    dims: int | None = None,
    device: str = "auto",
    instances: bool = False,
    force: bool = False,
    skip_bad: bool = False,
    split: PathLike | None = None,
    group_by: str | None = None,
) -> PlannedBundle:
    """Measure a data set and write a bundle that fits it, the machine and the time.

    Args:
        data: folder of a data set.
        output: folder of the bundle.
        time: time that training may take, such as `"30min"` or `"4h"`; None keeps the default number of epochs.
        memory: memory that training may use, such as `"8GB"`; None uses the free memory.
        dims: 2 for a network that segments slice by slice; None uses the dimensions of the images.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        instances: the labels number objects, whether or not `dataset.json` declares it.
        force: replace a planned bundle in `output`.
        skip_bad: leave out unusable cases, which are an error otherwise.
        split: nnU-Net's `splits_final.json`, or a CSV file with the columns `case` and `group`, `fold` or both.
        group_by: regular expression; its first group in a case's name is the patient, which folds do not divide.

    Raises:
        DataError: no usable data set, or an output folder with other files.
        ConfigError: an option that cannot be met.
    """
    return plan_bundle(
        Path(data),
        Path(output),
        dims=dims,
        seconds=None if time is None else parse_duration(time),
        memory=None if memory is None else parse_size(memory),
        device=device,
        instances=instances,
        force=force,
        skip_bad=skip_bad,
        split=None if split is None else Path(split),
        group_by=group_by,
    )


def train(
    bundle: PathLike | None = None,
    *,
    data: PathLike,
    output: PathLike,
    time: str | None = None,
    memory: str | None = None,
    dims: int | None = None,
    changes: Mapping[str, Any] | None = None,
    presets: Sequence[str] = (),
    fold: int = 0,
    resume: bool = False,
    device: str = "auto",
    tracking_uri: str | None = None,
    trust: bool = False,
    split: PathLike | None = None,
    group_by: str | None = None,
) -> TrainingResult:
    """Train a bundle on a data set, or plan one and train it.

    Args:
        bundle: name of a shipped bundle (`unet_3d`, `unet_2d`, `unet_2015`), or folder of a bundle; None plans a bundle
            into the folder `DATA_plan` beside `output`, unless the same plan is there.
        data: folder of a data set.
        output: folder of the run, which is a bundle itself.
        time: for a plan: time that training may take, such as `"30min"`; None keeps the default number of epochs.
        memory: for a plan: memory that training may use, such as `"8GB"`; None uses the free memory.
        dims: for a plan: 2 for a network that segments slice by slice; None uses the dimensions of the images.
        changes: values by config id, such as `{"epochs": 20}`.
        presets: names of presets of the bundle, such as `["few"]`.
        fold: fold that is held out for validation, counted from 0.
        resume: continue the run in `output` from its last completed epoch.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        tracking_uri: MLflow's tracking URI; `""` disables tracking, None uses `mlruns.db` beside the run.
        trust: approve a bundle that could run its own code.
        split: nnU-Net's `splits_final.json`, or a CSV file with the columns `case` and `group`, `fold` or both.
        group_by: regular expression; its first group in a case's name is the patient, which folds do not divide.

    Raises:
        SecurityError: the bundle is not trusted.
        MedunetError: a data set, option, device or output folder that cannot be used.
    """
    if bundle is None:
        budget: dict[str, Any] = {"dims": dims, "seconds": None if time is None else parse_duration(time)}
        budget["memory"] = None if memory is None else parse_size(memory)
        bundle = plan_beside(Path(output), Path(data))
        plan_once(Path(data), bundle, device=device, cache=default_cache(), **budget)
    elif (time, memory, dims) != (None, None, None):
        raise ConfigError("time, memory and dims are for a plan, and the bundle is given", received=bundle)
    options: dict[str, Any] = {"presets": presets, "resume": resume, "device": device, "tracking_uri": tracking_uri}
    options |= {"trust": trust, "split": None if split is None else Path(split), "group_by": group_by}
    changes = {"fold": fold, **(changes or {})}
    return train_bundle(find_bundle(str(bundle)), Path(data), Path(output), changes=changes, **options)


def evaluate(
    run: PathLike,
    data: PathLike,
    output: PathLike | None = None,
    *,
    section: str | None = None,
    tta: str | None = None,
    device: str = "auto",
) -> Summary:
    """Predict labelled images and compare the result with their labels on the grid of the files.

    Args:
        run: folder of a run or of a bundle with weights.
        data: folder of a data set.
        output: folder for predictions and metrics; None uses a folder in the run.
        section: `unseen` (cases that the run was not trained on), `validation`, `all` or `test`. None is `unseen` for
            the data set that the run was trained on, and `all` for another one.
        tta: test-time augmentation, `none`, `mirror` or `views`; None: as the bundle says.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        DataError: no case could be evaluated.
        ConfigError: an unknown section, or one without cases.
    """
    folder = None if output is None else Path(output)
    summary = evaluate_bundle(Path(run), Path(data), folder, section=section, tta=tta, device=device)
    return cast("Summary", _Scores(summary))


def predict(run: PathLike, inputs: PathLike | Iterable[PathLike], output: PathLike, **options: Any) -> list[Prediction]:
    """Segment images and write a label map for each.

    Args:
        run: folder of a run or of a bundle with weights.
        inputs: images, DICOM series, or folders of them.
        output: folder for the label maps.
        **options: fields of :class:`medunet.prediction.PredictOptions`, such as `device` or `result_format`.

    Returns:
        One entry per case; a case that failed has an `error` and no `path`.

    Raises:
        DataError: an input does not exist, or a folder has no image.
        ConfigError: an invalid option.
    """
    predictor = Predictor(run, output_dir=Path(output), **options)
    return _Predictions(predictor.predict(list_inputs(inputs, channels=predictor.channels)))


def report(runs: PathLike | Sequence[PathLike], output: PathLike | None = None, **options: Any) -> Path:
    """Write one HTML page about a run, or about several runs side by side.

    Args:
        runs: folder of a run, or several.
        output: the HTML file; None uses `report.html` in the first run.
        **options: keyword arguments of :func:`medunet.runs.report_runs`.

    Returns:
        The HTML file.
    """
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]  # type: ignore[union-attr]
    path = folders[0] / "report.html" if output is None else Path(output)
    report_runs(folders, path, **options)
    return path


def export(run: PathLike, output: PathLike, *, to: str = "onnx", image: PathLike | None = None) -> Export:
    """Export the network to one file for another inference engine, and compare it with PyTorch.

    Args:
        run: folder of a run or of a bundle with weights.
        output: the file to write.
        to: `onnx`, `torchscript`, `torch-export`, `openvino` or `tensorrt`.
        image: also compare the labels predicted for this image.

    Raises:
        ConfigError: an unknown format, or a missing package.
        DataError: the file exists, or its results differ from PyTorch's.
    """
    return export_bundle(Path(run), Path(output), to=to, image=None if image is None else Path(image))


@dataclass(frozen=True, repr=False)
class Segmentation(Shown):
    """The prediction for one image. A notebook shows its outlines on the image and the volume of each class.

    Args:
        labels: label map `(*spatial)` on the grid of the image, with the data set's label values or object numbers.
        affine: 4x4, from voxel indices to RAS millimetres.
        classes: name of each label value.
        probabilities: `(class, *spatial)`, or None if they were not requested.
        regions: label values that each region unites; empty if classes do not overlap.
        image: the image as it was given, an array or paths; only the picture needs it.
        object_classes: label value by object number, 0 for the background; None if `labels` has label values.
    """

    labels: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    classes: Mapping[str, int]
    probabilities: npt.NDArray[np.float32] | None = None
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    image: Image | None = None
    object_classes: npt.NDArray[Any] | None = None

    @property
    def volumes_mm3(self) -> dict[str, float]:
        """Volume of each class or region in mm³ (area in mm² for 2D images), without the background."""
        size = math.prod(self._spacing)
        voxels = self.labels if self.object_classes is None else self.object_classes[self.labels]
        return {name: size * int(np.isin(voxels, values).sum()) for name, values in self._values.items()}

    def picture(self) -> bytes:
        """Draw the outlines on the image as PNG: in 3D, three planes with most foreground."""
        try:
            paths = _paths(self.image)
            return self._draw(self.image if paths is None else read_volume(paths).image)
        except MedunetError:  # the file has moved, or has another grid
            return self._draw(np.zeros(self.labels.shape))

    def _draw(self, image: Any) -> bytes:
        grid: dict[str, Any] = {"spacing_mm": self._spacing, "affine": self.affine}
        if self.object_classes is not None:
            labels = {name: value for value, name in enumerate(TONE_NAMES, start=1)}
            grid["colours"] = dict(zip(TONE_NAMES, TONES, strict=True))
            return render_overlay(image, tones(self.labels)[self.labels], labels=labels, **grid)
        values: dict[str, Any] = {"background": self.classes.get("background", 0), **self._values}
        return render_overlay(image, self.labels, labels=values, **grid)

    @property
    def _values(self) -> dict[str, Sequence[int]]:
        return dict(self.regions) or {name: [value] for name, value in self.classes.items() if value}

    @property
    def _spacing(self) -> list[float]:
        return [float(n) for n in np.linalg.norm(self.affine[:3, :3], axis=0)[: self.labels.ndim]]

    def _table(self) -> Table:
        unit = "mm³" if self.labels.ndim == 3 else "mm²"
        return f"label map {' x '.join(map(str, self.labels.shape))}", [("class", unit), *self.volumes_mm3.items()]

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self.picture()).decode()
        return (
            f'<img src="data:image/png;base64,{picture}" style="max-width: 60em; width: 100%">{super()._repr_html_()}'
        )


class Model:
    """A trained bundle in memory, made by :func:`load` with the same arguments. Several threads may share it."""

    def __init__(self, run: PathLike, *, probabilities: bool = False, **options: Any) -> None:
        self.predictor = Predictor(run, PredictOptions(probabilities=probabilities, **options))
        self._lock = threading.Lock()
        self._run = run

    def __repr__(self) -> str:
        classes = ", ".join(f"{name}={value}" for name, value in self.classes.items())
        channels, axes = self.predictor.channels, self.predictor.spatial_dims
        return f"Model({str(self._run)!r}): {axes}D, {channels} channels, {self.predictor.device}, {classes}"

    @property
    def classes(self) -> dict[str, int]:
        """Name and value of each class, the background included."""
        return self.predictor.classes

    def predict(self, image: Image, *, affine: npt.ArrayLike | None = None) -> Segmentation:
        """Segment one image without writing a file.

        Args:
            image: a path, one path per channel, or an array or tensor `(C, *spatial)`; `(*spatial)` for one channel.
            affine: 4x4, from voxel indices to RAS millimetres, such as nibabel's `affine`; for arrays only.

        Raises:
            GeometryError: no affine for a volume, an invalid one, or an array with other channels or axes.
            DataError: the file cannot be read, or the array has no numbers.
            ConfigError: an affine for a file.
        """
        paths = _paths(image)
        if paths is not None and affine is not None:
            raise ConfigError("affine is for arrays; a file has its own", received=image)
        with self._lock:
            if paths is not None:
                item = self.predictor.decide(paths if len(paths) > 1 else paths[0])
            else:
                array: Any = image if isinstance(image, torch.Tensor) else np.asarray(image)
                array = array[None] if array.ndim == self.predictor.spatial_dims else array
                item = self.predictor.decide_array(array, affine=affine)
        labels, objects = item["pred"], item.get("object_classes")
        probabilities = item.get("prob") if self.predictor.options.probabilities else None
        return Segmentation(
            labels=np.asarray(labels.numpy() if isinstance(labels, torch.Tensor) else labels)[0],
            affine=np.asarray(getattr(labels, "affine", np.eye(4)), dtype=np.float64),
            classes=self.classes,
            probabilities=None if probabilities is None else np.asarray(probabilities),
            regions=self.predictor.regions,
            image=image,
            object_classes=None if objects is None else np.array(list(self.classes.values()))[objects],
        )


def load(run: PathLike, *, probabilities: bool = False, **options: Any) -> Model:
    """Load a trained bundle for repeated prediction in memory.

    Args:
        run: folder of a run or of a bundle with weights.
        probabilities: also return class probabilities.
        **options: fields of :class:`medunet.prediction.PredictOptions`, such as `device="cuda:1"`.

    Raises:
        SecurityError: the bundle is not trusted.
        DataError: no weights.
    """
    return Model(run, probabilities=probabilities, **options)


class _Scores(Shown, dict[str, Any]):
    """A summary that appears as a table."""

    def _table(self) -> Table:
        if "objects" in self:
            title, columns = f"mean AP {self['mean_ap']:.4f}", {"mean_ap": "mean AP", "f1": "F1", "pq": "PQ"}
        else:
            title = f"mean Dice {self['mean_dice']:.4f}"
            columns = {"dice": "Dice", "iou": "IoU", "hd95_mm": f"HD95 {self.get('unit', 'mm')}"}
        rows = [(name, *(entry["scores"][key]["mean"] for key in columns)) for name, entry in self["classes"].items()]
        return f"{self['cases']} cases, {title}", [("class", *columns.values()), *rows]


class _Predictions(Shown, list[Prediction]):
    """A list of predictions that appears as a table."""

    def _table(self) -> Table:
        rows = [(case.path or first_path(case.source), case.seconds, case.error or "") for case in self]
        failed = sum(case.error is not None for case in self)
        return f"{len(self)} cases, {failed} failed", [("result", "seconds", "error"), *rows]


def _paths(image: object) -> tuple[Path, ...] | None:
    """Return an image's paths; None for an array."""
    if isinstance(image, str | os.PathLike):
        return (Path(image),)
    if isinstance(image, list | tuple) and image and all(isinstance(path, str | os.PathLike) for path in image):
        return tuple(map(Path, image))
    return None
