"""Regions: from channels to one map and back to masks."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from medunet.errors import ConfigError
from medunet.transforms import DecideLabelsd, RegionMasksd, paint_regions

# positions:             none   whole  whole+core  core alone  all    enhancing alone
LOGITS = torch.tensor(
    [
        [-1.0, 0.1, 3.0, -1.0, 2.0, -3.0],
        [-1.0, -0.1, 1.0, 1.0, 2.0, -3.0],
        [-5.0, -1.0, -9.0, -1.0, 2.0, 0.5],
    ]
)


def test_later_regions_are_painted_over_earlier_ones() -> None:
    assert paint_regions(LOGITS, [1, 2, 3]).tolist() == [0, 1, 2, 2, 3, 3]
    assert paint_regions(LOGITS, [1, 3, 2]).tolist() == [0, 1, 3, 3, 2, 2]
    assert paint_regions(LOGITS, [1, 2, 3], threshold=2.5).tolist() == [0, 0, 1, 0, 0, 0]
    assert paint_regions(torch.zeros(1, 2), [1]).tolist() == [0, 0]  # at the threshold is outside
    with pytest.raises(ConfigError, match="do not match the regions"):
        paint_regions(LOGITS, [1, 2])


def test_logits_and_probabilities_are_decided_alike() -> None:
    logits = LOGITS.reshape(3, 2, 3)
    from_logits = DecideLabelsd("pred", order=[1, 2, 3], threshold=0.0, prob_key=None)({"pred": logits})
    from_probabilities = DecideLabelsd("pred", order=[1, 2, 3])({"pred": logits.sigmoid()})
    assert from_logits.keys() == {"pred"}
    assert torch.equal(from_probabilities["prob"], logits.sigmoid())
    assert torch.equal(from_logits["pred"], from_probabilities["pred"])
    assert from_logits["pred"].tolist() == [[[0, 1, 2], [2, 3, 3]]]


def test_masks_of_regions_overlap_and_paint_the_same_map() -> None:
    label = MetaTensor(torch.tensor([[[0, 1], [2, 3]]], dtype=torch.uint8), affine=2 * torch.eye(3))
    masks = RegionMasksd("label", [[1, 2, 3], [2, 3], [3]])({"label": label})["label"]
    assert masks.tolist() == [[[0, 1], [1, 1]], [[0, 0], [1, 1]], [[0, 0], [0, 1]]]
    assert torch.equal(masks.affine, label.affine)
    assert paint_regions(masks, [1, 2, 3]).tolist() == label[0].tolist()
