"""Measuring written predictions against reference labels, file by file."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medunet.datasets import label_files
from medunet.errors import DataError, GeometryError, MedunetError
from medunet.io import Volume, is_structure_file, output_name, read_header, read_label, read_volume, split_suffix
from medunet.metrics import CaseScores, evaluate_case
from medunet.transforms import clean_labels, clean_regions

from .rules import ClassRule, by_region, by_value

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """A prediction and the reference it is measured against.

    Args:
        name: of the case.
        pred: the predicted label map.
        ref: the reference.
        image: what both were drawn on; needed where both are DICOM SEG or RTSTRUCT, which have no grid of their own.
    """

    name: str
    pred: Path
    ref: Path
    image: Path | None = None


def pair_files(predictions: Path, references: Path) -> list[Pair]:
    """Pair the label maps of two folders by name; every reference that has a prediction is measured.

    Args:
        predictions: folder of predicted label maps; ``*_prob.*`` and what is no label map are passed over.
        references: folder of reference label maps.

    Raises:
        DataError: a folder that is missing, a prediction without reference, or nothing to measure.
    """
    found = {folder: _label_maps(folder) for folder in (predictions, references)}
    lonely = sorted(found[predictions].keys() - found[references].keys())
    if lonely:
        raise DataError(
            f"{len(lonely)} predictions have no reference",
            file=references,
            received=", ".join(lonely[:5]),
            remedy="give the folder with the reference labels of these cases",
        )
    names = sorted(found[predictions])
    if not names:
        raise DataError("no label map to measure", file=predictions, remedy="predict first")
    return [Pair(name, found[predictions][name], found[references][name]) for name in names]


def _label_maps(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError("no such folder", file=folder)
    maps: dict[str, Path] = {}
    for path in label_files(folder):
        stem = split_suffix(path.name)[0]
        if path.is_file() and not stem.endswith("_prob"):
            maps[stem] = path
    return maps


def prediction_path(source: Path, folder: Path) -> Path:
    """Where :class:`Predictor` writes the label map of an image.

    Example:
        >>> prediction_path(Path("in/case_1.nii.gz"), Path("out")).as_posix()
        'out/case_1.nii.gz'
    """
    return folder / output_name(source, split_suffix(source.name)[1])


def evaluate_pairs(
    pairs: Iterable[Pair],
    *,
    labels: Mapping[str, int],
    regions: Mapping[str, Sequence[int]] | None = None,
    em: bool | str = False,
    rules: Iterable[ClassRule] = (),
    ignore: int | None = None,
    failed: dict[str, str] | None = None,
) -> Iterator[CaseScores]:
    """Measure pair after pair.

    Args:
        pairs: what to compare.
        labels: value by class name, background included.
        regions: values by name of classes that overlap, as of :func:`medunet.metrics.evaluate_case`.
        em: also the ISBI 2012 scores, see :func:`medunet.metrics.evaluate_case`.
        rules: by which the predictions are cleaned before they are compared; with regions one for each of them.
        ignore: value in the references of voxels that do not count.
        failed: gets why a case could not be measured, by name, so that the rest goes on; None raises it.

    Raises:
        GeometryError: prediction and reference lie on different grids.
        DataError: unreadable file or unexpected value.
    """
    rules, background = tuple(rules), next(iter(labels.values()), 0)
    for pair in pairs:
        try:
            found, wanted, spacing_mm = _compared(pair, labels)
            size = math.prod(spacing_mm)
            if rules and regions:
                written = [rule.value for rule in rules]
                found = clean_regions(found, by_region(rules), list(regions.values()), order=written, voxel_size=size)
            elif rules:
                found = clean_labels(found, by_value(rules), voxel_size=size, background=background)
            if ignore is not None:
                unknown = wanted == ignore
                found, wanted = (np.where(unknown, background, labels_) for labels_ in (found, wanted))
            scores = evaluate_case(
                found, wanted, spacing_mm=spacing_mm, labels=labels, regions=regions, em=em, name=pair.name
            )
        except (DataError, GeometryError) as error:
            if failed is None:
                raise
            failed[pair.name] = reason(error)
            logger.error("not measured: %s", error)
        else:
            yield scores


def reason(error: MedunetError) -> str:
    """Why a case failed, for a table: with the file's name, without its folders."""
    name = "" if error.file is None else f"{Path(error.file).name}: "
    return f"{name}{error.cause}"


def _compared(pair: Pair, labels: Mapping[str, int]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], tuple[float, ...]]:
    """Return both label maps, which have the same grid, and their spacing: in mm, or 1 for pictures."""
    pred, ref = read_pair(pair, labels)
    if not pred.record.is_on_grid_of(ref.record):
        raise GeometryError(
            "prediction and reference lie on different grids",
            file=pair.pred,
            received=f"{pred.record.geometry.shape} at {_rounded(pred.record.geometry.spacing_mm)} mm",
            expected=f"{ref.record.geometry.shape} at {_rounded(ref.record.geometry.spacing_mm)} mm",
            remedy="predict on the image that the reference was drawn on",
        )
    grid = ref.record.geometry
    spacing_mm = grid.spacing_mm if ref.record.is_placed else (1.0,) * len(grid.shape)  # distances in pixels
    return np.asarray(pred.image[0]), np.asarray(ref.image[0]), spacing_mm


def read_pair(pair: Pair, labels: Mapping[str, int]) -> tuple[Volume, Volume]:
    """Prediction and reference; a DICOM SEG or RTSTRUCT is laid on the grid of the other one, or of the image."""
    drawn = {path: is_structure_file(path) for path in (pair.pred, pair.ref)}
    volumes = {path: read_volume(path, spatial_dims=_plane(path)) for path in drawn if not drawn[path]}
    if volumes:
        grid = next(iter(volumes.values())).record.geometry
    elif pair.image is not None:
        grid = read_header(pair.image, spatial_dims=_plane(pair.image)).geometry
    else:
        raise DataError(
            "neither prediction nor reference has a grid of its own",
            file=pair.pred,
            remedy="predict with --format nii.gz",
        )
    for path in drawn:
        if path not in volumes:
            volumes[path] = read_label(path, reference=grid, labels=labels)
    return volumes[pair.pred], volumes[pair.ref]


def _plane(path: Path) -> int | None:
    """2 for a volume of a single slice: as an image in the plane its surface is its outline."""
    return 2 if read_header(path).is_single_slice else None


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)
