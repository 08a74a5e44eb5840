"""The worst, the median and the best case of a validation, as pictures and as a table."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from medunet.reports import ClassCodes, render_overlay

from .case_codes import CaseCodes

LEVEL = 1
"""Of zlib: label maps are mostly background, and speed counts."""


@dataclass(frozen=True)
class Picture:
    """A case to be drawn.

    Args:
        rank: 'worst', 'median' or 'best'.
        title: says case and Dice.
        image: `(C, *spatial)`, as the network sees it.
        pred: label map `(*spatial)`.
        ref: label map `(*spatial)`.
        labels: name -> value or values in them, background first; a label that is ignored is not among them.
    """

    rank: str
    title: str
    image: Any
    pred: np.ndarray
    ref: np.ndarray
    labels: Mapping[str, int | Sequence[int]]

    def render(self) -> bytes:
        """As PNG."""
        return render_overlay(self.image, self.pred, self.ref, labels=self.labels, title=self.title)


class ValidationCases:
    """Keeps the predictions of the newest validation, compressed, and says which of them to look at.

    Args:
        validator: MONAI's evaluator, whose data have a `name` and whose key metric has one value a case and class.
        class_names: all classes, background first.
        codes: what cases are called.
        regions: class indices of each class where they overlap; predictions are then one mask a class.
        keep: whether predictions are kept; else there is only the table.
    """

    def __init__(
        self,
        validator: Any,
        *,
        class_names: Sequence[str],
        codes: CaseCodes,
        regions: Sequence[Sequence[int]] = (),
        keep: bool = True,
    ) -> None:
        self.validator = validator
        self.class_names = tuple(class_names)
        self.codes = codes
        self.regions = tuple(tuple(region) for region in regions)
        self.keep = keep
        self._kept: list[tuple[str, tuple[int, ...], bytes]] = []

    def attach(self, validator: Engine) -> None:
        """Register with the validator."""
        validator.add_event_handler(Events.STARTED, self.started)
        validator.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)

    def started(self, engine: Any) -> None:
        """A new validation: forget the one before."""
        self._kept = []

    def iteration_completed(self, engine: Any) -> None:
        """Keep the label maps."""
        outputs, batch = engine.state.output, engine.state.batch  # MONAI's evaluator has taken both apart, case by case
        for item, source in zip(outputs, batch, strict=True):
            pred = np.asarray(torch.as_tensor(item["pred"]).detach().cpu())
            packed = b""
            if self.keep and pred.ndim > 2 and pred.shape[0] == (len(self.regions) or 1):
                indices = indices_of_masks(pred, self.regions) if self.regions else pred[0].astype(np.uint8)
                packed = zlib.compress(np.ascontiguousarray(indices).tobytes(), LEVEL)
            self._kept.append((str(source.get("name", "")), pred.shape[1:], packed))

    def dice(self) -> list[tuple[str, list[float]]]:
        """Code of each case of this process, and its Dice by foreground class; NaN where the class is not there."""
        state = self.validator.state
        details = getattr(state, "metric_details", {}).get(state.key_metric_name)
        if details is None or details.ndim != 2 or len(details) < len(self._kept):
            return []
        # gathered from all processes in the order of their ranks, so the first process's come first
        return [
            (self.codes[name], [float(value) for value in row])
            for (name, _, _), row in zip(self._kept, details.float().tolist(), strict=False)
        ]

    def table(self) -> str:
        """Dice of every case and class as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", *self.class_names[1:]])
        for case, row in self.dice():
            writer.writerow([case, *("" if np.isnan(value) else f"{value:.4f}" for value in row)])
        return text.getvalue()

    def chosen(self) -> list[Picture]:
        """The worst, median and best case by mean Dice of their classes; fewer where there are fewer."""
        scores = self.dice()
        means = [float(np.nanmean(row)) if np.isfinite(row).any() else np.nan for _, row in scores]
        order = [index for index in np.argsort(means) if self._kept[index][2] and np.isfinite(means[index])]
        if not order:
            return []
        dataset = self.validator.data_loader.dataset
        places = {str(item.get("name", "")): index for index, item in enumerate(dataset.data)}
        wanted = dict(zip(("worst", "best", "median"), (order[0], order[-1], order[len(order) // 2]), strict=True))
        pictures: list[Picture] = []
        drawn: set[int] = set()
        for rank, index in wanted.items():
            name, shape, packed = self._kept[index]
            if index in drawn or name not in places:
                continue
            drawn.add(index)
            item = dataset[places[name]]
            pred = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape)
            title = f"{rank}: {self.codes[name]}, Dice {means[index]:.3f}"
            pictures.append(Picture(rank, title, item["image"], *self._drawn(pred, np.asarray(item["label"])[0])))
        return pictures

    def _drawn(
        self, pred: np.ndarray, ref: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Mapping[str, int | Sequence[int]]]:
        """Both label maps, and their values by name."""
        background, *names = self.class_names
        if not self.regions:
            return pred, ref, {name: value for value, name in enumerate(self.class_names)}
        codes, members = ClassCodes(names), dict(zip(names, self.regions, strict=True))
        ref, pred = (codes.encode(found, members) for found in (ref, pred))
        return pred, ref, codes.labels(background)


def indices_of_masks(masks: np.ndarray, regions: Sequence[Sequence[int]]) -> np.ndarray:
    """A map of class indices that has these masks: what :class:`medunet.transforms.RegionMasksd` undoes.

    Args:
        masks: `(regions, *spatial)`, above 0 inside.
        regions: class indices of each region.

    Returns:
        `(*spatial)`, uint8; 0 where there is no region.

    Example:
        >>> indices_of_masks(np.array([[0, 1, 1], [0, 0, 1]]), [[1, 2], [2]]).tolist()
        [0, 1, 2]
    """
    found = np.zeros(masks.shape[1:], np.uint8)
    for index in sorted({index for region in regions for index in region}):
        same = [(mask > 0) == (index in region) for mask, region in zip(masks, regions, strict=True)]
        found[np.logical_and.reduce(same)] = index
    return found
