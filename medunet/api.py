"""The functions of `import medunet`, one per task; paths are `str` or `Path`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from medunet.bundle import PlannedBundle, plan_beside, plan_bundle, plan_once
from medunet.datasets import Examination, examine, list_inputs
from medunet.datasets.check.check import Level
from medunet.deploy.export import Export, export_bundle
from medunet.errors import ConfigError
from medunet.io import ReadOptions
from medunet.io.reader import PathLike
from medunet.metrics import Summary
from medunet.notebook import Shown, Table
from medunet.planning import default_cache
from medunet.prediction import Prediction, Predictor
from medunet.prediction.source import first_path
from medunet.resources import find_bundle, find_run
from medunet.runs import TrainingResult, evaluate_bundle, report_runs, train_bundle
from medunet.units import parse_duration, parse_size


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
    summary = evaluate_bundle(find_run(run), Path(data), folder, section=section, tta=tta, device=device)
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
    return export_bundle(find_run(run), Path(output), to=to, image=None if image is None else Path(image))


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
