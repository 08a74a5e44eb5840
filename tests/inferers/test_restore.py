"""Interpolating only where classes meet gives the labels of interpolating everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.errors import GeometryError
from medunet.inferers import GridMap, OverlapTileInferer, restore_labels
from medunet.inferers.restore import Nodes
from medunet.networks import UNet


def everywhere(logits: torch.Tensor, grid: GridMap, threshold: float = 0.0) -> torch.Tensor:
    """Interpolate every voxel by the same arithmetic, then decide."""
    index = np.indices(grid.source_size).reshape(len(grid.source_size), -1)
    place = grid.matrix[:-1, :-1] @ index + grid.matrix[:-1, -1:]
    outside = np.zeros(place.shape[1], bool)
    corners, fractions = [], []
    for axis, size in enumerate(grid.grid_size):
        outside |= (place[axis] < -1) | (place[axis] > size)
        clamped = np.clip(place[axis], 0, size - 1)
        corners.append(torch.from_numpy(np.floor(clamped).astype(np.int64)))
        fractions.append(torch.from_numpy((clamped - np.floor(clamped)).astype(np.float32)))
    labels = Nodes(logits).labels(corners, fractions, threshold, ())
    labels[torch.from_numpy(outside)] = 0
    return labels.view(grid.source_size)


def smooth(*size: int, classes: int = 4, seed: int = 0, blob: int = 4) -> torch.Tensor:
    """Logits of blobs, as networks give them."""
    noise = torch.randn(1, classes, *[max(2, n // blob) for n in size], generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size, mode={1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)])[0]


def scaled(source: tuple[int, ...], size: tuple[int, ...], offset: float = 0.0) -> GridMap:
    """Both grids cover the same field of view, but for an offset in voxels."""
    factors = [(g - 1) / max(s - 1, 1) for g, s in zip(size, source, strict=True)]
    matrix = np.diag([*factors, 1.0])
    matrix[:-1, -1] = offset
    return GridMap(matrix, source, size)


sizes = st.integers(1, 14)


@settings(max_examples=60, deadline=None)
@given(
    dims=st.sampled_from([2, 3]),
    source=st.tuples(sizes, sizes, sizes),
    size=st.tuples(sizes, sizes, sizes),
    classes=st.sampled_from([1, 2, 3, 14]),
    order=st.permutations(range(3)),
    flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    offset=st.floats(-2.5, 2.5),
    seed=st.integers(0, 9),
)
def test_boundary_only_equals_interpolation_everywhere(*, dims, source, size, classes, order, flips, offset, seed):
    source, size = source[:dims], size[:dims]
    order = [axis for axis in order if axis < dims]
    matrix = np.eye(dims + 1)
    matrix[:dims, :dims] = 0
    for axis in range(dims):
        factor = (size[order[axis]] - 1) / max(source[axis] - 1, 1) or 0.3
        matrix[order[axis], axis] = -factor if flips[axis] else factor
        matrix[order[axis], -1] = offset + (size[order[axis]] - 1 if flips[axis] else 0)
    grid = GridMap(matrix, source, size)
    # random logits: nearly every cell is mixed
    logits = torch.randn(classes, *size, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(restore_labels(logits, grid), everywhere(logits, grid))


@settings(max_examples=25, deadline=None)
@given(angle=st.floats(-3.1, 3.1), shear=st.floats(-0.3, 0.3), scale=st.floats(0.3, 2.0), seed=st.integers(0, 9))
def test_grids_oblique_to_each_other(angle, shear, scale, seed):
    turn = np.array([[np.cos(angle), -np.sin(angle), shear], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = scale * turn
    matrix[:3, 3] = [3.0, -2.0, 1.0]
    grid = GridMap(matrix, (9, 11, 7), (10, 8, 6))
    logits = torch.randn(3, 10, 8, 6, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(restore_labels(logits, grid), everywhere(logits, grid))


@pytest.mark.parametrize(("source", "size"), [((33, 34, 35), (17, 30, 12)), ((20, 21, 22), (41, 21, 30))])
def test_labels_are_those_of_torchs_own_interpolation(source, size):
    logits = smooth(*size)
    theirs = F.interpolate(logits[None], source, mode="trilinear", align_corners=True)[0]
    ours = restore_labels(logits, scaled(source, size))
    differ = ours != theirs.argmax(0)
    top = theirs.topk(2, dim=0).values
    assert differ.sum() <= 3
    assert (top[0] - top[1])[differ].lt(1e-5).all()  # rounding, where two classes are equal


@pytest.mark.parametrize("tile", [28, (24, 36, 28)])
def test_tiles_write_every_voxel_once_and_as_the_whole(tile):
    torch.manual_seed(0)
    network = UNet(3, 1, 4, channels=(4, 6), norm="batch").eval()
    image = torch.randn(1, 1, 45, 38, 33)
    grid = scaled((60, 31, 80), (45, 38, 33), offset=0.2)
    inferer = OverlapTileInferer(tile)
    out = torch.full(grid.source_size, 99, dtype=torch.uint8)
    with torch.inference_mode():
        tiles = list(inferer.tiles(image, network, extend=1))
        assert len(tiles) > 4
        for part in tiles:
            before = out.clone()
            restore_labels(part.logits, grid, out=out, region=part.region)
            assert (before[before != out] == 99).all()  # nothing is written a second time with another label
        expected = everywhere(OverlapTileInferer(None)(image, network)[0], grid)
    assert (out != expected).sum() <= 2  # the network rounds otherwise in another window


def test_one_channel_is_decided_by_its_threshold():
    logits = torch.tensor([[[-1.0, 1.0]]])
    grid = scaled((1, 5), (1, 2))  # -1, -0.5, 0, 0.5, 1
    assert restore_labels(logits, grid).tolist() == [[0, 0, 0, 1, 1]]
    assert restore_labels(logits, grid, threshold=-0.7).tolist() == [[0, 1, 1, 1, 1]]


def test_voxels_that_were_cropped_away_are_background():
    logits = torch.zeros(2, 4, 1)
    logits[1] = 1
    matrix = np.eye(3)
    matrix[0, 2] = -3  # the network saw the source's voxels 3 to 6; 2 and 7 are within one voxel of them
    labels = restore_labels(logits, GridMap(matrix, (10, 1), (4, 1)))
    assert labels[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]


def test_lowest_class_wins_a_tie():
    values = torch.tensor([[[1.0, 0.0, 2.0]], [[1.0, 3.0, 2.0]], [[0.0, 3.0, 2.0]]])
    assert restore_labels(values, GridMap(np.eye(3), (1, 3), (1, 3))).tolist() == [[0, 1, 0]]


def test_logits_of_another_size_are_rejected():
    with pytest.raises(GeometryError, match="do not fit"):
        restore_labels(torch.zeros(2, 4, 4), scaled((8, 8), (5, 4)))
    with pytest.raises(GeometryError, match="no place"):
        GridMap(np.full((3, 3), np.nan), (5, 5), (5, 5))
