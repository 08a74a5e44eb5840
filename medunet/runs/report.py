"""The report: one page about one or several runs, which are evaluated first if they are not yet."""

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medunet.bundle.read import read_own
from medunet.datasets import SegmentationDataset, open_as
from medunet.errors import ConfigError, GeometryError, MedunetError
from medunet.files import write_atomically
from medunet.io import Volume, is_structure_file, output_name, read_label, read_volume
from medunet.metrics.evaluation import BACKGROUND
from medunet.reports import (
    ClassCodes,
    Stack,
    class_names,
    lowest_dice,
    object_layers,
    object_maps,
    pack_case,
    render_objects,
    render_overlay,
    write_figures,
    write_report,
)
from medunet.reports.page import LETTERS
from medunet.runs.evaluate import evaluate_bundle
from medunet.runs.results import FoundRun, find_run, metrics_of, read_cases
from medunet.runs.seen import EVALUATION, seen_cases
from medunet.training import BEST_NAME

logger = logging.getLogger(__name__)

PAGE_MEGABYTES = 5.0
REST_BYTES = 700_000  # of the page without slices: figures, table, style
CASE_BYTES = (60_000, 400_000)  # a case with less shows too little to judge; with more it does not look better
MAX_FILE_NAME = 80  # characters of a case's name in the name of its picture


@dataclass(frozen=True)
class WrittenReport:
    """What `report_runs` wrote."""

    page: Path  # the HTML file
    figures: Path | None  # folder of the PNG files; None if they were not requested
    cases: int  # number of cases in the table
    drawn: int  # number of cases with slices


def report_runs(
    runs: Sequence[Path],
    output: Path,
    *,
    data: Path | None = None,
    title: str | None = None,
    device: str = "auto",
    megabytes: float = PAGE_MEGABYTES,
    figures: bool = True,
) -> WrittenReport:
    """Write the page about one run, or about several side by side.

    A run that is trained but not evaluated on the data is evaluated first, on the cases that it was not trained on. A
    run that is still training shows its curves and configuration.

    Args:
        runs: folders of runs or cross-validations; the others are compared with the first.
        output: the HTML file; the figures are written to a folder of the same name beside it.
        data: the data set, if it was moved, or another one to evaluate the runs on; None uses that of each run.
        title: headline; the runs' names by default.
        device: device for prediction: `auto`, `cpu`, `cuda` or `cuda:N`.
        megabytes: maximum size of the page; the worst cases have slices, the others only numbers.
        figures: also write the figures as PNG files.

    Raises:
        ConfigError: No run, too many, or a folder that is not a run.
        DataError: Damaged results.
    """
    if not 1 <= len(runs) <= len(LETTERS):
        raise ConfigError("wrong number of runs for a report", received=len(runs), expected=f"1 to {len(LETTERS)}")
    gathered = [_gather(run, name, data, device) for run, name in zip(runs, run_names(runs), strict=True)]
    results = [run.results for run in gathered]
    order = list(lowest_dice(results))
    codes = ClassCodes(class_names(results))
    instances = any(run.instances for run in gathered)
    free = megabytes * 1e6 - REST_BYTES
    count = min(len(order), max(1, int(free / CASE_BYTES[0])))
    share = int(min(CASE_BYTES[1], free / max(count, 1)))
    folder = output.with_suffix("").with_name(output.stem + "_figures") if figures else None
    stacks: dict[str, Stack] = {}
    maps: dict[str, list[str]] = {}
    for number, name in enumerate(order[:count], start=1):
        try:
            drawn = _read(gathered, name)
        except MedunetError as error:
            logger.warning("slices of %s cannot be drawn: %s", name, error)
            continue
        if drawn is None:
            continue
        if instances:
            shown = [object_maps(pred, drawn.reference) for pred in drawn.predictions.values()]
            coded = [shown[0][1], *(pred for pred, _ in shown)]
        else:
            coded = [codes.encode(drawn.reference, gathered[next(iter(drawn.predictions))].members)]
            coded += [codes.encode(pred, gathered[index].members) for index, pred in drawn.predictions.items()]
        stacks[name] = pack_case(drawn.image, coded, affine=drawn.affine, max_bytes=share)
        maps[name] = [LETTERS[index] for index in drawn.predictions]
        if folder is not None:
            _draw(drawn, gathered, name, folder / "cases", _file_name(name, order))
        if number % 10 == 0:
            logger.info("drawn %d/%d", number, count)
    if order and not stacks:
        logger.warning("no slices: the images are missing; pass their folder as --data")
    if folder is not None:
        write_figures(folder, results)
    headline = title or ", ".join(run.name for run in results)
    options: dict[str, Any] = {"unions": codes.unions, "layers": object_layers() if instances else ()}
    page = write_report(output, results, title=headline, stacks=stacks, maps=maps, **options)
    return WrittenReport(page, folder, len(order), len(stacks))


def run_names(runs: Sequence[Path]) -> list[str]:
    """Return the names of the runs' folders, preceded by the parent folder's if two are equal.

    Examples:
        >>> run_names([Path("/x/first/run"), Path("/x/second/run"), Path("/x/other")])
        ['first run', 'second run', 'other']
    """
    paths = [run.resolve() for run in runs]
    names = [path.name for path in paths]
    return [path.name if names.count(path.name) == 1 else f"{path.parent.name} {path.name}" for path in paths]


def _gather(run: Path, name: str, data: Path | None, device: str) -> FoundRun:
    """Return a run's results; evaluate it first if it was not evaluated on this data set."""
    config = read_own(run, "evaluate")
    own = Path(str(config.get("dataset_dir", "")))
    data = data or (own if own.is_absolute() and own.exists() else None)
    missing, dataset, seen = "its data set is missing", None, None
    if data is not None:
        dataset = open_as(config, data, [])  # an unreadable case has no slices
        seen, missing = seen_cases(run, dataset), ""
        if not (run / "models" / BEST_NAME).is_file() and not any(run.glob("models/fold_*.pt")):
            missing = "it has no weights"
        elif seen.names >= {case.name for case in dataset.cases}:
            missing = "it was trained on every case"
    notes: list[str] = []
    if not _is_measured(run, EVALUATION if seen is None else seen.folder, dataset):
        if data is None or seen is None or missing:
            notes.append(f"Not evaluated: {missing}.")
            logger.warning("%s is not evaluated: %s", name, missing)
        else:
            logger.info("%s is not evaluated yet: predicting the cases that it was not trained on", name)
            evaluate_bundle(run, data, run / seen.folder, section="unseen", device=device)
    return find_run(run, name, dataset, seen, notes)


def _is_measured(run: Path, folder: str, dataset: SegmentationDataset | None) -> bool:
    """Return whether a run has metrics of these cases; another data set may have the same name."""
    metrics = metrics_of(run, folder)
    if metrics is None or dataset is None or folder == EVALUATION:
        return metrics is not None
    return {case["name"] for case in read_cases(metrics)} <= {case.name for case in dataset.cases}


@dataclass(frozen=True)
class _Drawn:
    """A case on the grid of its image, with the predictions by index of the run."""

    image: npt.NDArray[np.float32]
    reference: npt.NDArray[np.generic]
    predictions: dict[int, npt.NDArray[np.generic]]
    affine: npt.NDArray[np.float64] | None
    spacing_mm: tuple[float, ...]


def _read(runs: Sequence[FoundRun], name: str) -> _Drawn | None:
    """Return a case's voxels; None if its files are missing."""
    for run in runs:
        cases = () if run.dataset is None else (*run.dataset.cases, *run.dataset.test)
        case = next((case for case in cases if case.name == name), None)
        if case is None or case.label is None or run.dataset is None:
            continue
        volume = read_volume(case.images, **asdict(run.dataset.read_options))
        reference = np.asarray(_read_map(case.label, volume, run.labels).image[0])
        ignored = np.zeros(reference.shape, bool) if run.dataset.ignore is None else reference == run.dataset.ignore
        predictions = {}
        for index, other in enumerate(runs):
            path = other.predictions.get(name) or other.predictions.get(output_name(case.images))
            if path is None:
                continue
            try:
                pred = np.asarray(_read_map(path, volume, other.labels).image[0])
            except MedunetError as error:
                logger.warning("prediction of %s is not shown: %s", name, error)
                continue
            predictions[index] = np.where(ignored, other.labels.get(BACKGROUND, 0), pred)
        if not predictions:
            return None
        reference = np.where(ignored, run.labels.get(BACKGROUND, 0), reference)
        geometry = volume.record.geometry
        affine = np.asarray(geometry.affine) if volume.record.is_placed else None
        return _Drawn(np.asarray(volume.image), reference, predictions, affine, geometry.spacing_mm)
    return None


def _read_map(path: Path, volume: Volume, labels: dict[str, int]) -> Volume:
    grid = volume.record.geometry
    if is_structure_file(path):
        return read_label(path, reference=grid, labels=labels)
    label_map = read_volume(path, spatial_dims=len(grid.shape))
    if not label_map.record.is_on_grid_of(volume.record):
        raise GeometryError("label map is not on the image's grid", file=path)
    return label_map


def _draw(drawn: _Drawn, runs: Sequence[FoundRun], name: str, folder: Path, stem: str) -> None:
    for index, pred in drawn.predictions.items():
        codes = ClassCodes([class_ for class_ in runs[index].members if class_ != BACKGROUND])
        title, suffix = (f"{LETTERS[index]}  {name}", f"_{LETTERS[index]}") if len(runs) > 1 else (name, "")
        grid: dict[str, Any] = {"affine": drawn.affine, "spacing_mm": drawn.spacing_mm}
        if runs[index].instances:
            content = render_objects(drawn.image, pred, drawn.reference, title=title, **grid)
        else:
            coded, reference = (codes.encode(labels, runs[index].members) for labels in (pred, drawn.reference))
            labels = codes.labels(BACKGROUND)
            content = render_overlay(drawn.image, coded, reference, labels=labels, title=title, **grid)
        write_atomically(folder / f"{stem}{suffix}.png", content)


def _file_name(name: str, names: Sequence[str]) -> str:
    """Return a case's name as a file name; duplicates get their index.

    Examples:
        >>> _file_name("a/b", ["a b", "a/b", "c"]), _file_name("c", ["a b", "a/b", "c"])
        ('a_b_1', 'c')
    """
    safe = [re.sub(r"[^\w.-]+", "_", other)[:MAX_FILE_NAME].lstrip(".") or "case" for other in names]
    index = names.index(name)
    return safe[index] if safe.count(safe[index]) == 1 else f"{safe[index]}_{index}"
