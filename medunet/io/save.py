"""The last transform of a bundle: predictions become files named after their inputs."""

import json
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medunet import __version__
from medunet.errors import ConfigError, DataError, GeometryError, MedunetError
from medunet.files import atomic_path
from medunet.geometry import Geometry
from medunet.metrics import measure_labels

from .dicom.deidentify import Pseudonyms, deidentify
from .dicom.references import SourcePlane, read_planes, save_dataset
from .dicom.rtstruct import make_rtstruct
from .dicom.seg import make_dicom_seg
from .dicom.sr import ENDING as SR_ENDING
from .dicom.sr import make_measurement_report
from .names import output_name
from .object_table import OBJECT_FILES, check_object_format, object_file, object_table
from .reader import PathLike
from .record import SourceFrame
from .segments import BACKGROUND, Segment, as_segments, object_segments
from .writer import label_dtype, result_suffix, write_volume

logger = logging.getLogger(__name__)

ResultFormat = Literal["auto", "nii.gz", "seg.nrrd", "dicom-seg", "rtstruct"]

RESULT_FORMATS: tuple[ResultFormat, ...] = get_args(ResultFormat)

_DICOM_FORMATS = {"dicom-seg": make_dicom_seg, "rtstruct": make_rtstruct}

MAX_SEGMENTS = 255  # objects that DICOM results list as segments, of which each is a row in a viewer
_ALGORITHM = {"name": "medunet", "version": __version__}

_Place = tuple[torch.Tensor, Mapping[str, Any]]  # affine and metadata of the image
_Choice = tuple[ResultFormat, tuple[SourcePlane, ...]]  # the format of a result, and the slices that DICOM refers to


class SavePredictiond(MapTransform):
    """Write label maps under their inputs' names, and class probabilities beside them.

    ``hippocampus_001.nii.gz`` becomes ``output_dir/hippocampus_001.nii.gz``, ``em_16.png`` ``em_16.png``. JPEG and BMP
    become PNG, because labels must not be blurred. A DICOM series becomes a DICOM SEG, or `.nii.gz` with a logged
    reason if it cannot. Everything else becomes `.nii.gz`. The file has the grid of the prediction, which must be the
    grid that the input was read on.

    If `structures` is set (label values by name), the item gets measurements of them, or of the objects, under
    `measurements`: of the intensities under `measured`, if it has them. Beside a DICOM SEG they become a DICOM SR.

    The item has the image under `image`, whose metadata have the file's name and the original grid; without an image,
    the prediction's own metadata are used. It may have the case's name under `name`. It gets the path of the file under
    ``<key>_path``, as a str. No name comes from a header.

    Args:
        keys: label maps ``(1, *spatial)`` with the values for the file, as after `DecodeLabelsd`.
        output_dir: folder for the files; created if needed.
        format: of the label maps; 'auto' follows the input as above. 'dicom-seg' and 'rtstruct' need a DICOM input.
        labels: value by name, for the formats with names; the value 0 and the name 'background' are not segments.
        label_colors: name to ``[red, green, blue]``, 0 to 255.
        label_codes: name to ``{"category": [value, scheme, meaning], "type": [...]}``, such as
            ``{"liver": {"type": ["10200004", "SCT", "Liver"]}}``; the default in a DICOM SEG is 'Tissue'.
        prob_key: key of probabilities ``(C, *spatial)`` to write as ``<name>_prob.nii.gz``, channels last, or for 2D
            images as ``<name>_prob.npy`` ``(C, x, y)``; None writes none.
        overwrite: whether existing files may be replaced.
        instances: the label maps number objects, and `labels` has their classes. They have at least 16 bits, and 32 for
            more than 65,535 objects; then `.tif` replaces `.png`. In DICOM each object is a segment; a result of more
            than `MAX_SEGMENTS` objects becomes `.nii.gz`.
        objects: formats of tables and outlines of the objects that the label map numbers: `csv`, `geojson`, `imagej`.
            They use the loaded image under `source`, the probability of the foreground under `foreground` and the class
            index by object number under `object_classes`, if the item has them.

    Raises:
        ConfigError: unknown format, colours or codes of unknown labels, or highdicom is missing for 'dicom-seg'.
        DataError: no file name, several channels, values that are not labels, or a result that exists.
        GeometryError: shape or affine differ from the input's.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        output_dir: PathLike,
        format: ResultFormat = "auto",
        labels: Mapping[str, int] | None = None,
        label_colors: Mapping[str, Sequence[int]] | None = None,
        label_codes: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
        prob_key: str | None = None,
        overwrite: bool = False,
        instances: bool = False,
        objects: Sequence[str] = (),
    ) -> None:
        super().__init__(keys)
        if format not in RESULT_FORMATS:
            raise ConfigError("unknown format of results", received=format, expected=", ".join(RESULT_FORMATS))
        as_segments(labels, colors=label_colors, codes=label_codes)  # rejects invalid colours and codes now
        self.output_dir = Path(output_dir)
        self.format: ResultFormat = format
        self.labels = None if labels is None else dict(labels)
        self.label_colors, self.label_codes = label_colors, label_codes
        self.prob_key, self.overwrite, self.instances = prob_key, overwrite, instances
        self.objects = tuple(objects)
        self.pseudonyms: Pseudonyms | None = None  # `Predictor` sets it to de-identify results
        self.structures: Mapping[str, Sequence[int]] | None = None  # `Predictor` sets it to measure results
        self._chosen: tuple[tuple[Any, ...], _Choice] | None = None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the files of one item, without batch axis."""
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key]
            meta = _source_meta(item, image)
            source = os.fspath(meta["filename_or_obj"])
            choice = self._choose(source, meta)
            affine = _checked_affine(image, meta, source)
            place = affine, meta
            labels = np.asarray(torch.as_tensor(image).detach().cpu())
            if labels.ndim not in (3, 4) or labels.shape[0] != 1:
                cause = "prediction is not a label map"
                raise DataError(cause, file=source, received=labels.shape, expected="(1, *spatial)")
            stem = self._stem(item, meta, key)
            path = self._new_file(stem + _ending(choice[0], source, labels.ndim - 1))
            if self.instances:
                path, choice = self._fit_objects(labels[0], stem, path, choice)
            self._write_objects(labels[0], item, stem, place)  # first: a case with a label map is done
            if self.structures is not None:
                item["measurements"] = self._measure(labels[0], item, stem, place)
            self._write(labels[0], path, choice, place, item.get("measurements", ()))
            item[f"{key}_path"] = str(path)
            logger.debug("written: %s", path)
            if not np.any(labels != (0 if self.instances else (self.labels or {}).get(BACKGROUND, 0))):
                what = "object" if self.instances else "class"
                logger.warning("%s: no %s was found, the label map is all background", stem, what)
            if self.prob_key is not None and self.prob_key in item:
                prob = torch.as_tensor(item[self.prob_key]).detach().cpu().float()
                target = self._new_file(_probability_name(stem, prob.ndim - 1))
                array = prob if prob.ndim == 3 else prob.movedim(0, -1)
                write_volume(array, target, affine=None if prob.ndim == 3 else affine, overwrite=self.overwrite)
                item[f"{self.prob_key}_path"] = str(target)
        return item

    def check(self, item: Mapping[Hashable, Any]) -> None:
        """Reject, before the network runs, results that could not be written after it.

        Args:
            item: as read, with the image and without the prediction.

        Raises:
            ConfigError: highdicom is missing for 'dicom-seg'.
            DataError: the result exists, or a DICOM format for another input.
            GeometryError: a DICOM format, and the image is not on the grid of its series.
        """
        for key in self.keys:
            meta = _source_meta(item, item.get(key))
            source = os.fspath(meta["filename_or_obj"])
            stem, spatial_dims = self._stem(item, meta, key), np.size(meta["spatial_shape"])
            self._new_file(stem + _ending(self._choose(source, meta)[0], source, spatial_dims))
            if self.prob_key is not None:
                self._new_file(_probability_name(stem, spatial_dims))
            for kind in self.objects:
                check_object_format(kind, spatial_dims)
                self._new_file(stem + OBJECT_FILES[kind])

    def _write_objects(
        self, labels: np.ndarray[Any, Any], item: Mapping[Hashable, Any], stem: str, place: _Place
    ) -> None:
        if not self.objects:
            return
        affine, meta = place
        grid = Geometry(affine.numpy(), labels.shape)
        table = object_table(
            labels,
            image=item.get("source"),
            foreground=item["foreground"][0] if "foreground" in item else None,
            spacing_mm=grid.spacing_mm if meta.get("is_placed", True) else None,
            classes=self._classes(item),
        )
        for kind in self.objects:
            with atomic_path(self._new_file(stem + OBJECT_FILES[kind]), overwrite=self.overwrite) as temporary:
                temporary.write_bytes(object_file(kind, labels, table))

    def _classes(self, item: Mapping[Hashable, Any]) -> str | dict[int, str]:
        """Return the class of all objects, or of each object by its number."""
        names = [name for name in self.labels or {} if name != BACKGROUND] or ["object"]
        indices = item.get("object_classes")
        return names[0] if indices is None else {number: names[index - 1] for number, index in enumerate(indices)}

    def _measure(
        self, labels: np.ndarray[Any, Any], item: Mapping[Hashable, Any], stem: str, place: _Place
    ) -> list[dict[str, Any]]:
        affine, meta = place
        objects, classes = None, self._classes(item)
        if self.instances:
            numbers = [number for number in np.unique(labels).tolist() if number]
            objects = {number: classes if isinstance(classes, str) else classes[number] for number in numbers}
        image = np.asarray(item["measured"]).reshape(-1, *labels.shape) if "measured" in item else None
        unit = "mm" if meta.get("is_placed", True) else "px"
        rows = measure_labels(labels, affine.numpy(), self.structures or {}, objects=objects, image=image, unit=unit)
        return [{"case": stem, **row} for row in rows]

    def _write(
        self,
        labels: np.ndarray[Any, Any],
        path: Path,
        choice: _Choice,
        place: _Place,
        measurements: Sequence[Mapping[str, Any]],
    ) -> None:
        affine, meta = place
        kind, planes = choice
        planar = not path.name.endswith((".nii", ".nii.gz", ".seg.nrrd", ".dcm"))
        whole = labels.astype(label_dtype(labels, path, bits=16 if self.instances else 8))
        segments = self._segments(whole) if kind in _DICOM_FORMATS or kind == "seg.nrrd" else ()
        if meta.get("single_slice") and not planar:
            whole = whole[..., None]  # as in the input's file
        if kind not in _DICOM_FORMATS:
            named = segments or (None if self.instances else self.labels)
            write_volume(whole, path, affine=affine, labels=named, overwrite=self.overwrite)
            return
        whole = whole.reshape((*whole.shape, 1)[:3])  # a 2D image is a volume of one slice
        dataset = _DICOM_FORMATS[kind](whole, segments, planes, algorithm=_ALGORITHM)
        files = {path: dataset}
        if measurements and kind == "dicom-seg":
            report = make_measurement_report(measurements, dataset, planes[0].header, algorithm=_ALGORITHM)
            files = {path.with_name(path.name.removesuffix(".dcm") + SR_ENDING): report, **files}
        for file, content in files.items():
            if self.pseudonyms is not None:
                deidentify(content, self.pseudonyms)
            with atomic_path(file, overwrite=self.overwrite) as temporary:
                save_dataset(content, temporary, implicit=kind == "rtstruct")  # contours have no limit of points

    def _segments(self, values: np.ndarray[Any, Any]) -> tuple[Segment, ...]:
        """Return a segment per class, or per object, named after its class and number."""
        if not self.instances:
            return as_segments(self.labels, values=values, colors=self.label_colors, codes=self.label_codes)
        return object_segments(values, self.labels, codes=self.label_codes)

    def _fit_objects(
        self, numbers: np.ndarray[Any, Any], stem: str, path: Path, choice: _Choice
    ) -> tuple[Path, _Choice]:
        """Return another file and format if there are more objects than the chosen format can have."""
        if choice[0] in _DICOM_FORMATS and (count := np.unique(numbers[numbers > 0]).size) > MAX_SEGMENTS:
            if self.format != "auto":
                cause, remedy = f"too many objects for the segments of a {choice[0]} result", "write .nii.gz"
                raise DataError(cause, file=path, received=count, expected=f"at most {MAX_SEGMENTS}", remedy=remedy)
            path, choice = self._new_file(f"{stem}.nii.gz"), ("nii.gz", ())
            logger.warning("%s: written as .nii.gz, because %d objects are too many for a DICOM SEG", path.name, count)
        elif path.suffix == ".png" and numbers.max(initial=0) > np.iinfo(np.uint16).max:
            path = self._new_file(f"{stem}.tif")
            logger.warning("%s: written as TIFF, because PNG numbers at most 65535 objects", path.name)
        return path, choice

    def _choose(self, source: str, meta: Mapping[str, Any]) -> _Choice:
        """Return the format, and for DICOM the slices of the source; cached between `check` and writing."""
        key = (source, meta.get("dicom_frames"))
        if self._chosen is None or self._chosen[0] != key:
            self._chosen = key, self._decide(source, meta)
        return self._chosen[1]

    def _decide(self, source: str, meta: Mapping[str, Any]) -> _Choice:
        is_dicom = "dicom_frames" in meta
        if self.format in _DICOM_FORMATS:
            if not is_dicom:
                raise DataError(f"{self.format} needs a DICOM series as input", file=source)
            return self.format, self._verified_planes(self.format, source, meta)
        if self.format != "auto" or not is_dicom:
            return self.format, ()
        try:
            return "dicom-seg", self._verified_planes("dicom-seg", source, meta)
        except (ConfigError, DataError, GeometryError) as error:
            hidden = self.pseudonyms
            name, reason = (source, error) if hidden is None else (hidden.code(source), hidden.hide(error, source))
            logger.warning("%s: written as .nii.gz, not as DICOM SEG: %s", name, reason)
            return "nii.gz", ()

    def _verified_planes(self, kind: ResultFormat, source: str, meta: Mapping[str, Any]) -> tuple[SourcePlane, ...]:
        """Return the slices of the source, after a trial that writes an empty result for the first two of them."""
        frames = [SourceFrame(Path(file), number) for file, number in json.loads(meta["dicom_frames"])]
        if not frames:
            raise DataError("the series was resampled, so no slice of the result is a slice of the series", file=source)
        geometry = _source_grid(meta)
        segments = as_segments(self.labels or {"label": 1}, colors=self.label_colors, codes=self.label_codes)
        try:
            planes = read_planes(frames, Geometry(geometry.affine, (*geometry.shape, 1)[:3]))
            few = planes[:2]
            empty = np.zeros((*geometry.shape[:2], len(few)), np.uint8)
            trial = _DICOM_FORMATS[kind](empty, segments, few, algorithm=_ALGORITHM)
            save_dataset(trial, BytesIO(), implicit=kind == "rtstruct")
        except MedunetError as error:
            raise error.at(error.file or frames[0].file) from error
        except Exception as error:  # pydicom raises many types for damaged headers, and quotes them
            cause = f"the header cannot be used for a {kind} result: {type(error).__name__}"
            raise DataError(cause, file=frames[0].file) from error
        return planes

    def _stem(self, item: Mapping[Hashable, Any], meta: Mapping[str, Any], key: Hashable) -> str:
        source = os.fspath(meta["filename_or_obj"])
        code = None if self.pseudonyms is None else self.pseudonyms.code(source)
        stem = code or str(item.get("name") or meta.get("name") or output_name(source))
        return f"{stem}_{key}" if len(self.keys) > 1 else stem

    def _new_file(self, name: str) -> Path:
        path = self.output_dir / name
        if path.exists() and not self.overwrite:
            remedy = "choose another folder, or replace it: --force (in a config `overwrite: true`)"
            raise DataError("result exists already", file=path, remedy=remedy)
        return path


def _checked_affine(image: Any, meta: Mapping[str, Any], source: str) -> torch.Tensor:
    original = meta.get("original_affine")
    affine = torch.as_tensor(image.affine if isinstance(image, MetaTensor) else original).to(torch.float64).cpu()
    if affine.shape[-1] == 3:  # MONAI's readers keep 3x3 for 2D images; files need 4x4
        planar, affine = affine, torch.eye(4, dtype=torch.float64)
        affine[:2, :2], affine[:2, 3] = planar[:2, :2], planar[:2, 2]
    if original is None or meta.get("spatial_shape") is None:
        return affine
    written, expected = Geometry(affine.numpy(), tuple(image.shape[1:])), _source_grid(meta)
    if not written.is_close(expected):
        cause = "prediction does not lie on the input's grid"
        raise GeometryError(cause, file=source, received=written, expected=expected)
    return affine


def _source_meta(item: Mapping[Hashable, Any], pred: Any) -> Mapping[str, Any]:
    for candidate in (item.get("image"), pred):
        if isinstance(candidate, MetaTensor) and candidate.meta.get("filename_or_obj"):
            meta: Mapping[str, Any] = candidate.meta
            return meta
    expected = "metadata of 'image' with filename_or_obj, as LoadImaged(reader='medunet.io.MedunetReader') has"
    raise DataError("prediction has no file name in its metadata", expected=expected)


def _source_grid(meta: Mapping[str, Any]) -> Geometry:
    shape = tuple(int(n) for n in np.asarray(meta["spatial_shape"]).ravel())
    return Geometry(np.asarray(meta["original_affine"], dtype=np.float64), shape)


def _ending(kind: ResultFormat, source: str, spatial_dims: int) -> str:
    if kind in _DICOM_FORMATS:
        return ".dcm"
    return result_suffix(source, spatial_dims=spatial_dims) if kind == "auto" else f".{kind}"


def _probability_name(stem: str, spatial_dims: int) -> str:
    return f"{stem}_prob{'.npy' if spatial_dims == 2 else '.nii.gz'}"
