import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.interpolate import CubicSpline
from scipy.ndimage import map_coordinates

from medunet.datasets.cache.indices import annotated_indices, foreground_indices
from medunet.errors import ConfigError, DataError
from medunet.transforms import RandDeformd
from medunet.transforms.deformation import Deformation, resample
from medunet.transforms.spatial import rotation_matrix

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SCIPY_PADDING = {"reflection": "mirror", "border": "nearest", "zeros": "grid-constant"}


def ramp(*shape, dtype=torch.float32):
    """An image whose every voxel is different."""
    return torch.arange(math.prod(shape), dtype=dtype).reshape(1, *shape)


def random_deformation(size, volume, *, points, sigma, seed=0):
    rng = np.random.default_rng(seed)
    dims = len(size)
    angles = rng.uniform(-1, 1, 1 if dims == 2 else 3)
    return Deformation(
        size=size,
        center=(np.asarray(volume) - 1) / 2 + rng.uniform(-3, 3, dims),
        matrix=rotation_matrix(angles) @ np.diag(rng.uniform(0.8, 1.2, dims)),
        displacement=rng.normal(size=(*points, dims)) * sigma,
    )


def dense_positions(deformation):
    """The map written out: centre + matrix @ offset + spline of the displacement, in float64."""
    size = deformation.size
    offsets = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in size], indexing="ij"), axis=-1)
    field = deformation.displacement
    for axis, n in enumerate(size):
        knots = np.linspace(0, n - 1, field.shape[axis])
        field = CubicSpline(knots, field, axis=axis, bc_type="natural")(np.arange(n))
    return deformation.center + offsets @ deformation.matrix.T + field


@pytest.mark.parametrize("padding_mode", ["reflection", "border", "zeros"])
@pytest.mark.parametrize(
    ("volume", "size", "points"),
    [((33, 34), (35, 20), (3, 3)), ((17, 12, 15), (9, 21, 14), (3, 2, 4)), ((1, 12, 15), (5, 9, 8), (2, 3, 3))],
)
def test_resampling_agrees_with_scipy(volume, size, points, padding_mode):
    rng = np.random.default_rng(1)
    image, label = rng.normal(size=volume), rng.integers(0, 65536, volume)
    deformation = random_deformation(size, volume, points=points, sigma=2.0)
    positions = np.moveaxis(dense_positions(deformation), -1, 0)
    got = resample(torch.tensor(image, dtype=torch.float32)[None], deformation, padding_mode=padding_mode)[0]
    want = map_coordinates(image, positions, order=1, mode=SCIPY_PADDING[padding_mode])
    # in 3D positions are rounded a little more (_sample_planes), and in noise neighbours differ by up to 6
    assert np.abs(got.numpy() - want).max() < (1e-4 if len(size) == 2 else 5e-4)
    got = resample(torch.tensor(label)[None], deformation, mode="nearest", padding_mode=padding_mode)[0]
    want = map_coordinates(label, positions, order=0, mode=SCIPY_PADDING[padding_mode])
    on_a_boundary = (np.abs(positions - np.floor(positions) - 0.5) < 1e-4).any(axis=0)
    assert np.array_equal(got.numpy()[~on_a_boundary], want[~on_a_boundary])
    assert on_a_boundary.mean() < 0.01


@pytest.mark.parametrize("channels", [1, 2])
def test_positions_in_a_large_volume_are_exact_to_thousandths_of_a_voxel(channels):
    ramps = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in (150, 140, 130)], indexing="ij"))
    deformation = random_deformation((64, 80, 70), (150, 140, 130), points=(4, 4, 4), sigma=2.0)
    want = np.moveaxis(dense_positions(deformation), -1, 0)
    inside = ((want > 0) & (want < np.array([149, 139, 129])[:, None, None, None])).all(axis=0)
    for first in range(4 - channels):
        ramp = ramps[first : first + channels]
        got = resample(ramp, deformation, padding_mode="border").numpy()
        assert np.abs(got - want[first : first + channels])[:, inside].max() < 2e-3
    assert inside.mean() > 0.5


def test_bicubic_resampling_follows_a_ramp():
    image = torch.arange(40.0).repeat(30, 1)[None]
    deformation = random_deformation((15, 16), (30, 40), points=(3, 3), sigma=1.0)
    want = dense_positions(deformation)[..., 1]
    # PyTorch's cubic kernel (a = -0.75) reproduces a ramp to about 0.05 of its step, not exactly.
    assert np.abs(resample(image, deformation, mode="bicubic")[0].numpy() - want).max() < 0.06


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64])
def test_identity_copies_the_crop(dtype):
    for shape in ((33, 34), (12, 9, 11)):
        image = ramp(*shape).remainder(100).to(dtype)
        patch = resample(image, Deformation.crop([2] * len(shape), [n - 5 for n in shape]), mode="nearest")
        assert torch.equal(patch, image[(slice(None), *[slice(2, n - 3) for n in shape])])
        assert patch.dtype == dtype


def test_flips_and_quarter_turns_are_exact():
    for shape in ((7, 10), (6, 5, 9)):
        axes = list(range(len(shape)))
        flipped = RandDeformd("image", flip_axes=axes, flip_prob=1.0)({"image": ramp(*shape)})["image"]
        assert torch.equal(flipped, ramp(*shape).flip([axis + 1 for axis in axes]))
    image = ramp(7, 9, 9)
    for turns in (1, 2, 3, -1):
        turn = Deformation((7, 9, 9), np.array([3.0, 4.0, 4.0]), rotation_matrix([turns * math.pi / 2, 0, 0]))
        assert torch.equal(resample(image, turn), torch.rot90(image, -turns, (2, 3)))


def test_a_quarter_turn_of_an_anisotropic_volume_respects_its_spacing():
    # 2 mm rows and 1 mm columns: turned by a quarter, a bar of 4 rows x 2 columns covers 1 row x 8 columns.
    image = torch.zeros(1, 15, 31)
    image[:, 6:9, 15] = 1.0
    deform = RandDeformd("image", rotate_range=math.pi / 2, voxel_spacing=(2.0, 1.0))
    deform.R = FixedUniform(math.pi / 2)
    turned = deform({"image": image})["image"][0]
    assert turned[7].sum() > 4
    assert turned[[5, 9]].sum() == pytest.approx(0, abs=1e-4)


class FixedUniform(np.random.RandomState):
    def __init__(self, value):
        super().__init__(0)
        self.value = value

    def uniform(self, low, high):
        return self.value if low < self.value <= high else (low + high) / 2


def test_magnification_above_one_enlarges_objects():
    image = torch.zeros(1, 33, 33)
    image[:, 12:21, 12:21] = 1.0
    enlarged = RandDeformd("image", scale_range=(2.0, 2.0))({"image": image})["image"]
    assert enlarged.sum().item() == pytest.approx(4 * 81, rel=0.02)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NEEDS_CUDA])])
def test_all_keys_follow_the_same_map(device):
    image = torch.rand(1, 20, 22, 24, device=device).gt(0.5).float()
    options = {"rotate_range": 0.5, "elastic_sigma": 1.5, "scale_range": (0.8, 1.2), "flip_axes": [0, 2]}
    deform = RandDeformd(["image", "label"], mode="nearest", **options)
    item = deform({"image": image, "label": image.to(torch.uint8)})
    assert torch.equal(item["image"], item["label"].float())
    assert item["image"].device.type == device
    assert 0 < item["image"].sum() < item["image"].numel()


def test_the_random_state_alone_determines_the_patch(tmp_path):
    def patch(seed, volume):
        deform = RandDeformd("image", spatial_size=(4, 5, 6), rotate_range=0.3, elastic_sigma=0.5)
        return deform.set_random_state(seed)({"image": volume})["image"]

    np.save(tmp_path / "volume.npy", ramp(20, 20, 20).numpy())
    mapped = np.load(tmp_path / "volume.npy", mmap_mode="r")
    assert torch.equal(patch(3, ramp(20, 20, 20)), patch(3, mapped))
    assert not torch.equal(patch(3, mapped), patch(4, mapped))


def test_without_deformation_the_patch_is_a_copied_crop():
    image = MetaTensor(ramp(33, 34), meta={"filename_or_obj": "a.png"})
    deform = RandDeformd("image", spatial_size=(5, 6), prob=0.0, rotate_range=1.0, elastic_sigma=3.0)
    patch = deform({"image": image})["image"]
    assert patch.meta["filename_or_obj"] == "a.png"
    row, column = divmod(int(patch[0, 0, 0]), 34)
    assert torch.equal(patch.as_tensor()[0], ramp(33, 34)[0, row : row + 5, column : column + 6])
    patch.zero_()
    assert torch.equal(image.as_tensor(), ramp(33, 34))


def test_a_random_crop_reaches_every_position():
    deform = RandDeformd("image", spatial_size=(2, 3)).set_random_state(0)
    corners = {int(deform({"image": ramp(4, 5)})["image"][0, 0, 0]) for _ in range(200)}
    assert corners == {row * 5 + column for row in range(3) for column in range(3)}


def test_a_small_volume_is_centred_in_the_patch_and_padded_per_key():
    deform = RandDeformd(["image", "label"], spatial_size=(3, 5), padding_mode=["reflection", "zeros"])
    item = deform({"image": torch.tensor([[[1.0, 2.0, 3.0]]]), "label": torch.tensor([[[1, 2, 3]]])})
    assert item["image"].tolist() == [[[2, 1, 2, 3, 2]] * 3]
    assert item["label"].tolist() == [[[0] * 5, [0, 1, 2, 3, 0], [0] * 5]]


@pytest.mark.parametrize("indices", ["absent", "flat", "per class"])
def test_foreground_voxels_are_sampled_evenly_and_centred(indices):
    label = torch.zeros(1, 15, 16, 17, dtype=torch.uint8)
    label[0, 2, 3, 4] = label[0, 2, 8, 9] = label[0, 11, 12, 8] = 1
    label[0, 7, 7, 7] = 255  # the ignore index is not foreground
    item = {"label": label, "place": ramp(*label.shape[1:])}
    flat = np.flatnonzero(label.numpy() == 1)
    if indices != "absent":
        item["label_indices"] = flat if indices == "flat" else [flat, np.array([], dtype=np.int64)]
    deform = RandDeformd(["label", "place"], spatial_size=(3, 3, 3), foreground_key="label", foreground_prob=1.0)
    deform.set_random_state(0)
    centres = [int(deform(item)["place"][0, 1, 1, 1]) for _ in range(300)]
    counts = [centres.count(place) for place in flat]
    assert sum(counts) == 300
    assert min(counts) > 60


@pytest.mark.parametrize("is_listed", [False, True])
def test_other_patches_are_centred_on_annotated_voxels_including_background(is_listed):
    label = torch.full((1, 40, 41), 255, dtype=torch.uint8)
    label[0, 20, 5:36] = 0
    label[0, 30, 8] = 1
    item = {"label": label}
    if is_listed:
        item |= {"label_indices": foreground_indices(label), "label_annotated_indices": [annotated_indices(label)]}
    deform = RandDeformd("label", spatial_size=(3, 3), foreground_key="label", foreground_prob=0.5)
    deform.set_random_state(0)
    centres = [int(deform(item)["label"][0, 1, 1]) for _ in range(200)]
    assert set(centres) == {0, 1}
    assert 70 < centres.count(0) < 120


def test_onehot_labels_are_smoother_than_nearest_and_have_no_other_values():
    label = torch.zeros(1, 12, 12, dtype=torch.uint8)
    label[:, 3:9, 3:9] = 2
    deformation = Deformation((48, 48), np.array([5.5, 5.5]), rotation_matrix([0.4]) / 4)
    onehot, nearest = (resample(label, deformation, mode=mode).int() for mode in ("onehot", "nearest"))
    assert onehot.unique().tolist() == [0, 2]
    edges = [int((x.diff(dim=1) != 0).sum() + (x.diff(dim=2) != 0).sum()) for x in (onehot, nearest)]
    assert edges[0] <= edges[1]
    assert (onehot != nearest).float().mean() < 0.05


def test_a_foreground_patch_stays_inside_the_volume():
    label = torch.zeros(1, 9, 9, dtype=torch.int32)
    deform = RandDeformd(["image", "label"], spatial_size=(5, 5), foreground_key="label", foreground_prob=1.0)
    assert deform({"image": ramp(9, 9), "label": label})["label"].shape == (1, 5, 5)  # without foreground anywhere
    label[0, 0, 8] = 40_000_001
    item = deform({"image": ramp(9, 9), "label": label})
    assert torch.equal(item["image"], ramp(9, 9)[:, :5, 4:])
    assert torch.equal(item["label"], label[:, :5, 4:])


def test_autocast_does_not_round_positions():
    deformation = random_deformation((20, 21, 22), (300, 300, 300), points=(3, 3, 3), sigma=2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = deformation.positions(torch.device("cpu"))
    assert np.abs(np.moveaxis(got.numpy(), 0, -1) - dense_positions(deformation)).max() < 1e-4


def test_interpolated_integers_become_floats():
    for angle in (0.0, 0.5):
        deform = RandDeformd("image", rotate_range=angle, mode="bilinear")
        assert deform({"image": ramp(8, 8, dtype=torch.int32)})["image"].dtype == torch.float32


def test_keys_of_different_shape_are_rejected():
    item = {"image": MetaTensor(torch.zeros(1, 5, 5), meta={"filename_or_obj": "a.png"}), "label": torch.zeros(1, 5, 6)}
    with pytest.raises(DataError, match=r"a\.png.*differ in shape"):
        RandDeformd(["image", "label"])(item)


@pytest.mark.parametrize(
    "options",
    [
        *({"mode": "cubic"}, {"padding_mode": "mirror"}, {"scale_range": (0.0, 1.0)}, {"scale_range": (1.2, 0.8)}),
        *({"control_points": 1}, {"elastic_sigma": -1.0}, {"crop_center": "middle"}, {"foreground_prob": 0.5}),
        *({"spatial_size": (4, 0)}, {"spatial_size": (4, 4)}, {"mode": "bicubic"}),  # the last two in 3D
    ],
)
def test_invalid_options_are_rejected(options):
    with pytest.raises(ConfigError):
        RandDeformd("image", **options)({"image": torch.zeros(1, 8, 8, 8)})
