"""The worst, the median and the best case of a validation, as pictures and as a table."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from medunet.reports import render_overlay

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
        pred: class indices `(*spatial)`.
        ref: class indices `(*spatial)`.
    """

    rank: str
    title: str
    image: Any
    pred: np.ndarray
    ref: Any

    def render(self, class_names: Sequence[str]) -> bytes:
        """As PNG."""
        labels = {name: index for index, name in enumerate(class_names)}
        # a label that is ignored has no contour
        return render_overlay(self.image, self.pred, self.ref, labels=labels, title=self.title)


class ValidationCases:
    """Keeps the predictions of the newest validation, compressed, and says which of them to look at.

    Args:
        validator: MONAI's evaluator, whose data have a `name` and whose key metric has one value a case and class.
        class_names: all classes, background first.
        codes: what cases are called.
        keep: whether predictions are kept; else there is only the table.
    """

    def __init__(self, validator: Any, *, class_names: Sequence[str], codes: CaseCodes, keep: bool = True) -> None:
        self.validator = validator
        self.class_names = tuple(class_names)
        self.codes = codes
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
            if self.keep and pred.ndim > 2 and pred.shape[0] == 1:
                packed = zlib.compress(np.ascontiguousarray(pred[0].astype(np.uint8)).tobytes(), LEVEL)
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
            pictures.append(Picture(rank, title, item["image"], pred, np.asarray(item["label"])[0]))
        return pictures
