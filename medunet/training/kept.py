"""Of which epoch a training keeps the weights, told from its history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def kept_entry(history: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry of the epoch whose weights `CheckpointHandler` kept; empty where none was validated.

    Args:
        history: of a run, as `HistoryHandler` writes it.
        config: ``train.json`` of the run: of the validated epochs it keeps the best, or the last where ``keep_epoch``
            says so and no ``patience`` ends the training before its schedule does.

    Example:
        >>> history = [{"epoch": 1, "val_dice": {"a": 0.8}}, {"epoch": 2, "val_dice": {"a": 0.7}}, {"epoch": 3}]
        >>> kept_entry(history, {"keep_epoch": "last"})["epoch"], kept_entry(history, {})["epoch"]
        (2, 1)
    """
    validated = [entry for entry in history if entry.get("val_dice")]
    if config.get("keep_epoch") == "last" and not config.get("patience"):
        return validated[-1] if validated else {}
    return max(validated, key=_mean_dice, default={})


def _mean_dice(entry: Mapping[str, Any]) -> float:
    """Mean over the classes of an entry that was validated."""
    values = entry["val_dice"].values()
    return float(sum(values) / len(values))
