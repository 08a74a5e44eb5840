"""Label maps of predictions: write them, describe them, and compare them with annotators."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor

from medunet.errors import ConfigError
from medunet.io import read_label, read_volume, split_suffix, write_volume
from medunet.io.segments import Segment, object_segments
from medunet.metrics import count_objects, dice, object_scores
from medunet.prediction import Predictor
from medunet.prediction.review import Reviewer

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha")
PICTURE_SUFFIXES = (".png", ".tif", ".tiff")


def choose_suffix(wanted: str | None, source: Path, *, spatial_dims: int) -> str:
    """Choose the file suffix of a result: the client's `result_extension`, else the image's if it can store labels.

    Examples:
        >>> choose_suffix(None, Path("ct.nii.gz"), spatial_dims=3), choose_suffix("nrrd", Path("a.nii"), spatial_dims=3)
        ('.nii.gz', '.nrrd')
        >>> choose_suffix(None, Path("a.jpg"), spatial_dims=2), choose_suffix(".nrrd", Path("a.png"), spatial_dims=2)
        ('.png', '.png')
    """
    known = VOLUME_SUFFIXES if spatial_dims == 3 else PICTURE_SUFFIXES
    suffix = f".{wanted.lower().lstrip('.')}" if wanted else split_suffix(source.name)[1].lower()
    if suffix in known:
        return suffix
    if not wanted or (spatial_dims == 2 and suffix in VOLUME_SUFFIXES):
        return known[0]  # viewers of volumes ask for their own format even of pictures
    raise ConfigError("unknown result_extension", received=wanted, expected=", ".join(known))


def write_result(
    labels: MetaTensor,
    folder: Path,
    suffix: str,
    *,
    segments: Sequence[Segment],
    dtype: str | None = None,
    instances: bool = False,
) -> Path:
    """Write a label map `(1, *spatial)` to a new file; by default in the smallest type that all programs read.

    With `instances` the map numbers objects of the classes `segments`; a `.seg.nrrd` gets a segment per object.
    """
    voxels = np.asarray(labels.as_tensor().cpu())[0]
    if instances:
        names = {segment.name: segment.value for segment in segments}
        segments = object_segments(voxels, names, codes=None) if suffix == ".seg.nrrd" else ()
        dtype = dtype or ("uint16" if voxels.max(initial=0) < 1 << 16 else "int32")
    largest = max([int(voxels.max(initial=0)), *(segment.value for segment in segments)])
    try:
        kind = np.dtype(dtype or ("uint8" if largest < 256 else "uint16" if largest < 1 << 16 else "int32"))
    except TypeError as error:
        raise ConfigError("unknown result_dtype", received=dtype, expected="uint8, uint16, int32, ...") from error
    path = folder / f"{uuid.uuid4().hex}{suffix}"
    return write_volume(voxels, path, affine=labels.affine.cpu(), dtype=kind, labels=segments)


def describe_result(
    labels: MetaTensor, segments: Sequence[Segment], classes: npt.NDArray[np.integer] | None = None
) -> dict[str, Any]:
    """Return values, colours (RGB, 0 to 255) and sizes (`volume_ml`, in 2D `area_mm2`) of the labels by name.

    `classes` has the class of each object number, if the map numbers objects; then `objects` has their number by class.
    """
    voxels, affine = np.asarray(labels.as_tensor().cpu())[0], np.asarray(labels.affine.cpu())
    length = 1 + max((segment.value for segment in segments), default=0)
    counts = np.bincount((voxels if classes is None else classes[voxels]).ravel(), minlength=length)
    numbers = {} if classes is None else {"objects": np.bincount(classes, minlength=length)}
    key, unit = ("volume_ml", 1000) if voxels.ndim == 3 else ("area_mm2", 1)
    voxel = abs(float(np.linalg.det(affine[: voxels.ndim, : voxels.ndim]))) / unit
    return {
        "label_names": {segment.name: segment.value for segment in segments},
        "label_colors": {segment.name: list(segment.color) for segment in segments},
        key: {segment.name: round(int(counts[segment.value]) * voxel, 4) for segment in segments},
        **{name: {one.name: int(count[one.value]) for one in segments} for name, count in numbers.items()},
    }


def score_labels(
    predicted: Path, reference: Path, labels: Mapping[str, int] | None, *, image: Path
) -> dict[str, float]:
    """Return Dice by label name of two label maps on an image's grid; NaN for a label that neither map has.

    Without `labels` the maps number objects, and the score is their mean average precision.
    """
    grid = read_volume(image).record.geometry
    one, other = (read_label(path, reference=grid, labels=labels).image for path in (predicted, reference))
    if labels is None:
        return {"object": object_scores(count_objects(one, other))["mean_ap"]}
    return {name: dice(one == value, other == value) for name, value in labels.items() if value}


def labels_agree(tables: Iterable[Mapping[str, int]]) -> bool:
    """Return whether tables of labels agree: no name has two values, and no value has two names.

    Examples:
        >>> labels_agree([{"liver": 1, "spleen": 2}, {"cell": 255}]), labels_agree([{"liver": 1}, {"liver": 5}])
        (True, False)
    """
    pairs = {pair for labels in tables for pair in labels.items()}
    return len(pairs) == len({name for name, _ in pairs}) == len({value for _, value in pairs})


def uncertainty(predictor: Predictor, source: Path) -> float:
    """Return one minus the expected Dice of `medunet predict --review`, or minus the agreement without calibration."""
    predictor.reviewer = Reviewer(predictor.bundle, predictor.structures)
    try:
        score: float = predictor.decide(source)["review"].score
    finally:
        predictor.reviewer = None  # other requests need no views
    return 1.0 - score
