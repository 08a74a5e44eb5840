"""The worst, the median and the best case of a validation, as pictures and as a table."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from ignite.engine import Events

from medunet.metrics.tables import rows_text
from medunet.reports import ClassCodes, render_objects, render_overlay
from medunet.training import OBJECT_METRICS

from .anonymous import CaseCodes


@dataclass(eq=False)
class ValidationCases:
    """The compressed predictions of the newest validation; selects cases to look at.

    The data of `validator` have a `name`, and its key metric has one value per case and class. `class_names` has all
    classes, background first. If classes overlap, `regions` has the class indices of each one. Objects, which the data
    have under `objects` and `numbers`, are ranked by their mean average precision. Without `pictures` there is only the
    table.
    """

    validator: Any
    _: KW_ONLY
    class_names: Sequence[str]
    codes: CaseCodes
    regions: Sequence[Sequence[int]]
    pictures: bool

    def __post_init__(self) -> None:
        self._cases: list[tuple[str, tuple[int, ...], bytes]] = []  # name, shape, prediction
        self._objects = False
        self.validator.add_event_handler(Events.STARTED, self._cases.clear)
        self.validator.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)

    def iteration_completed(self, engine: Any) -> None:
        """Keep the label maps of a batch, which MONAI's evaluator has split into cases."""
        for item, source in zip(engine.state.output, engine.state.batch, strict=True):
            self._objects = "objects" in item
            pred = np.asarray(torch.as_tensor(item.get("objects", item["pred"])).detach().cpu())
            packed = b""
            if self.pictures and pred.ndim > 2 and pred.shape[0] == (len(self.regions) or 1):
                indices = indices_of_masks(pred, self.regions) if self.regions else pred[0].astype(self._dtype)
                packed = zlib.compress(np.ascontiguousarray(indices).tobytes(), 1)
            self._cases.append((str(source.get("name", "")), pred.shape[1:], packed))

    @property
    def _dtype(self) -> type[np.generic]:
        return np.int32 if self._objects else np.uint8

    def scores(self) -> list[tuple[str, list[float]]]:
        """Return the code of each case in this process and its Dice per foreground class; NaN if absent."""
        state = self.validator.state
        name = OBJECT_METRICS[0] if self._objects else state.key_metric_name
        details = getattr(state, "metric_details", {}).get(name)
        if details is None or details.ndim != 2 or len(details) < len(self._cases):
            return []
        # gathered from all processes in the order of their ranks, so the first process's come first
        rows = zip(self._cases, details.float().tolist(), strict=False)
        return [(self.codes[name], row) for (name, _, _), row in rows]

    def table(self) -> str:
        """Return the Dice of every case and class as CSV, or the mean average precision of its objects."""
        names = ["case", *(["mean_ap"] if self._objects else self.class_names[1:])]
        rows = ([case, *("" if np.isnan(value) else f"{value:.4f}" for value in row)] for case, row in self.scores())
        return rows_text([dict(zip(names, row, strict=True)) for row in rows])

    def selected(self) -> dict[str, Callable[[], bytes]]:
        """Return functions that draw the worst, median and best case as PNG, or all if there are fewer."""
        scores, what = self.scores(), "mean AP" if self._objects else "Dice"
        means = [float(np.nanmean(row)) if np.isfinite(row).any() else np.nan for _, row in scores]
        order = [index for index in np.argsort(means) if self._cases[index][2] and np.isfinite(means[index])]
        if not order:
            return {}
        dataset = self.validator.data_loader.dataset
        positions = {str(item.get("name", "")): index for index, item in enumerate(dataset.data)}
        ranks: dict[int, str] = {}
        for rank, index in (("worst", order[0]), ("best", order[-1]), ("median", order[len(order) // 2])):
            ranks.setdefault(index, rank)
        return {
            rank: self._drawing(
                index, dataset[positions[name]], f"{rank}: {self.codes[name]}, {what} {means[index]:.3f}"
            )
            for index, rank in ranks.items()
            if (name := self._cases[index][0]) in positions
        }

    def _drawing(self, index: int, item: Mapping[str, Any], title: str) -> Callable[[], bytes]:
        _, shape, packed = self._cases[index]
        pred = np.frombuffer(zlib.decompress(packed), self._dtype).reshape(shape)
        if self._objects:
            return partial(render_objects, item["image"], pred, np.asarray(item["numbers"])[0], title=title)
        ref = np.asarray(item["label"])[0]
        labels: Mapping[str, int | Sequence[int]] = {name: value for value, name in enumerate(self.class_names)}
        if self.regions:
            background, *names = self.class_names
            codes, members = ClassCodes(names), dict(zip(names, self.regions, strict=True))
            ref, pred = (codes.encode(array, members) for array in (ref, pred))
            labels = codes.labels(background)
        return partial(render_overlay, item["image"], pred, ref, labels=labels, title=title)


def indices_of_masks(masks: np.ndarray, regions: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the class indices `(*spatial)` of masks `(regions, *spatial)`: the inverse of `RegionMasksd`.

    Examples:
        >>> indices_of_masks(np.array([[0, 1, 1], [0, 0, 1]]), [[1, 2], [2]]).tolist()
        [0, 1, 2]
    """
    indices = np.zeros(masks.shape[1:], np.uint8)
    for index in sorted({index for region in regions for index in region}):
        same = [(mask > 0) == (index in region) for mask, region in zip(masks, regions, strict=True)]
        indices[np.logical_and.reduce(same)] = index
    return indices
