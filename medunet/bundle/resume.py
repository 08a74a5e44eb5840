"""Going on with whatever a folder holds: a run or a cross-validation."""

from __future__ import annotations

from pathlib import Path

from medunet.bundle.cross_validation import CrossValidation, resume_folds
from medunet.bundle.workflow import TrainingResult, train_prepared
from medunet.errors import DataError
from medunet.networks import resolve_device


def resume_run(
    folder: Path, *, device: str = "auto", tracking_uri: str | None = None
) -> TrainingResult | CrossValidation:
    """Go on after the last whole epoch.

    Args:
        folder: of a run or a cross-validation.
        device: as in :func:`train_bundle`, as is tracking_uri.
        tracking_uri: see device.

    Raises:
        DataError: the folder holds neither.
    """
    if any(folder.glob("fold_*/configs/train.json")):
        return resume_folds(folder, device=device, tracking_uri=tracking_uri)
    if not (folder / "configs" / "train.json").is_file():
        raise DataError("the folder holds no run", file=folder)
    return train_prepared(folder, resume=True, device=resolve_device(device), tracking_uri=tracking_uri)
