"""The options of a prediction."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medunet.errors import ConfigError
from medunet.io import Pseudonyms, ReadOptions, ResultFormat
from medunet.io.reader import PathLike

TTA: dict[str, dict[str, Any]] = {
    "none": {"mirror_axes": [], "view_scales": []},
    "mirror": {"mirror_axes": "@tta_axes", "view_scales": []},
    "views": {"mirror_axes": "@tta_axes", "view_scales": [1.0, 1.15, 1.3]},
}
"""Values by config id of each kind of test-time augmentation; the scales are those of plans for thin structures."""


@dataclass(frozen=True)
class PredictOptions:
    """Options of reading, predicting and writing images.

    Args:
        output_dir: folder for label maps; None if nothing is written.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        probabilities: also write class probabilities.
        tta: test-time augmentation, the mean of the class probabilities over views of the image. `none`: no other view;
            `mirror`: every combination of flips of the axes that training mirrored, at most 8 passes in 3D and 4 in
            2D; `views`: also of the image enlarged by 1.15 and 1.3, the work of 38 and 16. None: as the bundle says.
        result_format: format of the label maps, one of ``medunet.io.RESULT_FORMATS``.
        objects: formats of outlines of objects beside their table, ``geojson`` or ``imagej``; for bundles of instances.
        measure: measure the structures of the results; a DICOM SEG gets a DICOM SR with the measurements.
        review: estimate the Dice of each result, and compare it with the training cases; see :class:`Review`.
        overwrite: replace existing results; otherwise such a case fails before the network runs.
        skip_done: skip cases whose results exist, without reading them.
        read: how to read images that can be interpreted in more than one way, such as ``ReadOptions(phase=1)``.
        overrides: values by config id, also for the members of an ensemble.
        ensemble: further bundles, such as other folds, with the same preprocessing, labels and sizes; the class
            probabilities of all networks are averaged.
        benchmark: time the forward passes separately from the inferer around them.
        trust: approve bundles that could run their own code.
        isolated: decode images in a child process; None follows the environment variable.
        digests: compute the SHA-256 of inputs and results, and read the UIDs of DICOM series.
        pseudonyms: names that replace those of cases in files, DICOM results, errors and logs.

    Raises:
        ConfigError: `overwrite` and `skip_done` exclude each other, or an unknown `tta`.
    """

    output_dir: PathLike | None = None
    device: str = "auto"
    probabilities: bool = False
    tta: str | None = None
    result_format: ResultFormat = "auto"
    objects: Sequence[str] = ()
    measure: bool = False
    review: bool = False
    overwrite: bool = False
    skip_done: bool = False
    read: ReadOptions | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    ensemble: Sequence[PathLike] = ()
    benchmark: bool = False
    trust: bool = False
    isolated: bool | None = None
    digests: bool = False
    pseudonyms: Pseudonyms | None = None

    def __post_init__(self) -> None:
        if self.overwrite and self.skip_done:
            raise ConfigError("overwrite and skip_done exclude each other", received="both")
        if self.tta not in (None, *TTA):
            raise ConfigError("unknown tta", received=self.tta, expected=", ".join(TTA))

    @property
    def changes(self) -> dict[str, Any]:
        """What the user changes, by config id: reading options and overrides."""
        return {**(self.read.chosen if self.read else {}), **self.overrides}

    @property
    def config_values(self) -> dict[str, Any]:
        """Values by config id that follow from the other options."""
        return {
            **({} if self.tta is None else TTA[self.tta]),
            **({} if self.output_dir is None else {"prediction_dir": os.fspath(self.output_dir)}),
            "save_probabilities": self.probabilities,
            "result_format": self.result_format,
            **({"object_formats": ["csv", *self.objects]} if self.objects else {}),
            # an interrupted run may have written one of the two files of a case, which is then not done
            "overwrite": self.overwrite or self.skip_done,
        }
