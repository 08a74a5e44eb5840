"""Targets and weight maps in the shape of the logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor

from medunet.errors import ConfigError


def align_targets(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, *, center_crop: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return class indices and weights, one per voxel of the logits.

    Args:
        logits: `(B, C, *spatial)`.
        target: class indices, `(B, 1, *spatial)` or `(B, *spatial)`, any type.
        weight: the same shape as the target, or None.
        center_crop: crop target and weight to the middle, as a network with valid convolutions needs.

    Returns:
        Target as int64 and weight as float32, both `(B, *spatial)` without metadata.

    Raises:
        ConfigError: shapes that do not match.
    """
    spatial = tuple(logits.shape[2:])
    indices = _fit(_plain(target), spatial, batch=len(logits), what="target", center_crop=center_crop).long()
    if weight is None:
        return indices, None
    fitted = _fit(_plain(weight), spatial, batch=len(logits), what="weight map", center_crop=center_crop)
    return indices, fitted.to(device=logits.device, dtype=torch.float32)


def class_weight_tensor(class_weights: Sequence[float] | None) -> torch.Tensor | None:
    """Return class weights as a float32 tensor; a negative weight, or no positive one, is a ConfigError."""
    if class_weights is None:
        return None
    weights = torch.as_tensor(class_weights, dtype=torch.float32)
    if weights.ndim != 1 or bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise ConfigError("class_weights must be numbers >= 0, not all 0", received=class_weights)
    return weights


def check_class_weights(class_weights: torch.Tensor | None, logits: torch.Tensor) -> None:
    """Reject class weights whose number is not that of the classes (two for logits of one channel)."""
    classes = max(2, logits.shape[1])
    if class_weights is not None and len(class_weights) != classes:
        raise ConfigError("class_weights must have one number per class", received=len(class_weights), expected=classes)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Strip MetaTensor metadata; tracking it through every loss operation only costs time."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def _fit(tensor: torch.Tensor, spatial: tuple[int, ...], *, batch: int, what: str, center_crop: bool) -> torch.Tensor:
    if tensor.ndim == len(spatial) + 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim != len(spatial) + 1 or len(tensor) != batch:
        expected = f"({batch}, 1, *spatial) or ({batch}, *spatial) with {len(spatial)} spatial axes"
        has_channels = tensor.ndim == len(spatial) + 2 and what == "target"
        remedy = "give class indices; of a one-hot target, target.argmax(dim=1, keepdim=True)" if has_channels else None
        raise ConfigError(
            f"{what} does not match the logits", received=tuple(tensor.shape), expected=expected, remedy=remedy
        )
    if tuple(tensor.shape[1:]) == spatial:
        return tensor
    surplus = [have - want for have, want in zip(tensor.shape[1:], spatial, strict=True)]
    if not center_crop or min(surplus) < 0 or any(n % 2 for n in surplus):
        raise ConfigError(
            f"{what} and logits differ in size",
            received=tuple(tensor.shape[1:]),
            expected=spatial,
            remedy="give the label of the input; for a network with valid convolutions set center_crop=True",
        )
    for axis, (extra, want) in enumerate(zip(surplus, spatial, strict=True), start=1):
        tensor = tensor.narrow(axis, extra // 2, want)
    return tensor
