"""Cells are separated by whole borders, not by their weakest point."""

import numpy as np
import pytest

from medunet.errors import ConfigError, DataError
from medunet.transforms import separate_cells


def two_cells(*shape: int, membrane: float = 0.9, gap: int = 1) -> np.ndarray:
    """Return an interior with a plane of membrane across the last axis that has a gap in its middle."""
    interior = np.ones(shape)
    middle = shape[-1] // 2
    interior[..., middle] = 1 - membrane
    hole = tuple(slice(length // 2 - gap // 2, length // 2 - gap // 2 + gap) for length in shape[:-1])
    interior[(*hole, middle)] = 1.0
    return interior


@pytest.mark.parametrize(("shape", "gap"), [((33, 35), 1), ((13, 15, 17), 2)])
def test_a_gap_does_not_join_cells(shape: tuple[int, ...], gap: int) -> None:
    cells = separate_cells(two_cells(*shape, gap=gap))
    middle = shape[-1] // 2
    assert sorted(np.unique(cells)) == [1, 2]
    assert len(np.unique(cells[..., :middle])) == len(np.unique(cells[..., middle + 1 :])) == 1


@pytest.mark.parametrize(
    ("membrane", "boundary", "gap", "n_cells"),
    [(0.9, 0.2, 1, 2), (0.9, 0.95, 1, 1), (0.3, 0.5, 1, 1), (0.3, 0.1, 1, 2), (0.9, 0.5, 25, 1)],
)
def test_cells_are_separated_by_the_mean_of_their_border(
    membrane: float, boundary: float, gap: int, n_cells: int
) -> None:
    assert separate_cells(two_cells(33, 35, membrane=membrane, gap=gap), boundary=boundary).max() == n_cells


def test_shallow_basins_are_merged() -> None:
    noise = np.random.default_rng(0).uniform(0.9, 1.0, (64, 64))
    assert separate_cells(noise, boundary=0.0).max() > 1
    assert separate_cells(noise, boundary=0.1).max() == 1


def test_background_has_no_cells_and_each_component_has_one() -> None:
    interior, mask = np.full((9, 40), 0.2), np.zeros((9, 40), dtype=bool)
    mask[2:7, 2:10] = mask[2:7, 12:20] = mask[8, 39] = True
    cells = separate_cells(interior, mask=mask, boundary=1.0)
    assert np.array_equal(cells > 0, mask)
    assert cells.max() == 3


def test_every_voxel_belongs_to_a_cell() -> None:
    cells = separate_cells(np.random.default_rng(1).uniform(0, 1, (33, 34)))
    assert cells.dtype == np.int32
    assert cells.min() == 1
    assert len(np.unique(cells)) == cells.max()
    for value in (0.0, 0.5, 1.0):
        assert separate_cells(np.full((9, 9), value)).max() == 1


@pytest.mark.parametrize("interior", [np.ones(4), np.ones((1, 2, 3, 4)), np.full((4, 4), 1.5), np.full((4, 4), np.nan)])
def test_other_input_than_probability_maps_is_rejected(interior: np.ndarray) -> None:
    with pytest.raises(DataError, match="need a probability map"):
        separate_cells(interior)
    with pytest.raises(ConfigError, match="must be in"):
        separate_cells(np.ones((4, 4)), boundary=-0.1)
