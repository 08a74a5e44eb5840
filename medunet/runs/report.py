"""Runs in, one page out: measured where they are not yet, drawn case by case, compared where there are several."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medunet.config import read_json
from medunet.datasets import Case, SegmentationDataset, open_dataset
from medunet.errors import ConfigError, GeometryError, MedunetError
from medunet.files import write_atomically
from medunet.io import Volume, is_structure_file, output_name, read_label, read_volume
from medunet.io.options import ReadOptions
from medunet.metrics.evaluation import BACKGROUND
from medunet.metrics.tables import JSON_NAME
from medunet.reports import (
    ClassCodes,
    Stack,
    class_names,
    lowest_dice,
    pack_case,
    render_overlay,
    write_figures,
    write_report,
)
from medunet.reports.page import LETTERS
from medunet.runs.evaluate import evaluate_bundle
from medunet.runs.results import FoundRun, data_of, find_run, is_measured, is_trained, read_cases
from medunet.runs.seen import EVALUATION, SeenCases, seen_cases

logger = logging.getLogger(__name__)

REPORT_NAME = "report.html"

PAGE_MEGABYTES = 5.0
REST_BYTES = 700_000
"""Of the page that is not slices: figures, table, style."""

CASE_BYTES = (60_000, 400_000)
"""A case that gets less shows too little to judge; one that gets more does not look better."""

MAX_FILE_NAME = 80
"""Letters of a case's name in the name of its picture."""


@dataclass(frozen=True)
class WrittenReport:
    """What `report_runs` wrote.

    Args:
        page: the HTML file.
        figures: folder of the PNG files; None where none were wanted.
        cases: how many cases are in the table.
        drawn: how many of them have slices.
    """

    page: Path
    figures: Path | None
    cases: int
    drawn: int


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
        runs: folders of runs or cross-validations; the first one is what the others are compared with.
        output: the HTML file; the figures go to a folder of its name beside it.
        data: where the data set is now, or another one, on which the runs are then evaluated; None takes what each
            run's config says.
        title: headline; the runs' names by default.
        device: for measuring; as in `train_bundle`.
        megabytes: largest size of the page; the worst cases have slices, the others only numbers.
        figures: also write the figures as PNG files.

    Raises:
        ConfigError: no run, too many, or a folder that is none.
        DataError: broken results, or a run that can neither be measured nor shown.
    """
    if not 1 <= len(runs) <= len(LETTERS):
        raise ConfigError("a report is about one run or several", received=len(runs), expected=f"1 to {len(LETTERS)}")
    found = [_gather(run, name, data, device) for run, name in zip(runs, run_names(runs), strict=True)]
    results = [run.results for run in found]
    names = class_names(results)
    order = list(lowest_dice(results))
    codes = ClassCodes(names)
    room = megabytes * 1e6 - REST_BYTES
    count = min(len(order), max(1, int(room / CASE_BYTES[0])))
    share = int(min(CASE_BYTES[1], room / max(count, 1)))
    folder = output.with_suffix("").with_name(output.stem + "_figures") if figures else None
    stacks: dict[str, Stack] = {}
    maps: dict[str, list[str]] = {}
    for place, name in enumerate(order[:count]):
        try:
            drawn = _read(found, name)
        except MedunetError as error:
            logger.warning("no slices of %s: %s", name, error)
            continue
        if drawn is None:
            continue
        coded = [codes.encode(drawn.reference, found[drawn.runs[0]].members)]
        for index, pred in zip(drawn.runs, drawn.predictions, strict=True):
            coded.append(codes.encode(pred, found[index].members))
        stacks[name] = pack_case(drawn.image, coded, affine=drawn.affine, max_bytes=share)
        maps[name] = [LETTERS[index] for index in drawn.runs]
        if folder is not None:
            _draw(drawn, found, name, folder / "cases", _file_name(name, order), several=len(runs) > 1)
        if (place + 1) % 10 == 0:
            logger.info("drawn %d/%d", place + 1, count)
    if order and not stacks:
        logger.warning("no slices: the images are not to be found; --data says where they are")
    if folder is not None:
        write_figures(folder, results)
    headline = title or ", ".join(run.name for run in results)
    page = write_report(output, results, title=headline, stacks=stacks, maps=maps, unions=codes.unions)
    return WrittenReport(page, folder, len(order), len(stacks))


def run_names(runs: Sequence[Path]) -> list[str]:
    """Names of runs: of their folders, with that of the folder above where two are alike.

    Example:
        >>> run_names([Path("/x/first/run"), Path("/x/second/run"), Path("/x/other")])
        ['first run', 'second run', 'other']
    """
    names = [run.resolve().name for run in runs]
    return [
        name if names.count(name) == 1 else f"{run.resolve().parent.name} {name}"
        for run, name in zip(runs, names, strict=True)
    ]


@dataclass(frozen=True)
class _Drawn:
    """A case on the grid of its image; predictions of the runs (by their index) that have one there."""

    image: npt.NDArray[np.float32]
    reference: npt.NDArray[np.generic]
    predictions: list[npt.NDArray[np.generic]]
    runs: list[int]
    affine: npt.NDArray[np.float64] | None
    spacing_mm: tuple[float, ...]


def _gather(run: Path, name: str, data: Path | None, device: str) -> FoundRun:
    where = data or data_of(run)
    notes: list[str] = []
    dataset: SegmentationDataset | None = None
    seen: SeenCases | None = None
    if where is not None:
        read = ReadOptions.of_config(read_json(run / "configs" / "evaluate.json"))
        dataset = open_dataset(where, problems=[], read=read)  # a case that cannot be read has no figures
        seen = seen_cases(run, dataset)
    folder = EVALUATION if seen is None else seen.folder
    if not _is_measured_on(run, folder, dataset):
        missing = ""
        if where is None or dataset is None or seen is None:
            missing = "its data set is not at hand"
        elif not is_trained(run):
            missing = "there are no weights of it to measure"
        elif seen.names >= {case.name for case in dataset.cases}:
            missing = "it was trained on every case"
        if missing or where is None:
            notes.append(f"Not measured: {missing}.")
            logger.warning("%s is not measured: %s", name, missing)
        else:
            logger.info("%s was not evaluated yet: predicting the cases that it was not trained on", name)
            evaluate_bundle(run, where, run / folder, device=device)
    return find_run(run, name, dataset=dataset, seen=seen, notes=notes)


def _is_measured_on(run: Path, folder: str, dataset: SegmentationDataset | None) -> bool:
    """Whether a run has metrics; those on another data set must be of these cases, not of a data set of this name."""
    if not is_measured(run, folder) or dataset is None or folder == EVALUATION:
        return is_measured(run, folder)
    return {case["name"] for case in read_cases(run / folder / JSON_NAME)} <= {case.name for case in dataset.cases}


def _read(found: Sequence[FoundRun], name: str) -> _Drawn | None:
    """A case's voxels; None where its files are not to be found.

    Raises:
        MedunetError: image or reference that cannot be read.
    """
    for run in found:
        case = _find_case(run.dataset, name)
        if case is None or case.label is None or run.dataset is None:
            continue
        volume = read_volume(case.images, **asdict(run.dataset.read_options))
        reference = np.asarray(_read_map(case.label, volume, run.labels).image[0])
        ignored = None if run.dataset.ignore is None else reference == run.dataset.ignore
        predictions, runs = [], []
        for index, other in enumerate(found):
            path = other.predictions.get(name) or other.predictions.get(output_name(case.images))
            if path is None:
                continue
            try:
                pred = np.asarray(_read_map(path, volume, other.labels).image[0])
            except MedunetError as error:
                logger.warning("prediction of %s is not shown: %s", name, error)
                continue
            predictions.append(pred if ignored is None else np.where(ignored, other.labels.get(BACKGROUND, 0), pred))
            runs.append(index)
        if not predictions:
            return None
        if ignored is not None:
            reference = np.where(ignored, run.labels.get(BACKGROUND, 0), reference)
        geometry = volume.record.geometry
        affine = np.asarray(geometry.affine) if volume.record.is_placed else None
        return _Drawn(np.asarray(volume.image), reference, predictions, runs, affine, geometry.spacing_mm)
    return None


def _read_map(path: Path, volume: Volume, labels: dict[str, int]) -> Volume:
    grid = volume.record.geometry
    if is_structure_file(path):
        return read_label(path, reference=grid, labels=labels)
    found = read_volume(path, spatial_dims=len(grid.shape))
    if not found.record.is_on_grid_of(volume.record):
        raise GeometryError("label map is not on the image's grid", file=path)
    return found


def _find_case(dataset: SegmentationDataset | None, name: str) -> Case | None:
    if dataset is None:
        return None
    return next((case for case in (*dataset.cases, *dataset.test) if case.name == name), None)


def _draw(drawn: _Drawn, found: Sequence[FoundRun], name: str, folder: Path, stem: str, *, several: bool) -> None:
    for index, pred in zip(drawn.runs, drawn.predictions, strict=True):
        letter = f"_{LETTERS[index]}" if several else ""
        codes = ClassCodes([one for one in found[index].members if one != BACKGROUND])
        reference, coded = (codes.encode(labels, found[index].members) for labels in (drawn.reference, pred))
        content = render_overlay(
            drawn.image,
            coded,
            reference,
            labels=codes.labels(BACKGROUND),
            affine=drawn.affine,
            spacing_mm=drawn.spacing_mm,
            title=f"{LETTERS[index]}  {name}" if several else name,
        )
        write_atomically(folder / f"{stem}{letter}.png", content)


def _file_name(name: str, names: Sequence[str]) -> str:
    """A case's name as one of a file; where two would be alike, their place tells them apart.

    Example:
        >>> _file_name("a/b", ["a b", "a/b", "c"]), _file_name("c", ["a b", "a/b", "c"])
        ('a_b_1', 'c')
    """
    safe = [re.sub(r"[^\w.-]+", "_", other)[:MAX_FILE_NAME].lstrip(".") or "case" for other in names]
    place = names.index(name)
    return safe[place] if safe.count(safe[place]) == 1 else f"{safe[place]}_{place}"
