"""Going on with whatever a folder holds: a run or a cross-validation."""

from __future__ import annotations

from pathlib import Path

from medunet.errors import DataError
from medunet.files import check_target, claim
from medunet.runs.folds import CrossValidation, resume_folds
from medunet.runs.train import TrainingResult, judged_run, train_prepared
from medunet.runtime import resolve_device


def resume_run(
    folder: Path, *, device: str = "auto", tracking_uri: str | None = None, trust: bool = False
) -> TrainingResult | CrossValidation:
    """Go on after the last whole epoch.

    Args:
        folder: of a run or a cross-validation.
        device: as in :func:`train_bundle`, as are tracking_uri and trust.
        tracking_uri: see device.
        trust: see device.

    Raises:
        SecurityError: the run is not trusted: somebody changed what it would run.
        DataError: the folder holds neither.
    """
    if any(folder.glob("fold_*/configs/train.json")):
        return resume_folds(folder, device=device, tracking_uri=tracking_uri, trust=trust)
    if not (folder / "configs" / "train.json").is_file():
        raise DataError("the folder holds no run", file=folder)
    chosen = resolve_device(device)
    run = judged_run(folder, trust=trust)
    with claim(folder):
        check_target(folder)
        return train_prepared(run, resume=True, device=chosen, tracking_uri=tracking_uri)
