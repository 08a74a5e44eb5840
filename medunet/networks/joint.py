"""Networks with classes of their own as one network: TotalSegmentator, for instance, divides its classes over five."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medunet.errors import ConfigError


class JointNetwork(nn.Module):
    """One network whose classes are the background and the classes of all members, in their order.

    The logit of a class is the member's, minus that of the member's background; the background's is 0. So a voxel gets
    the label of the member that finds a structure there. Of several members, the one with the largest margin decides.

    Args:
        members: networks of equal sizes `(B, C, *spatial)`; their channel 0 is the background.
        intensities: for each member the numbers `low`, `high`, `mean` and `std` by which it clips and scales images;
            None if all members take the image as it is.

    Raises:
        ConfigError: no member, members of different sizes, or a wrong number of intensities.

    Examples:
        >>> from medunet.networks import UNet
        >>> members = [UNet(2, 1, classes, channels=(4, 8)).eval() for classes in (3, 2)]
        >>> tuple(JointNetwork(members)(torch.rand(1, 1, 16, 16)).shape)
        (1, 4, 16, 16)
    """

    def __init__(self, members: Sequence[nn.Module], intensities: Sequence[Mapping[str, float]] | None = None) -> None:
        super().__init__()
        shapes = [getattr(member, "shapes", None) for member in members]
        if not shapes or any(other != shapes[0] for other in shapes):
            raise ConfigError("members must be one or more networks of the same sizes", received=len(shapes))
        if intensities is not None and len(intensities) != len(shapes):
            raise ConfigError("wrong number of intensities", received=len(intensities), expected=len(shapes))
        self.members = nn.ModuleList(members)
        self.shapes: Any = shapes[0]
        self.tileable = all(getattr(member, "tileable", True) for member in members)
        self.tileable_reason = str(getattr(members[0], "tileable_reason", ""))
        names = ("low", "high", "mean", "std")
        self.numbers = [[float(numbers[name]) for name in names] for numbers in intensities or ()]

    def forward(self, image: Tensor) -> Tensor:
        """Map `(B, C, *spatial)` to `(B, 1 + sum of the members' classes, *spatial)`."""
        parts: list[Tensor] = []
        for index, member in enumerate(self.members):
            part = image
            if len(self.numbers) > 0:
                low, high, mean, std = self.numbers[index]
                part = ((image.float().clamp(low, high) - mean) / std).to(image.dtype)
            logits = member(part)
            if index == 0:
                parts.append(torch.zeros_like(logits[:, :1]))
            parts.append(logits[:, 1:] - logits[:, :1])
        return torch.cat(parts, dim=1)
