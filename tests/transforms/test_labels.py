from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medunet.errors import ConfigError, DataError
from medunet.transforms import IGNORE_INDEX, BlankIgnoredd, DecodeLabelsd, EncodeLabelsd

FILE_VALUES = [0, 255, 7, -3]


def label(values, dtype=torch.float32):
    return MetaTensor(torch.tensor([values], dtype=dtype), meta={"filename_or_obj": "case_7.nii.gz"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16, torch.int32, torch.int64])
def test_values_become_class_indices_and_come_back(dtype):
    item = {"label": label([255, -3, 0, 7], dtype)}
    encoded = EncodeLabelsd("label", FILE_VALUES)(item)["label"]
    assert encoded.tolist() == [[1, 3, 0, 2]]
    assert encoded.dtype == torch.uint8
    assert encoded.meta["filename_or_obj"] == "case_7.nii.gz"
    back = DecodeLabelsd("label", FILE_VALUES)({"label": encoded})["label"]
    assert back.tolist() == item["label"].tolist() == [[255, -3, 0, 7]]
    assert back.dtype == torch.int16  # the smallest that contains -3 and 255


def test_arrays_and_mappings_of_names_are_accepted():
    array = np.array([[0, 255]], dtype=np.uint8)
    assert EncodeLabelsd("label", [0, 255])({"label": array})["label"].tolist() == [[0, 1]]
    assert EncodeLabelsd("label", {"cell": 255, "background": 0})({"label": array})["label"].tolist() == [[1, 0]]


@pytest.mark.parametrize(
    "wrong", [[0, 3], [0, 256], [0, -4], [0, 1e9], [0, 6.5], [255.25, 0], [0, float("nan")], [0, float("inf")]]
)
def test_any_other_value_is_rejected(wrong):
    with pytest.raises(DataError):
        EncodeLabelsd("label", FILE_VALUES)({"label": label(wrong)})


def test_errors_name_file_values_and_remedy():
    with pytest.raises(DataError) as error:
        EncodeLabelsd("label", [0, 1, 2])({"label": label([0, 3, 3, 2.5])})
    assert error.value.file == "case_7.nii.gz"
    assert (error.value.received, error.value.expected) == ("[2.5, 3]", "[0, 1, 2]")
    assert error.value.remedy
    with pytest.raises(DataError, match=r"\[1, 2, 3, 4, 5, 6, 7, 8, \.\.\.\]"):
        EncodeLabelsd("label", [0])({"label": label(list(range(40)))})
    with pytest.raises(DataError, match="decode with the values"):
        DecodeLabelsd("pred", [0, 255])({"pred": label([0, 2])})


def test_the_ignore_value_becomes_the_ignore_index_and_comes_back():
    item = EncodeLabelsd("label", [0, 1], ignore_value=-1)({"label": label([1, -1, 0])})
    assert item["label"].tolist() == [[1, IGNORE_INDEX, 0]]
    assert DecodeLabelsd("label", [0, 1], ignore_value=-1)(item)["label"].tolist() == [[1, -1, 0]]


@pytest.mark.parametrize(
    ("values", "ignore"),
    [([], None), ([0, 0], None), ([0, 1.5], None), ([0, 1 << 30], None), ([0, 1], 1), (list(range(256)), 300)],
)
def test_invalid_values_are_rejected(values, ignore):
    with pytest.raises(ConfigError):
        EncodeLabelsd("label", values, ignore_value=ignore)


def test_more_than_256_classes_get_a_wider_type():
    encoded = EncodeLabelsd("label", list(range(0, 600, 2)))({"label": label([598, 0])})["label"]
    assert encoded.tolist() == [[299, 0]]


def test_ignored_voxels_are_blank_in_prediction_and_label():
    wanted = MetaTensor(torch.tensor([[[0, 1, IGNORE_INDEX, IGNORE_INDEX]]], dtype=torch.uint8))
    pred = torch.tensor([[[1.0, 1.0, 1.0, 0.0]]])
    item = BlankIgnoredd(["pred", "label"])({"pred": pred, "label": wanted})
    assert item["pred"].flatten().tolist() == [1.0, 1.0, 0.0, 0.0]
    assert item["label"].flatten().tolist() == [0, 1, 0, 0]
    assert pred.sum() == 3  # not changed in place
