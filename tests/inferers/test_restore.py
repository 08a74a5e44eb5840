"""Labels and probabilities on the source grid are those of interpolating the logits everywhere."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.errors import GeometryError
from medunet.inferers import GridMap, OverlapTileInferer, restore_labels
from medunet.inferers.restore import restore_probabilities
from medunet.networks import UNet
from medunet.transforms import paint_regions


def interpolated(logits: torch.Tensor, grid: GridMap) -> tuple[torch.Tensor, torch.Tensor]:
    """Return torch's own interpolation in float64, and which voxels are outside the network's grid."""
    index = torch.from_numpy(np.moveaxis(np.indices(grid.source_size), 0, -1)).double()
    position = index @ torch.as_tensor(grid.matrix[:-1, :-1]).T + torch.as_tensor(grid.matrix[:-1, -1])
    last = torch.tensor(grid.grid_size) - 1
    normalised = (2 * position / last.clamp(min=1) - 1).flip(-1)[None]
    values = F.grid_sample(logits[None].double(), normalised, align_corners=True, padding_mode="border")[0]
    return values, ((position < -1) | (position > last + 1)).any(-1)


def scaled(source: tuple[int, ...], size: tuple[int, ...], offset: float = 0.0) -> GridMap:
    """Return the map between grids of the same field of view, but for an offset in voxels."""
    factors = [(g - 1) / max(s - 1, 1) for g, s in zip(size, source, strict=True)]
    matrix = np.diag([*factors, 1.0])
    matrix[:-1, -1] = offset
    return GridMap(matrix, source, size)


sizes = st.integers(1, 14)


@st.composite
def parallel_grids(draw: st.DrawFn) -> GridMap:
    dims = draw(st.sampled_from([2, 3]))
    source, size = (draw(st.tuples(*[sizes] * dims)) for _ in range(2))
    matrix = np.zeros((dims + 1, dims + 1))
    matrix[-1, -1] = 1
    for axis, to in enumerate(draw(st.permutations(range(dims)))):
        factor, flipped = (size[to] - 1) / max(source[axis] - 1, 1) or 0.3, draw(st.booleans())
        matrix[to, axis] = -factor if flipped else factor
        matrix[to, -1] = draw(st.floats(-2.5, 2.5)) + (size[to] - 1 if flipped else 0)
    return GridMap(matrix, source, size)


@st.composite
def oblique_grids(draw: st.DrawFn) -> GridMap:
    angle, shear, scale = draw(st.floats(0.05, 3.0)), draw(st.floats(-0.3, 0.3)), draw(st.floats(0.3, 2.0))
    matrix = np.eye(4)
    matrix[:3, :3] = [[np.cos(angle), -np.sin(angle), shear], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    matrix[:3] *= scale
    matrix[:3, 3] = [3.0, -2.0, 1.0]
    return GridMap(matrix, (9, 11, 7), (10, 8, 6))


@settings(max_examples=60, deadline=None)
@given(grid=parallel_grids() | oblique_grids(), classes=st.sampled_from([1, 2, 3, 14]), seed=st.integers(0, 9))
def test_labels_regions_and_probabilities_match_full_interpolation(grid, classes, seed):
    # random logits: nearly every cell is mixed
    logits = torch.randn(classes, *grid.grid_size, generator=torch.Generator().manual_seed(seed))
    values, outside = interpolated(logits, grid)
    expected = values.argmax(0) if classes > 1 else values[0] > 0
    gaps = values.topk(2, dim=0).values.diff(dim=0)[0] if classes > 1 else values[0]
    clear = (gaps.abs() > 1e-5) | outside  # else rounding may decide
    assert torch.equal(restore_labels(logits, grid)[clear], expected.byte().masked_fill(outside, 0)[clear])
    order = torch.randperm(classes).add(1).tolist()
    clear = (values.abs().amin(0) > 1e-5) | outside
    expected = paint_regions(values, order).masked_fill(outside, 0)
    assert torch.equal(restore_labels(logits, grid, order=order)[clear], expected[clear])
    for activation, expected in (("softmax", values.softmax(0)), ("sigmoid", values.sigmoid())):
        expected[:, outside] = 0
        if activation == "softmax":
            expected[0, outside] = 1
        out = torch.full((classes, *grid.source_size), float("nan"))
        restore_probabilities(logits, grid, activation=activation, out=out)
        torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tile", [28, (24, 36, 28)])
def test_tiles_write_every_voxel_once_with_the_label_of_the_whole_image(tile):
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
        expected = restore_labels(OverlapTileInferer(None)(image, network)[0], grid)
    assert (out != expected).sum() <= 2  # the network rounds otherwise in another window


def test_one_channel_is_decided_by_its_threshold():
    logits = torch.tensor([[[-1.0, 1.0]]])
    grid = scaled((1, 5), (1, 2))  # -1, -0.5, 0, 0.5, 1
    assert restore_labels(logits, grid).tolist() == [[0, 0, 0, 1, 1]]
    assert restore_labels(logits, grid, threshold=-0.7).tolist() == [[0, 1, 1, 1, 1]]


def test_cropped_voxels_are_background():
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
    with pytest.raises(GeometryError, match="must be finite"):
        GridMap(np.full((3, 3), np.nan), (5, 5), (5, 5))
