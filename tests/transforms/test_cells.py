"""Cells are parted by whole borders, not by their weakest point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medunet.errors import ConfigError, DataError
from medunet.transforms import SeparateCellsd, separate_cells


def two_cells(*shape: int, membrane: float = 0.9, gap: int = 1) -> np.ndarray:
    """Interior everywhere but for a plane of membrane across the last axis, with a gap in its middle."""
    interior = np.ones(shape)
    middle = shape[-1] // 2
    interior[..., middle] = 1 - membrane
    hole = tuple(slice(length // 2 - gap // 2, length // 2 - gap // 2 + gap) for length in shape[:-1])
    interior[(*hole, middle)] = 1.0
    return interior


def test_a_gap_joins_no_cells() -> None:
    interior = two_cells(33, 35)
    cells = separate_cells(interior)
    assert sorted(np.unique(cells)) == [1, 2]
    assert (cells[:, :17] == cells[0, 0]).all()
    assert (cells[:, 18:] == cells[0, 34]).all()


def test_volumes_have_cells_too() -> None:
    cells = separate_cells(two_cells(13, 15, 17, gap=2))
    assert sorted(np.unique(cells)) == [1, 2]
    assert (cells[..., :8] == cells[0, 0, 0]).all()


@pytest.mark.parametrize(
    ("membrane", "boundary", "n_cells"), [(0.9, 0.2, 2), (0.9, 0.95, 1), (0.3, 0.5, 1), (0.3, 0.1, 2)]
)
def test_the_mean_of_the_border_decides(membrane: float, boundary: float, n_cells: int) -> None:
    cells = separate_cells(two_cells(33, 35, membrane=membrane), boundary=boundary)
    assert cells.max() == n_cells


def test_a_wide_gap_joins_cells() -> None:
    assert separate_cells(two_cells(33, 35, gap=25)).max() == 1


def test_shallow_basins_are_one() -> None:
    noise = np.random.default_rng(0).uniform(0.97, 1.0, (64, 64))
    assert separate_cells(noise, boundary=0.0).max() == 1
    assert separate_cells(noise, boundary=0.0, depth=0.0).max() > 1


def test_every_voxel_belongs_to_a_cell() -> None:
    cells = separate_cells(np.random.default_rng(1).uniform(0, 1, (33, 34)))
    assert cells.dtype == np.int32
    assert cells.min() == 1
    assert len(np.unique(cells)) == cells.max()


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_constant_map_is_one_cell(value: float) -> None:
    assert separate_cells(np.full((9, 9), value)).max() == 1


@pytest.mark.parametrize("interior", [np.ones(4), np.ones((1, 2, 3, 4)), np.full((4, 4), 1.5), np.full((4, 4), np.nan)])
def test_what_is_no_probability_map_is_refused(interior: np.ndarray) -> None:
    with pytest.raises(DataError, match="need a probability map"):
        separate_cells(interior)


@pytest.mark.parametrize("options", [{"boundary": 1.5}, {"depth": -0.1}])
def test_options_are_probabilities(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be in"):
        separate_cells(np.ones((4, 4)), **options)


def test_dictionary_form_takes_the_channel_and_keeps_the_grid() -> None:
    interior = torch.from_numpy(two_cells(33, 35)).float()
    image = MetaTensor(torch.stack([1 - interior, interior]), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])))
    out = SeparateCellsd("pred")({"pred": image})["pred"]
    assert out.shape == (1, 33, 35)
    assert torch.equal(out.affine, image.affine)
    assert np.array_equal(out[0].numpy(), separate_cells(interior.numpy()))
