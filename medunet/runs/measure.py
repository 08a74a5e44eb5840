"""Measurements of label maps on the intensities of their images, and growth since an earlier time point."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medunet import __version__
from medunet.config import read_json, strict_json
from medunet.datasets import refuse_instances
from medunet.datasets.layouts.instances import are_instances
from medunet.datasets.layouts.manifest import MANIFEST, ParsedLabels, labels_of, load_manifest
from medunet.datasets.layouts.pairing import MAX_CHANNELS, image_files, stem
from medunet.errors import ConfigError, DataError, GeometryError
from medunet.files import atomic_path, claim, require_new, write_atomically
from medunet.io import is_dicom_folder, is_structure_file, label_names, read_label, read_volume, split_suffix
from medunet.io.dicom.references import SEG_CLASSES, read_dataset, read_planes, save_dataset, storage_class
from medunet.io.dicom.sr import ENDING, make_measurement_report
from medunet.io.object_table import OBJECT_FILES
from medunet.io.objects import classes_of_objects, object_numbers
from medunet.io.reader import PathLike
from medunet.metrics import growth, measure_labels
from medunet.metrics.evaluation import BACKGROUND
from medunet.metrics.tables import rows_text
from medunet.prediction.evaluation import label_maps, reason

logger = logging.getLogger(__name__)

TABLE = "measurements"  # name of the CSV and JSON file with a row per structure
Rows = list[dict[str, Any]]


def measure(
    masks: PathLike,
    images: PathLike | None = None,
    output: PathLike | None = None,
    *,
    labels: Mapping[str, int] | None = None,
    instances: bool = False,
    compare: PathLike | None = None,
    force: bool = True,
    **reading: Any,
) -> dict[str, Any]:
    """Measure volume, surface, diameters, intensities and position of each structure or object in label maps.

    Args:
        masks: a label map or a folder of them, in any format of `medunet.io.read_label`.
        images: the image of all masks, or a folder with their images, which have the names of the masks; None measures
            sizes only.
        output: gets `measurements.csv` and `.json`, and a DICOM SR for each DICOM SEG; None uses a folder beside the
            masks, unless they are in a data set.
        labels: value by name; None uses the names in `dataset.json` beside the masks, or in the files.
        instances: the label maps number objects; also if the `dataset.json` beside the masks declares it.
        compare: measurements of an earlier time point, a `measurements.json` or its folder; adds `growth.csv`.
        force: replace earlier measurements in `output`, which is an error otherwise.
        **reading: fields of :class:`medunet.io.ReadOptions` for the images.

    Returns:
        `folder`, `measurements` (a row per structure), `growth` if `compare` is given, and `failed_cases`.

    Raises:
        DataError: no case could be measured, an invalid `compare`, or another process uses the output folder.
        ConfigError: `labels` or `compare` for objects.
    """
    masks, images = Path(masks), None if images is None else Path(images)
    manifest = masks.resolve().parent / MANIFEST
    content = load_manifest(manifest) if manifest.is_file() else {}
    instances = are_instances(content, manifest, instances=instances)
    if instances and (labels is not None or compare is not None):
        raise ConfigError("objects have neither names nor a partner in another time point", received="labels, compare")
    earlier = None if compare is None else read_measurements(Path(compare))
    parsed = labels_of(content, manifest) if labels is None else ParsedLabels({"": 0, **labels})
    if output is None and manifest.is_file():
        raise ConfigError("masks in a data set need an output", file=masks, remedy="pass --output DIR")
    output = Path(output) if output else masks.with_name(f"{split_suffix(masks.resolve().name)[0]}_{TABLE}")
    require_new(output / f"{TABLE}.json", force=force)
    rows: Rows = []
    failed: dict[str, str] = {}
    with claim(output):
        for name, mask in label_maps(masks).items():
            try:
                found = _images_of(name, images)
                rows += _measure(name, mask, found, parsed, output=output, instances=instances, reading=reading)
            except (DataError, GeometryError) as error:
                failed[name] = reason(error)
                logger.error("not measured: %s", error)
        if not rows:
            raise DataError("no case could be measured", file=masks, received="; ".join(failed.values()) or "no mask")
        result: dict[str, Any] = {"measurements": rows, "failed_cases": failed}
        if earlier is not None:
            result["growth"] = _grown(earlier, rows)
        write_measurements(output, **result)
    return {"folder": str(output), **result}


def write_measurements(folder: Path, measurements: Rows, **more: Any) -> None:
    """Write rows as CSV and JSON, and the growth if there is one."""
    write_atomically(folder / f"{TABLE}.csv", rows_text(measurements))
    if "growth" in more:
        write_atomically(folder / "growth.csv", rows_text(more["growth"]))
    write_atomically(folder / f"{TABLE}.json", strict_json({"measurements": measurements, **more}))


def mean_values(rows: Rows) -> dict[str, float]:
    """Return the mean of each measurement over cases, by name and structure, such as `volume_mm3_liver`."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for key in row.keys() - {"case", "structure", "object", "axial_slice", *"xyz"}:
            found.setdefault(f"{key}_{row['structure']}", []).append(row[key])
    return {key: float(np.mean(values)) for key, values in sorted(found.items())}


def add_measurements(folder: Path, rows: Rows) -> None:
    """Write rows beside predictions; those of cases that were measured before, and not now, are kept."""
    cases = {row["case"] for row in rows}
    earlier = read_measurements(folder) if (folder / f"{TABLE}.json").is_file() else []
    write_measurements(folder, [*(row for row in earlier if row["case"] not in cases), *rows])


def read_measurements(path: Path) -> Rows:
    """Return the rows of a `measurements.json`, or of the one in a folder."""
    file = path / f"{TABLE}.json" if path.is_dir() else path
    rows = read_json(file).get("measurements")
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"case", "structure"} <= set(row) for row in rows
    ):
        raise DataError("not a table of measurements", file=file, expected=f"{TABLE}.json of medunet measure")
    return rows


def _grown(earlier: Rows, rows: Rows) -> Rows:
    """Return the growth of each structure in both time points; a single case needs no equal names."""
    is_single = len({row["case"] for row in earlier}) == len({row["case"] for row in rows}) == 1
    before = {(is_single or row["case"], row["structure"]): row for row in earlier}
    pairs = [(before.get((is_single or row["case"], row["structure"])), row) for row in rows]
    grown = [{"case": row["case"], "structure": row["structure"], **growth(one, row)} for one, row in pairs if one]
    if not grown:
        raise DataError("the time points have no case and structure in common", received=rows[0]["case"])
    return grown


def _images_of(name: str, images: Path | None) -> list[Path]:
    """Return the image of a mask, or its channels `name_0000`, `name_0001`, ...; empty without images."""
    if images is None or images.is_file() or is_dicom_folder(images):
        return [] if images is None else [images]
    files = {stem(path): path for path in image_files(images)}
    names = [name] if name in files else [f"{name}_{channel:04d}" for channel in range(MAX_CHANNELS)]
    if not (found := [files[one] for one in names if one in files]):
        raise DataError("the mask has no image of its name", file=images / name)
    return found


def _measure(
    name: str, mask: Path, images: Sequence[Path], parsed: ParsedLabels, *, output: Path, instances: bool, reading: Any
) -> Rows:
    """Measure a mask; write a DICOM SR if it is a DICOM SEG and its image a DICOM series."""
    if not images and is_structure_file(mask):
        raise DataError("the mask has no grid of its own", file=mask, remedy="pass --images")
    image = read_volume(images, **reading) if images else None
    if image is None:
        volume = read_volume(mask)
    else:
        grid = image.record.geometry if image.record.is_placed else images[0]
        volume = read_label(mask, reference=grid, labels=parsed.labels or None)
    for warning in volume.record.warnings:  # such as segments that overlap
        logger.warning("%s: %s", mask, warning)
    numbers = object_numbers(volume.image.numpy(), mask)
    values, objects = [value for value in np.unique(numbers).tolist() if value], None
    names = parsed.labels or (None if instances else label_names(mask)) or {}
    if instances:
        _, *kinds = names or ("background", "object")
        classes = dict.fromkeys(values, 1)
        if len(kinds) > 1:
            classes = classes_of_objects(numbers, mask.with_name(name + OBJECT_FILES["csv"]), names, case=name)
        objects = {number: kinds[index - 1] for number, index in classes.items()}
    elif not names:
        refuse_instances({mask: values})
        names = {f"label_{value}": value for value in values}
    elif unknown := sorted(set(values) - set(names.values())):
        named = {name: value for name, value in names.items() if name}
        raise DataError("the mask has values without a name", file=mask, received=unknown, expected=named)
    structures = {region.name: region.values for region in parsed.regions}
    record = volume.record if image is None else image.record
    measured = measure_labels(
        numbers[0],
        record.geometry.affine,
        structures or {label: (value,) for label, value in names.items() if value and label != BACKGROUND},
        objects=objects,
        image=None if image is None else image.image.numpy(),
        unit="mm" if record.is_placed else "px",
    )
    rows = [{"case": name, **row} for row in measured]
    if record.frames and storage_class(mask) in SEG_CLASSES:
        header, seg = read_planes(record.frames, record.geometry)[0].header, read_dataset(mask, stop_before_pixels=True)
        report = make_measurement_report(rows, seg, header, {"name": "medunet", "version": __version__})
        with atomic_path(output / f"{name}{ENDING}", overwrite=True) as temporary:
            save_dataset(report, temporary)
    return rows
