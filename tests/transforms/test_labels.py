"""Label values and class indices, regions, and left and right labels in mirrored images."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer

from medunet.errors import ConfigError, DataError
from medunet.inferers import MirrorInferer
from medunet.transforms import (
    IGNORE_INDEX,
    BlankIgnoredd,
    DecideLabelsd,
    DecodeLabelsd,
    EncodeLabelsd,
    RandDeformd,
    RegionMasksd,
    paint_regions,
)

FILE_VALUES = [0, 255, 7, -3]


def label(values, dtype=torch.float32):
    return MetaTensor(torch.tensor([values], dtype=dtype), meta={"filename_or_obj": "case_7.nii.gz"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.int64])
def test_values_are_encoded_and_decoded(dtype):
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
    assert EncodeLabelsd("label", {"cell": 255, "background": 0})({"label": array})["label"].tolist() == [[1, 0]]


@pytest.mark.parametrize("wrong", [[0, 3], [0, 256], [0, -4], [0, 1e9], [0, 6.5], [0, float("nan")], [0, float("inf")]])
def test_any_other_value_is_rejected(wrong):
    with pytest.raises(DataError):
        EncodeLabelsd("label", FILE_VALUES)({"label": label(wrong)})


def test_errors_name_file_and_values():
    with pytest.raises(DataError, match=r"case_7\.nii\.gz.*received \[2\.5, 3\], expected \[0, 1, 2\]"):
        EncodeLabelsd("label", [0, 1, 2])({"label": label([0, 3, 3, 2.5])})
    with pytest.raises(DataError, match=r"\[1, 2, 3, 4, 5, 6, 7, 8, \.\.\.\]"):
        EncodeLabelsd("label", [0])({"label": label(list(range(40)))})


def test_the_ignore_value_is_encoded_and_decoded():
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


def test_ignored_voxels_become_background_in_prediction_and_label():
    wanted = MetaTensor(torch.tensor([[[0, 1, IGNORE_INDEX, IGNORE_INDEX]]], dtype=torch.uint8))
    pred = torch.tensor([[[1.0, 1.0, 1.0, 0.0]]])
    item = BlankIgnoredd(["pred", "label"])({"pred": pred, "label": wanted})
    assert item["pred"].flatten().tolist() == [1.0, 1.0, 0.0, 0.0]
    assert item["label"].flatten().tolist() == [0, 1, 0, 0]
    assert pred.sum() == 3  # not changed in place


# positions:             none   whole  whole+core  core alone  all    enhancing alone
LOGITS = torch.tensor(
    [[-1.0, 0.1, 3.0, -1.0, 2.0, -3.0], [-1.0, -0.1, 1.0, 1.0, 2.0, -3.0], [-5.0, -1.0, -9.0, -1.0, 2.0, 0.5]]
)


def test_later_regions_are_painted_over_earlier_ones():
    assert paint_regions(LOGITS, [1, 2, 3]).tolist() == [0, 1, 2, 2, 3, 3]
    assert paint_regions(LOGITS, [1, 3, 2]).tolist() == [0, 1, 3, 3, 2, 2]
    assert paint_regions(torch.zeros(1, 2), [1]).tolist() == [0, 0]  # at the threshold is outside
    with pytest.raises(ConfigError, match="do not match the regions"):
        paint_regions(LOGITS, [1, 2])


def test_logits_and_probabilities_give_the_same_regions():
    logits = LOGITS.reshape(3, 2, 3)
    from_logits = DecideLabelsd("pred", order=[1, 2, 3], threshold=0.0, prob_key=None)({"pred": logits})
    from_probabilities = DecideLabelsd("pred", order=[1, 2, 3])({"pred": logits.sigmoid()})
    assert from_logits.keys() == {"pred"}
    assert torch.equal(from_probabilities["prob"], logits.sigmoid())
    assert torch.equal(from_logits["pred"], from_probabilities["pred"])
    assert from_logits["pred"].tolist() == [[[0, 1, 2], [2, 3, 3]]]


def test_masks_of_regions_overlap_and_paint_the_same_map():
    regions = MetaTensor(torch.tensor([[[0, 1], [2, 3]]], dtype=torch.uint8), affine=2 * torch.eye(3))
    masks = RegionMasksd("label", [[1, 2, 3], [2, 3], [3]])({"label": regions})["label"]
    assert masks.tolist() == [[[0, 1], [1, 1]], [[0, 0], [1, 1]], [[0, 0], [0, 1]]]
    assert torch.equal(masks.affine, regions.affine)
    assert paint_regions(masks, [1, 2, 3]).tolist() == regions[0].tolist()


# along axis 0 from right to left: right lung (2), heart (3), left lung (1)
LUNGS = torch.tensor([2, 2, 0, 3, 0, 1]).reshape(1, 6, 1).expand(1, 6, 4).contiguous()
SWAPPED = torch.tensor([1, 1, 0, 3, 0, 2]).reshape(1, 6, 1).expand(1, 6, 4)


def test_mirroring_left_and_right_swaps_the_pair_only():
    def mirrored(axes):
        deform = RandDeformd(["image", "label"], flip_axes=axes, flip_prob=1.0, swap_labels=[[1, 2]])
        return deform({"image": LUNGS.float(), "label": LUNGS})

    assert torch.equal(mirrored([0])["image"], LUNGS.float().flip(1))
    assert torch.equal(mirrored([0])["label"], SWAPPED.flip(1))  # the lung on the left is a left one again
    assert torch.equal(mirrored([1])["label"], LUNGS.flip(2))
    assert LUNGS[0, :, 0].tolist() == [2, 2, 0, 3, 0, 1]  # not swapped in place


def test_labels_are_swapped_only_if_the_patch_is_mirrored():
    transform = RandDeformd(["image", "label"], flip_axes=[0], swap_labels=[[1, 2]], prob=0.7, mode="nearest")
    transform.set_random_state(1)
    turned = 0
    for _ in range(40):
        item = transform({"image": LUNGS, "label": LUNGS})
        is_mirrored = not torch.equal(item["image"], LUNGS)
        turned += is_mirrored
        assert torch.equal(item["label"], SWAPPED.flip(1) if is_mirrored else LUNGS)
    assert 5 < turned < 35


@pytest.mark.parametrize("pairs", [[[1]], [[1, 1]], [[1, 2], [2, 3]], [[-1, 2]]])
def test_invalid_pairs_are_rejected(pairs):
    with pytest.raises(ConfigError, match="must be pairs"):
        RandDeformd("label", swap_labels=pairs)
    with pytest.raises(ConfigError, match="must be pairs"):
        MirrorInferer(SimpleInferer(), axes=[0], swaps=pairs)


def by_side(image):
    """Act as a network that labels bright voxels of the first half right and others left."""
    place = torch.arange(image.shape[2]).reshape(1, 1, -1, 1) < image.shape[2] / 2
    bright = image > 0.5
    return torch.cat([~bright, bright & ~place, bright & place], dim=1).float() * 20 - 10


def test_mirrored_views_agree_only_if_their_channels_are_swapped():
    image = torch.zeros(1, 1, 6, 4)
    image[:, :, [0, 1, 5]] = 1.0
    for axes in ([0], [0, 1]):
        swapping = MirrorInferer(SimpleInferer(), axes=axes, swaps=[[1, 2]], batch_size=4)(image, by_side)
        assert torch.equal(swapping.argmax(dim=1), by_side(image).argmax(dim=1))
        assert swapping.softmax(dim=1).amax(dim=1).min() > 0.99
    plain = MirrorInferer(SimpleInferer(), axes=[0])(image, by_side).softmax(dim=1)
    assert plain[0, 1:, 0, 0].tolist() == pytest.approx([0.5, 0.5])  # left in one view, right in the other
    unmirrored = (MirrorInferer(SimpleInferer(), axes=[1], swaps=swaps)(image, by_side) for swaps in ([], [[1, 2]]))
    assert torch.equal(*unmirrored)  # these views keep left on the left


def test_swaps_of_unknown_channels_and_of_transposed_views_are_rejected():
    with pytest.raises(ConfigError, match="unknown channel"):
        MirrorInferer(SimpleInferer(), axes=[0], swaps=[[1, 3]])(torch.rand(1, 1, 6, 4), by_side)
    with pytest.raises(ConfigError, match="transposed"):
        MirrorInferer(SimpleInferer(), axes=[0, 1], transpose=True, swaps=[[1, 2]])
