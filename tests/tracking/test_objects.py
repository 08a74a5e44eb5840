"""Objects in MLflow: their scores, and pictures in which numbers above 255 stay apart."""

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image, ImageColor

from medunet.reports import OBJECT_COLOURS
from medunet.tracking.anonymous import CaseCodes
from medunet.tracking.pictures import ValidationCases
from medunet.training import OBJECT_METRICS, ObjectScores


def test_objects_are_scored_and_drawn_with_all_their_numbers() -> None:
    numbers = np.kron(np.arange(289, dtype=np.int32).reshape(17, 17), np.ones((6, 6), np.int32))
    numbers[3::6] = numbers[:, 3::6] = 0  # 288 objects of four parts
    merged = np.where(numbers == 32, 288, numbers)  # equal in 8 bits
    items = [
        {"name": name, "image": torch.ones(1, 102, 102), "numbers": torch.from_numpy(numbers)[None]} for name in "ab"
    ]
    outputs = [
        {"pred": torch.from_numpy(found > 0)[None], "objects": torch.from_numpy(found)[None]}
        for found in (merged, numbers)
    ]
    validator = Engine(lambda engine, batch: outputs)
    validator.state.metric_details = {}
    validator.data_loader = SimpleNamespace(dataset=_Data(items))
    ObjectScores().attach(validator)
    options: dict[str, Any] = {"codes": CaseCodes("ab"), "regions": (), "pictures": True}
    cases = ValidationCases(validator, class_names=["background", "cell"], **options)
    validator.run([items])

    scores = validator.state.metrics
    assert set(OBJECT_METRICS) <= scores.keys()
    assert scores["val_ap_50"] == pytest.approx(575 / 576)  # the merged object has one partner at exactly 0.5
    assert scores["val_pq"] == pytest.approx(574 / 575.5)  # and none above
    header, worst, best = cases.table().splitlines()
    assert header == "case,mean_ap"
    assert float(worst.split(",")[1]) < float(best.split(",")[1]) == 1
    pictures = {rank: draw() for rank, draw in cases.selected().items()}
    assert set(pictures) == {"worst", "best"}
    red = ImageColor.getrgb(OBJECT_COLOURS["merged"])
    assert [_has(pictures[rank], red) for rank in ("worst", "best")] == [True, False]


class _Data(list[dict[str, object]]):
    @property
    def data(self) -> list[dict[str, object]]:
        return self


def _has(picture: bytes, colour: tuple[int, ...]) -> bool:
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    rows = pixels[: int(pixels.shape[0] * 0.9)]  # without the legend
    return bool((np.abs(rows.astype(int) - colour).max(axis=-1) < 3).any())
