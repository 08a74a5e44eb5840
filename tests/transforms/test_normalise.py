from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from medunet.errors import ConfigError
from medunet.transforms import NormalizeChannelsd

CT = {"low": -100.0, "high": 300.0, "mean": 100.0, "std": 50.0}


def test_ct_is_clipped_and_scaled_by_fixed_numbers_and_mr_by_its_own() -> None:
    image = torch.stack([torch.tensor([-2000.0, 100.0, 150.0, 900.0]), torch.tensor([2.0, 2.0, 4.0, 4.0])])[..., None]
    ct, mr = NormalizeChannelsd("image", [CT, None])({"image": image})["image"][..., 0]
    assert ct.tolist() == [-4.0, 0.0, 1.0, 4.0]
    assert mr.tolist() == [-1.0, -1.0, 1.0, 1.0]


def test_metadata_and_applied_operations_are_kept() -> None:
    image = MetaTensor(torch.ones(1, 3, 3), meta={"filename_or_obj": "a.nii.gz"}, applied_operations=[{"class": "X"}])
    scaled = NormalizeChannelsd("image", [None])({"image": image})["image"]
    assert scaled.meta["filename_or_obj"] == "a.nii.gz"
    assert len(scaled.applied_operations) == 1
    assert not scaled.as_tensor().any()  # a constant image


def test_other_numbers_of_channels_and_other_names_are_rejected() -> None:
    image = MetaTensor(torch.ones(1, 3, 3), meta={"filename_or_obj": "a.nii.gz"})
    with pytest.raises(ConfigError, match=r"a\.nii\.gz: wrong number of channels"):
        NormalizeChannelsd("image", [CT, None])({"image": image})
    with pytest.raises(ConfigError, match="invalid normalisation"):
        NormalizeChannelsd("image", [{"low": 1.0}])
