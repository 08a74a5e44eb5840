"""Objects become targets, and ideal predictions of these targets become the same objects."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from medunet.errors import ConfigError, DataError
from medunet.transforms import TARGETS, InstanceTargetsd, ObjectsFromMapsd, instance_target, objects_from_maps

TARGET = pytest.mark.parametrize("target", TARGETS)


def touching_objects(*shape: int, count: int, radius: float, seed: int = 0) -> np.ndarray:
    """Return balls that cut each other off where they meet, with one number each in random order."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 1, (count, len(shape))) * shape
    apart = [np.linalg.norm(centres[:k] - one, axis=1).min(initial=99) for k, one in enumerate(centres)]
    centres = centres[np.array(apart) > radius]
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    distances = np.linalg.norm(grid[..., None, :] - centres, axis=-1)
    return np.where(distances.min(axis=-1) < radius, 7 + distances.argmin(axis=-1), 0)


def ideal_maps(
    numbers: np.ndarray, target: str, *, classes: np.ndarray | None = None, n_classes: int = 1
) -> np.ndarray:
    """Return what a network without error predicts."""
    index, extra = instance_target(numbers, target, classes=classes, n_classes=n_classes)
    if target == "distance":
        return np.stack([*(index == k for k in range(1, n_classes + 1)), extra]).astype(np.float32)
    return np.stack([index == k for k in range(n_classes + 1 + (target == "border"))]).astype(np.float32)


def overlaps(found: np.ndarray, reference: np.ndarray) -> list[float]:
    """Return the overlap (IoU) of each reference object with the object that has most of it."""
    scores = []
    for number in np.unique(reference[reference > 0]):
        mask = reference == number
        other = found == np.bincount(found[mask]).argmax()
        scores.append((mask & other).sum() / (mask | other).sum())
    return scores


@pytest.mark.parametrize(
    "numbers",
    [touching_objects(97, 130, count=90, radius=9.0), touching_objects(20, 33, 34, count=30, radius=7.0)],
    ids=["2D", "3D"],
)
@pytest.mark.parametrize(
    ("target", "least", "mean"), [("gap", 0.8, 0.95), ("border", 0.9, 0.96), ("distance", 0.89, 0.95)]
)
def test_every_object_survives_its_target(target: str, least: float, mean: float, numbers: np.ndarray) -> None:
    n_objects = len(np.unique(numbers)) - 1
    assert ndimage.label(numbers)[1] < n_objects / 3  # most objects touch
    objects = objects_from_maps(ideal_maps(numbers, target), target, min_size=4)
    assert objects.numbers.max() == n_objects
    assert objects.classes.tolist() == [0] + [1] * n_objects
    scores = overlaps(objects.numbers, numbers)
    assert min(scores) > least
    assert np.mean(scores) > mean  # the gap is given back to the larger object, which need not be the right one


@TARGET
def test_noise_within_an_object_does_not_split_it(target: str) -> None:
    numbers = np.zeros((40, 60), int)
    numbers[5:35, 5:30], numbers[5:35, 30:55] = 1, 2
    maps = ideal_maps(numbers, target)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, maps.shape)
    noisy = np.clip(maps * 0.8 + 0.1 + noise, 0, 1)
    assert overlaps(objects_from_maps(noisy, target).numbers, numbers) == pytest.approx([1, 1], abs=0.08)


def test_smoothing_follows_the_size_of_the_objects_of_an_image() -> None:
    small, large = np.zeros((32, 48), int), np.zeros((60, 90), int)
    small[12:20, 8:16], small[12:20, 16:24] = 1, 2
    large[12:45, 12:45], large[12:45, 45:78] = 1, 2
    maps = [np.stack(instance_target(numbers, "distance", reach=3)).astype(float) for numbers in (small, large)]
    maps[1][1] *= 0.8 + 2 * ndimage.gaussian_filter(np.random.default_rng(1).normal(size=large.shape), 3)
    maps[1] = maps[1].clip(0, 1)
    scaled = {"smoothing": 1.2, "diameter": 9.0}
    for options, is_separated in (
        ({"smoothing": 1.2}, [True, False]),
        ({"smoothing": 5.0}, [False, True]),
        (scaled, [True, True]),
    ):
        counts = [objects_from_maps(one, "distance", **options).numbers.max() for one in maps]
        assert [count == 2 for count in counts] == is_separated
    assert not objects_from_maps(np.zeros((2, 5, 5)), "distance", **scaled).numbers.any()


def test_faint_objects_are_left_out() -> None:
    foreground = np.array([[0.0, 0.9, 0.7, 0.0, 0.0, 0.6, 0.9]])
    maps = np.stack([1 - foreground, foreground])
    assert objects_from_maps(maps, "gap", min_confidence=0.78).numbers.tolist() == [[0, 1, 1, 0, 0, 0, 0]]
    assert objects_from_maps(maps, "gap", min_confidence=0.74).numbers.tolist() == [[0, 1, 1, 0, 0, 2, 2]]


@TARGET
def test_objects_keep_their_classes(target: str) -> None:
    numbers, classes = np.zeros((2, 20, 40), int)
    numbers[4:16, 4:18], numbers[4:16, 18:36] = 5, 9
    classes[numbers == 5], classes[numbers == 9] = 2, 1
    maps = ideal_maps(numbers, target, classes=classes, n_classes=3)
    assert maps.shape[0] == 4 + (target == "border")
    objects = objects_from_maps(maps, target)
    assert [objects.classes[objects.numbers[8, x]] for x in (8, 30)] == [2, 1]
    item = {"label": torch.from_numpy(np.stack([numbers, classes]))}
    label = InstanceTargetsd("label", target, n_classes=3)(item)["label"]
    assert label.shape == (1, 20, 40)
    assert {1, 2} <= set(label.unique().tolist()) <= {0, 1, 2, 4}
    assert np.array_equal(InstanceTargetsd("label", None)(item)["label"][0], classes)
    found = ObjectsFromMapsd("pred", target, as_classes=True)({"pred": torch.from_numpy(maps)})["pred"]
    assert (found[0].numpy() == classes).mean() > 0.97


def test_targets_of_a_row() -> None:
    row = np.array([[0, 3, 3, 3, 8, 8, 0, 5]])
    assert instance_target(row, "gap")[0].tolist() == [[0, 1, 1, 0, 1, 1, 0, 1]]  # from the larger object
    assert instance_target(row, "border")[0].tolist() == [[0, 1, 1, 2, 2, 1, 0, 1]]
    distances = instance_target(np.pad(row, ((5, 5), (0, 0)), mode="edge"), "distance", reach=2.0)[1][5]
    assert distances.tolist() == [0, 0.25, 0.75, 0.25, 0.25, 0.25, 0, 0.25]
    assert instance_target(np.full((3, 3), 4), "distance")[1].min() == 1  # the object continues beyond the patch


def test_an_object_of_one_voxel_survives() -> None:
    numbers = np.array([[1, 1, 1], [1, 2, 1], [1, 1, 1]])
    for target in ("gap", "border"):
        index, kept = instance_target(numbers, target)
        assert index[1, 1] == 1
        assert set(np.unique(kept)) == {0, 1, 2}


def test_holes_are_filled_if_one_object_surrounds_them() -> None:
    foreground = np.zeros((12, 30))
    foreground[1:9, 1:9] = foreground[1:9, 11:28] = 0.9
    foreground[4, 4] = foreground[0:5, 15] = 0  # a hole, and a bay
    maps = np.stack([1 - foreground, foreground])
    filled, kept = (objects_from_maps(maps, "gap", fill_holes=fill).numbers for fill in (True, False))
    assert (filled != kept).sum() == 1
    assert filled[4, 4] == filled[4, 3] == 1
    assert objects_from_maps(maps, "gap", min_size=65).numbers.max() == 1


@TARGET
def test_an_image_without_objects_has_none(target: str) -> None:
    item = {"label": torch.zeros(1, 16, 17)}
    item = InstanceTargetsd("label", target)(item)
    assert item["label"].dtype == torch.uint8
    assert item["label"].max() == 0
    maps = torch.from_numpy(ideal_maps(np.zeros((16, 17), int), target))
    item = ObjectsFromMapsd("pred", target)({"pred": maps})
    assert item["pred"].dtype == torch.int32
    assert item["pred"].max() == 0
    assert len(item["object_classes"]) == 1


def test_the_weight_is_high_between_touching_objects() -> None:
    numbers = torch.zeros(1, 20, 40)
    numbers[0, 4:16, 4:18], numbers[0, 4:16, 18:36] = 70_000, 70_001  # more than 16 bits
    weight = InstanceTargetsd("label", "gap")({"label": numbers})["weight"][0]
    assert weight[10, 17:19].max() > 5 > weight[1, 1]


def test_errors_name_the_rule() -> None:
    with pytest.raises(ConfigError, match=r"unknown target of instances.*flow"):
        InstanceTargetsd("label", "flow")
    with pytest.raises(ConfigError, match="threshold must be in"):
        objects_from_maps(np.zeros((2, 4, 4)), "gap", threshold=1)
    with pytest.raises(DataError, match="too few channels for the target 'border'"):
        objects_from_maps(np.zeros((2, 4, 4)), "border")
    with pytest.raises(DataError, match=r"maps must be in \[0, 1\] .*-3 to 2"):
        objects_from_maps(np.linspace(-3, 2, 32).reshape(2, 4, 4), "gap")
    with pytest.raises(DataError, match="label must have object numbers"):
        InstanceTargetsd("label", "gap")({"label": torch.zeros(3, 4, 4)})
