"""Curves of trainings of any length."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from medunet.errors import DataError
from medunet.reports import EpochRecord, render_curves
from medunet.reports.curves import curve_panels
from medunet.reports.panels import LIGHT


def history(epochs: int, *, validate: bool = True) -> list[EpochRecord]:
    records = []
    for epoch in range(1, epochs + 1):
        record = EpochRecord(epoch=epoch, iteration=10 * epoch, loss=50.0 / epoch**2, lr=1e-3, seconds=2.0)
        if validate and epoch % 2 == 0:
            record["val_dice"] = {"liver": 1 - 1 / epoch, "spleen": math.nan}
        records.append(record)
    return records


def picture(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def test_dice_has_a_panel_only_if_there_was_validation() -> None:
    both, one = picture(render_curves(history(3))), picture(render_curves(history(3, validate=False)))
    assert both.shape == (one.shape[0], 2 * one.shape[1])
    with pytest.raises(DataError, match="epochs"):
        render_curves([])


@pytest.mark.parametrize("dice", [0.05, 0.95])
def test_the_legend_of_several_folds_does_not_cover_the_ends_of_their_curves(dice: float) -> None:
    records = history(8)
    for record in records:
        if "val_dice" in record:
            record["val_dice"] = {"liver": dice * record["epoch"] / 8}
    panel = curve_panels({f"fold {fold}": records for fold in range(5)})[1]
    figure = Figure(panel.inches)
    axes = figure.subplots()
    panel.draw(axes, LIGHT)
    figure.draw_without_rendering()
    end = axes.transData.transform((8, dice))
    assert not axes.get_legend().get_window_extent().contains(*end)
