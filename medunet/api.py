"""The functions of `import medunet`, one per task; paths are `str` or `Path`."""

from __future__ import annotations

import html
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medunet.bundle import PlannedBundle, plan_bundle
from medunet.datasets import Examination, examine, list_inputs
from medunet.deploy.export import Export, export_bundle
from medunet.errors import ConfigError
from medunet.inferers.memory import parse_memory
from medunet.io import ReadOptions
from medunet.io.reader import PathLike
from medunet.metrics import Summary
from medunet.planning import parse_time
from medunet.prediction import Prediction, PredictOptions, Predictor
from medunet.resources import find_bundle
from medunet.runs import TrainingResult, evaluate_bundle, report_runs, train_bundle

Image = npt.ArrayLike | torch.Tensor | PathLike | Sequence[PathLike]


def check(data: PathLike, *, headers_only: bool = False, read: ReadOptions | None = None) -> Examination:
    """Check a data set before training.

    Args:
        data: folder of a data set.
        headers_only: read no voxels; fast, but without statistics.
        read: how to read files that can be interpreted in more than one way.

    Returns:
        Findings, errors first; `fails` tells whether training would fail.
    """
    return examine(Path(data), level="header" if headers_only else "voxels", read=read or ReadOptions())


def plan(
    data: PathLike,
    output: PathLike,
    *,
    time: str | None = None,
    memory: str | None = None,
    dims: int | None = None,
    device: str = "auto",
    force: bool = False,
    skip_bad: bool = False,
) -> PlannedBundle:
    """Measure a data set and write a bundle that fits it, the machine and the time.

    Args:
        data: folder of a data set.
        output: folder of the bundle.
        time: time that training may take, such as `"30min"` or `"4h"`; None keeps the default number of epochs.
        memory: memory that training may use, such as `"8GB"`; None uses the free memory.
        dims: 2 for a network that segments slice by slice; None uses the dimensions of the images.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        force: replace a planned bundle in `output`.
        skip_bad: leave out unusable cases, which are an error otherwise.

    Raises:
        DataError: no usable data set, or an output folder with other files.
        ConfigError: an option that cannot be met.
    """
    return plan_bundle(
        Path(data),
        Path(output),
        dims=dims,
        seconds=None if time is None else parse_time(time),
        memory=None if memory is None else parse_memory(memory),
        device=device,
        force=force,
        skip_bad=skip_bad,
    )


def train(
    bundle: PathLike,
    data: PathLike,
    output: PathLike,
    *,
    changes: Mapping[str, Any] | None = None,
    presets: Sequence[str] = (),
    fold: int = 0,
    resume: bool = False,
    device: str = "auto",
    tracking_uri: str | None = None,
    trust: bool = False,
) -> TrainingResult:
    """Train a bundle on a data set.

    Args:
        bundle: name of a shipped bundle (`unet_3d`, `unet_2d`, `unet_2015`), or folder of a bundle.
        data: folder of a data set.
        output: folder of the run, which is a bundle itself.
        changes: values by config id, such as `{"epochs": 20}`.
        presets: names of presets of the bundle, such as `["few"]`.
        fold: fold that is held out for validation, counted from 0.
        resume: continue the run in `output` from its last completed epoch.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        tracking_uri: MLflow's tracking URI; `""` disables tracking, None uses `mlruns.db` beside the run.
        trust: approve a bundle that could run its own code.

    Raises:
        SecurityError: the bundle is not trusted.
        MedunetError: a data set, option, device or output folder that cannot be used.
    """
    return train_bundle(
        find_bundle(str(bundle)),
        Path(data),
        Path(output),
        changes={"fold": fold, **(changes or {})},
        presets=presets,
        resume=resume,
        device=device,
        tracking_uri=tracking_uri,
        trust=trust,
    )


def evaluate(
    run: PathLike,
    data: PathLike,
    output: PathLike | None = None,
    *,
    section: str = "unseen",
    tta: str | None = None,
    device: str = "auto",
) -> Summary:
    """Predict labelled images and compare the result with their labels on the grid of the files.

    Args:
        run: folder of a run or of a bundle with weights.
        data: folder of a data set.
        output: folder for predictions and metrics; None uses a folder in the run.
        section: `unseen` (all cases that the run was not trained on), `validation`, `all` or `test`.
        tta: test-time augmentation, `none`, `mirror` or `views`; None: as the bundle says.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        DataError: no case could be evaluated.
        ConfigError: an unknown section, or one without cases.
    """
    folder = None if output is None else Path(output)
    return evaluate_bundle(Path(run), Path(data), folder, section=section, tta=tta, device=device)


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
    return list(predictor.predict(list_inputs(inputs, channels=predictor.channels)))


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


@dataclass(frozen=True)
class Segmentation:
    """The prediction for one image.

    Args:
        labels: label map `(*spatial)` on the grid of the image, with the data set's label values.
        affine: 4x4, from voxel indices to RAS millimetres.
        classes: name of each label value.
        probabilities: `(class, *spatial)`, or None if they were not requested.
    """

    labels: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    classes: Mapping[str, int]
    probabilities: npt.NDArray[np.float32] | None = None

    @property
    def volumes_mm3(self) -> dict[str, float]:
        """Volume of each class in mm³ (area in mm² for 2D images), without the background."""
        voxel = float(abs(np.linalg.det(self.affine[:3, :3])))
        return {name: voxel * int((self.labels == value).sum()) for name, value in self.classes.items() if value}

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{v:.1f}</td></tr>" for k, v in self.volumes_mm3.items())
        shape = " x ".join(map(str, self.labels.shape))
        return f"<p>label map {shape}</p><table><tr><th>class</th><th>mm³</th></tr>{rows}</table>"


class Model:
    """A trained bundle in memory, made by :func:`load` with the same arguments. Several threads may share it."""

    def __init__(self, run: PathLike, *, probabilities: bool = False, **options: Any) -> None:
        self.predictor = Predictor(run, PredictOptions(probabilities=probabilities, **options))
        self._lock = threading.Lock()

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
            GeometryError: no affine for a volume, or an image with a different number of channels or axes.
            DataError: the file cannot be read.
        """
        paths = [image] if isinstance(image, str | Path) else image
        is_path = isinstance(paths, list | tuple) and isinstance(paths[0], str | Path)
        if is_path and affine is not None:
            raise ConfigError("affine is for arrays; a file has its own", received=image)
        with self._lock:
            if is_path:
                files = tuple(map(Path, paths))  # type: ignore[arg-type] # as is_path says
                item = self.predictor.decide(files if len(files) > 1 else files[0])
            else:
                array = image if isinstance(image, torch.Tensor) else np.asarray(image)
                array = array[None] if array.ndim == self.predictor.spatial_dims else array
                item = self.predictor.decide_array(array, affine=affine)
        labels, probabilities = item["pred"], item.get("prob")
        return Segmentation(
            labels=np.asarray(labels.numpy() if isinstance(labels, torch.Tensor) else labels)[0],
            affine=np.asarray(getattr(labels, "affine", np.eye(4)), dtype=np.float64),
            classes=self.classes,
            probabilities=None if probabilities is None else np.asarray(probabilities),
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
