"""The overlays of a bundle, such as ``few``, fitted to what was planned for its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medunet.transforms import IGNORE_INDEX

TURNS = "augment::deform::rotate_range"
BENDS = "augment::deform::elastic_sigma"
IGNORED = "steps::encode::ignore_value"


def fit_preset(preset: Mapping[str, Any], values: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """An overlay without what a plan has ruled out for these data.

    Planes that lie far apart stay unmixed, and thin structures are bent little, as the plan has it; regions keep their
    loss, which takes the overlay's weights; and what is not annotated counts in no loss.

    Args:
        preset: values by config id, made for any data.
        values: of the plan.
        base: unresolved ``train.json`` of the bundle that was planned from.

    Example:
        >>> base = {"augment": {"deform": {"elastic_sigma": 2.0}}}
        >>> thick_slices = {TURNS: [0.0, 0.0, 0.35], BENDS: [2.0, 2.0, 0.0]}
        >>> fitted = fit_preset({TURNS: [0.5, 0.5, 0.5], BENDS: 3.0}, thick_slices, base)
        >>> fitted[TURNS], fitted[BENDS]
        ([0.0, 0.0, 0.5], [3.0, 3.0, 0.0])
        >>> fit_preset({BENDS: 3.0}, {BENDS: 0.7}, base)[BENDS]
        1.05
    """
    fitted = dict(preset)
    turns, bends = values.get(TURNS), values.get(BENDS)
    if TURNS in fitted and isinstance(turns, list):
        fitted[TURNS] = [wide if planned else 0.0 for wide, planned in zip(fitted[TURNS], turns, strict=True)]
    if BENDS in fitted and bends is not None:
        factor = fitted[BENDS] / base["augment"]["deform"]["elastic_sigma"]
        scaled = [round(factor * planned, 3) for planned in (bends if isinstance(bends, list) else [bends])]
        fitted[BENDS] = scaled if isinstance(bends, list) else scaled[0]
    if values.get("region_names"):
        fitted.pop("loss", None)
    if IGNORED in values:
        for id_ in {"loss", "steps::weight"} & fitted.keys():
            fitted[id_] = {**fitted[id_], "ignore_index": IGNORE_INDEX}
    return fitted
