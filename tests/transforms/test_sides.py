"""Left and right labels trade places in a mirrored image."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer

from medunet.errors import ConfigError
from medunet.inferers import MirrorInferer
from medunet.transforms import RandDeformd, SwapLabels

# along axis 0 from right to left: right lung (2), heart (3), left lung (1)
LABEL = torch.tensor([2, 2, 0, 3, 0, 1]).reshape(1, 6, 1).expand(1, 6, 4).contiguous()


def mirrored(axes: list[int], **options: object) -> dict[str, torch.Tensor]:
    transform = RandDeformd(
        ["image", "label"], flip_axes=axes, flip_prob=1.0, swap_labels=[[1, 2]], mode=["bilinear", "nearest"], **options
    )
    return transform.set_random_state(0)({"image": LABEL.float(), "label": LABEL})


def test_a_mirror_from_left_to_right_swaps_the_pair_and_nothing_else() -> None:
    item = mirrored([0])
    assert item["image"][0, :, 0].tolist() == [1, 0, 3, 0, 2, 2]
    assert item["label"][0, :, 0].tolist() == [2, 0, 3, 0, 1, 1]  # the lung on the left is a left one again
    assert torch.equal(mirrored([1])["label"], LABEL.flip(2))
    assert torch.equal(mirrored([1], swap_axis=1)["label"], SwapLabels([[1, 2]])(LABEL).flip(2))
    assert torch.equal(mirrored([0], swap_axis=1)["label"], LABEL.flip(1))


def test_labels_are_swapped_exactly_if_the_patch_is_mirrored() -> None:
    transform = RandDeformd(["image", "label"], flip_axes=[0], swap_labels=[[1, 2]], prob=0.7, mode="nearest")
    transform.set_random_state(1)
    turned = 0
    for _ in range(40):
        item = transform({"image": LABEL, "label": LABEL})
        is_mirrored = not torch.equal(item["image"], LABEL)
        turned += is_mirrored
        assert torch.equal(item["label"], SwapLabels([[1, 2]])(LABEL).flip(1) if is_mirrored else LABEL)
    assert 5 < turned < 35


def test_labels_are_not_swapped_in_place() -> None:
    before = LABEL.clone()
    assert SwapLabels([[1, 2]])(LABEL).dtype == LABEL.dtype
    assert torch.equal(LABEL, before)
    assert SwapLabels([])(LABEL) is LABEL


@pytest.mark.parametrize("pairs", [[[1]], [[1, 1]], [[1, 2], [2, 3]], [[1, 2, 3]], [[-1, 2]]])
def test_invalid_pairs_are_rejected(pairs: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="must be pairs"):
        RandDeformd("label", swap_labels=pairs)
    with pytest.raises(ConfigError, match="must be pairs"):
        MirrorInferer(SimpleInferer(), axes=[0], swaps=pairs)


def by_side(image: torch.Tensor) -> torch.Tensor:
    """Act as a network that labels bright voxels of the first half right and others left."""
    place = torch.arange(image.shape[2]).reshape(1, 1, -1, 1) < image.shape[2] / 2
    bright = image > 0.5
    masks = torch.cat([~bright, bright & ~place, bright & place], dim=1)
    return masks.float() * 20 - 10


def test_mirrored_views_agree_only_if_their_channels_trade_places() -> None:
    image = torch.zeros(1, 1, 6, 4)
    image[:, :, [0, 1, 5]] = 1.0
    swapping = MirrorInferer(SimpleInferer(), axes=[0], swaps=[[1, 2]])(image, by_side)
    assert torch.equal(swapping.argmax(dim=1), by_side(image).argmax(dim=1))
    assert swapping.softmax(dim=1).amax(dim=1).min() > 0.99
    plain = MirrorInferer(SimpleInferer(), axes=[0])(image, by_side).softmax(dim=1)
    assert plain[0, 1:, 0, 0].tolist() == pytest.approx([0.5, 0.5])  # left in one view, right in the other


def test_views_that_keep_left_on_the_left_are_not_swapped() -> None:
    image = torch.rand(1, 1, 6, 4, generator=torch.Generator().manual_seed(0))
    plain = MirrorInferer(SimpleInferer(), axes=[1])(image, by_side)
    assert torch.equal(MirrorInferer(SimpleInferer(), axes=[1], swaps=[[1, 2]])(image, by_side), plain)
    both = MirrorInferer(SimpleInferer(), axes=[0, 1], swaps=[[1, 2]], batch_size=4)(image, by_side)
    assert torch.equal(both.argmax(dim=1), by_side(image).argmax(dim=1))


def test_swaps_of_unknown_channels_and_of_transposed_views_are_rejected() -> None:
    with pytest.raises(ConfigError, match="unknown channel"):
        MirrorInferer(SimpleInferer(), axes=[0], swaps=[[1, 3]])(torch.rand(1, 1, 6, 4), by_side)
    with pytest.raises(ConfigError, match="transposed"):
        MirrorInferer(SimpleInferer(), axes=[0, 1], transpose=True, swaps=[[1, 2]])
