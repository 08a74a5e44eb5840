import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from medunet.errors import ConfigError, DataError
from medunet.transforms import BorderWeightMapd, border_weight_map


def cells(shape, count, seed=0):
    """Blobs around random seeds; some touch, some pixels between them are background."""
    rng = np.random.default_rng(seed)
    seeds = np.zeros(shape, dtype=np.int32)
    seeds.flat[rng.choice(seeds.size, count, replace=False)] = np.arange(1, count + 1)
    distance, nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    return np.where(distance < 3.2, seeds[tuple(nearest)], 0)


def brute_force(labels, *, w0, sigma):
    """Equation 2 pixel by pixel: all distances to all pixels of all objects."""
    grid = np.stack(np.indices(labels.shape), axis=-1)
    objects = [grid[labels == number] for number in np.unique(labels) if number]
    weights = np.ones(labels.shape)
    for pixel in np.ndindex(labels.shape):
        if labels[pixel]:
            continue
        nearest = sorted(np.sqrt(((pixels - grid[pixel]) ** 2).sum(axis=1)).min() for pixels in objects)
        weights[pixel] += w0 * np.exp(-((nearest[0] + nearest[1]) ** 2) / (2 * sigma**2))
    return weights


@pytest.mark.parametrize(("shape", "sigma"), [((33, 34), 5.0), ((35, 33), 1.5), ((9, 14, 13), 2.0)])
def test_the_map_agrees_with_brute_force(shape, sigma):
    labels = cells(shape, 11)
    options = {"w0": 10.0, "sigma": sigma}
    got = border_weight_map(labels, class_weights=None, **options)
    assert np.abs(got - brute_force(labels, **options)).max() < 1e-5
    assert got.max() > 2  # the border term is there at all


FAR = np.pad([[1]], ((2, 2), (3, 196))) + np.pad([[2]], ((2, 2), (190, 9)))


@pytest.mark.parametrize("labels", [np.zeros((8, 9), dtype=int), np.eye(9, dtype=int) * 7, FAR])
def test_weights_are_one_without_two_nearby_objects(labels):
    assert (border_weight_map(labels, class_weights=None) == 1).all()


def test_balanced_classes_have_equal_sums_of_weights_and_a_mean_of_one():
    classes = np.array([[0, 0, 0, 0, 0, 1, 1, 2]])
    weights = border_weight_map(classes, w0=0, instances="components")
    assert [weights[classes == index].sum() for index in range(3)] == pytest.approx([8 / 3] * 3)


def test_components_are_objects_and_a_diagonal_membrane_separates_them():
    classes = 1 - np.eye(9, dtype=int)
    options = {"class_weights": None, "instances": "components", "foreground": 1}
    separated = border_weight_map(classes, connectivity=1, **options)
    joined = border_weight_map(classes, connectivity=2, **options)
    assert separated[4, 4] == pytest.approx(1 + 10 * np.exp(-(2**2) / 50))
    assert (joined == 1).all()


@pytest.mark.parametrize(("foreground", "distances"), [(None, 1 + 1), ([2, 1], 1 + 1), (1, 1 + 3)])
def test_only_foreground_classes_define_objects(foreground, distances):
    options = {"class_weights": None, "instances": "components", "foreground": foreground}
    weights = border_weight_map(np.array([[1, 0, 2, 0, 1]]), **options)
    assert weights[0, 1] == pytest.approx(1 + 10 * np.exp(-(distances**2) / 50))


def test_ignored_pixels_have_no_weight_and_are_not_objects():
    labels = np.array([[1, 0, 255, 0, 0]])
    weights = border_weight_map(labels, ignore_index=255)
    assert weights[0] == pytest.approx([2.0, 4 / 6, 0.0, 4 / 6, 4 / 6])


def test_the_transform_adds_a_map_beside_the_label():
    label = MetaTensor(torch.from_numpy(cells((33, 34), 9))[None], meta={"filename_or_obj": "a.png"})
    item = BorderWeightMapd("label", "weight", sigma=3.0)({"label": label})
    assert item["weight"].shape == (1, 33, 34)
    assert item["weight"].dtype == torch.float32
    assert item["weight"].meta["filename_or_obj"] == "a.png"
    assert np.array_equal(item["weight"][0].numpy(), border_weight_map(label[0].numpy(), sigma=3.0))
    assert torch.equal(item["label"], label)


def test_invalid_labels_are_rejected_with_their_file():
    label = MetaTensor(torch.tensor([[[0.0, 1.5]]]), meta={"filename_or_obj": "a.png"})
    with pytest.raises(DataError, match=r"a\.png.*must be integers"):
        BorderWeightMapd()({"label": label})
    with pytest.raises(DataError, match=r"must be \(1, \*spatial\)"):
        BorderWeightMapd()({"label": torch.zeros(2, 4, 4)})
    with pytest.raises(DataError, match="must be >= 0"):
        border_weight_map(np.array([[0, -1]]))


@pytest.mark.parametrize(
    "options",
    [
        *({"sigma": 0.0}, {"w0": -1.0}, {"instances": "objects"}, {"class_weights": "even"}, {"class_weights": [1.0]}),
        {"instances": "components", "connectivity": 3},
    ],
)
def test_invalid_options_are_rejected(options):
    with pytest.raises(ConfigError):
        border_weight_map(np.eye(4, dtype=int), **options)
    with pytest.raises(ConfigError, match="one label"):
        BorderWeightMapd(["a", "b"], "weight", **options)
