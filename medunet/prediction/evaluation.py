"""Scores of written predictions against reference labels, file by file."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medunet.datasets import label_files
from medunet.errors import DataError, GeometryError, MedunetError
from medunet.io import Volume, is_structure_file, read_header, read_label, read_volume, split_suffix
from medunet.io.object_table import OBJECT_FILES
from medunet.io.objects import classes_of_objects, object_numbers
from medunet.metrics import CaseScores, evaluate_case, evaluate_objects
from medunet.metrics.evaluation import TOLERANCE_MM
from medunet.transforms import clean_labels, clean_regions

from .rules import ClassRule, by_region, by_value

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """A prediction and its reference.

    Args:
        name: name of the case.
        pred: the predicted label map.
        ref: the reference.
        image: their image; needed if both are DICOM SEG or RTSTRUCT, which have no grid of their own.
        classes: class map or table of the reference's objects, if they have several classes.
    """

    name: str
    pred: Path
    ref: Path
    image: Path | None = None
    classes: Path | None = None


def pair_files(predictions: Path, references: Path) -> list[Pair]:
    """Pair the label maps of two folders by name; each prediction needs a reference.

    Args:
        predictions: folder of predicted label maps; ``*_prob.*`` and other files are ignored.
        references: folder of reference label maps.

    Raises:
        DataError: a missing folder, a prediction without reference, or no prediction.
    """
    preds, refs = label_maps(predictions), label_maps(references)
    if unpaired := sorted(preds.keys() - refs.keys()):
        received = ", ".join(unpaired[:5])
        raise DataError(f"{len(unpaired)} predictions have no reference", file=references, received=received)
    if not preds:
        raise DataError("no label map to evaluate", file=predictions)
    return [Pair(name, preds[name], refs[name]) for name in sorted(preds)]


def label_maps(folder: Path) -> dict[str, Path]:
    """Return the label maps of a folder by name, without those of probabilities; a file is the only one."""
    if folder.is_file():
        return {split_suffix(folder.name)[0]: folder}
    if not folder.is_dir():
        raise DataError("folder does not exist", file=folder)
    maps = {split_suffix(path.name)[0]: path for path in label_files(folder) if path.is_file()}
    return {name: path for name, path in maps.items() if not name.endswith("_prob")}


def evaluate_pairs(
    pairs: Iterable[Pair],
    *,
    labels: Mapping[str, int],
    regions: Mapping[str, Sequence[int]] | None = None,
    em: bool | str = False,
    rules: Iterable[ClassRule] = (),
    ignore: int | None = None,
    instances: bool = False,
    tolerance_mm: float = TOLERANCE_MM,
    failed: dict[str, str] | None = None,
) -> Iterator[CaseScores]:
    """Compute the scores of each pair.

    Args:
        pairs: predictions and references.
        labels: value by class name, background included.
        regions: values by name of classes that overlap, as for :func:`medunet.metrics.evaluate_case`.
        em: also compute the ISBI 2012 scores, as for :func:`medunet.metrics.evaluate_case`.
        rules: clean predictions before they are compared; with regions, one rule per region.
        ignore: value of reference voxels that do not count.
        instances: compare objects: the values are object numbers, and `labels` has the classes of the objects.
        tolerance_mm: of the normalised surface Dice.
        failed: gets the reason by name for each pair that cannot be compared; None raises the error.

    Raises:
        GeometryError: prediction and reference have different grids.
        DataError: an unreadable file or an unexpected value.
    """
    options: dict[str, Any] = {"tolerance_mm": tolerance_mm}
    rules, background = tuple(rules), next(iter(labels.values()), 0)
    for pair in pairs:
        try:
            if instances:
                yield _object_scores(pair, labels)
                continue
            volumes = read_pair(pair, labels)
            spacing_mm = _common_spacing(pair, *volumes)
            pred, ref = (np.asarray(volume.image[0]) for volume in volumes)
            size = math.prod(spacing_mm)
            if rules and regions:
                order = [rule.value for rule in rules]
                pred = clean_regions(pred, by_region(rules), list(regions.values()), order=order, voxel_size=size)
            elif rules:
                pred = clean_labels(pred, by_value(rules), voxel_size=size, background=background)
            if ignore is not None:
                unknown = ref == ignore
                pred, ref = np.where(unknown, background, pred), np.where(unknown, background, ref)
            scores = evaluate_case(
                pred, ref, spacing_mm=spacing_mm, labels=labels, regions=regions, em=em, name=pair.name, **options
            )
        except (DataError, GeometryError) as error:
            if failed is None:
                raise
            failed[pair.name] = reason(error)
            logger.error("not evaluated: %s", error)
        else:
            yield scores


def _object_scores(pair: Pair, labels: Mapping[str, int]) -> CaseScores:
    """Compare the objects of a pair; the classes of predicted objects are in the table beside the prediction."""
    volumes = read_pair(pair, labels)
    _common_spacing(pair, *volumes)
    table = pair.pred.with_name(split_suffix(pair.pred.name)[0] + OBJECT_FILES["csv"])
    objects, classes = [], []
    for path, volume, source in zip((pair.pred, pair.ref), volumes, (table, pair.classes), strict=True):
        numbers = object_numbers(volume.image.numpy(), path)
        objects.append(numbers[0])
        if len(labels) > 2:
            if source is None or not source.is_file():
                raise DataError("objects have no classes", file=path, expected=(source or table).name)
            classes.append(classes_of_objects(numbers, source, labels, case=pair.name))
    names = {name: index for index, name in enumerate(labels)}
    pred_classes, ref_classes = classes or (None, None)
    return evaluate_objects(*objects, labels=names, pred_classes=pred_classes, ref_classes=ref_classes, name=pair.name)


def reason(error: MedunetError) -> str:
    """Return why a case failed, for a table: with the file's name, without its folders."""
    name = "" if error.file is None else f"{Path(error.file).name}: "
    return f"{name}{error.cause}"


def _common_spacing(pair: Pair, pred: Volume, ref: Volume) -> tuple[float, ...]:
    """Return the spacing of the common grid: in mm, or 1 for pictures, whose distances are in pixels."""
    if not pred.record.is_on_grid_of(ref.record):
        received, expected = (
            f"{grid.shape} at {tuple(round(value, 4) for value in grid.spacing_mm)} mm"
            for grid in (pred.record.geometry, ref.record.geometry)
        )
        rule = "prediction and reference have different grids"
        remedy = "resample one of them by nearest neighbour"
        raise GeometryError(rule, file=pair.pred, received=received, expected=expected, remedy=remedy)
    grid = ref.record.geometry
    return grid.spacing_mm if ref.record.is_placed else (1.0,) * len(grid.shape)


def read_pair(pair: Pair, labels: Mapping[str, int]) -> tuple[Volume, Volume]:
    """Read prediction and reference; a DICOM SEG or RTSTRUCT is put on the grid of the other one, or of the image."""
    is_structure = {path: is_structure_file(path) for path in (pair.pred, pair.ref)}
    volumes = {path: read_volume(path, spatial_dims=_plane(path)) for path in is_structure if not is_structure[path]}
    if volumes:
        grid = next(iter(volumes.values())).record.geometry
    elif pair.image is not None:
        grid = read_header(pair.image, spatial_dims=_plane(pair.image)).geometry
    else:
        remedy = "predict with --format nii.gz"
        raise DataError("neither prediction nor reference has a grid of its own", file=pair.pred, remedy=remedy)
    for path in is_structure:
        if path not in volumes:
            volumes[path] = read_label(path, reference=grid, labels=labels)
    return volumes[pair.pred], volumes[pair.ref]


def _plane(path: Path) -> int | None:
    """Return 2 for a volume of a single slice, whose surface is its outline."""
    return 2 if read_header(path).is_single_slice else None
