"""Conversion of targets and weight maps to the shape of the logits."""

import torch
from monai.data import MetaTensor

from medunet.errors import ConfigError


def align_targets(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, *, center_crop: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return class indices (int64) and weights (float32) `(B, *spatial)`, one per voxel of the logits.

    Maps that are larger than the logits are cropped to the middle if `center_crop`; other shapes are a ConfigError.
    """
    spatial = tuple(logits.shape[2:])
    indices = _fit(target, spatial, batch=len(logits), what="target", center_crop=center_crop).long()
    if weight is None:
        return indices, None
    fitted = _fit(weight, spatial, batch=len(logits), what="weight map", center_crop=center_crop)
    return indices, fitted.to(device=logits.device, dtype=torch.float32)


def _fit(tensor: torch.Tensor, spatial: tuple[int, ...], *, batch: int, what: str, center_crop: bool) -> torch.Tensor:
    if isinstance(tensor, MetaTensor):  # tracking its metadata through every operation only costs time
        tensor = tensor.as_tensor()
    if tensor.ndim == len(spatial) + 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim != len(spatial) + 1 or len(tensor) != batch:
        expected = f"({batch}, 1, *spatial) or ({batch}, *spatial) with {len(spatial)} spatial axes"
        has_channels = tensor.ndim == len(spatial) + 2 and what == "target"
        remedy = "give class indices; of a one-hot target, target.argmax(dim=1, keepdim=True)" if has_channels else None
        received = tuple(tensor.shape)
        raise ConfigError(f"{what} does not match the logits", received=received, expected=expected, remedy=remedy)
    if tuple(tensor.shape[1:]) == spatial:
        return tensor
    surplus = [have - want for have, want in zip(tensor.shape[1:], spatial, strict=True)]
    if not center_crop or min(surplus) < 0 or any(n % 2 for n in surplus):
        remedy = "for a network with valid convolutions, set center_crop=True"
        received = tuple(tensor.shape[1:])
        raise ConfigError(f"{what} and logits differ in size", received=received, expected=spatial, remedy=remedy)
    for axis, (extra, want) in enumerate(zip(surplus, spatial, strict=True), start=1):
        tensor = tensor.narrow(axis, extra // 2, want)
    return tensor
