"""Networks for images of all kinds: integers only."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.networks import UNetShapes
from medunet.planning.topology import (
    CPU_2D,
    CPU_3D,
    CPU_3D_LONG,
    GPU_2D,
    GPU_3D,
    Topology,
    choose_budget,
    choose_topology,
    target_spacing,
)


def shapes_of(topology: Topology) -> UNetShapes:
    strides, kernels = topology.strides, topology.kernel_sizes
    return UNetShapes.of(len(topology.patch_size), len(topology.channels), strides=strides, kernel_sizes=kernels)


def test_hippocampus_on_a_cpu_is_the_measured_bundle() -> None:
    found = choose_topology((35, 50, 36), (1, 1, 1), budget=CPU_3D, n_cases=200)
    assert found.patch_size == (40, 56, 40)
    assert found.channels == (16, 48, 96, 192)
    assert found.batch_size == 4
    assert set(found.strides) == {(2, 2, 2)}
    assert set(found.kernel_sizes) == {(3, 3, 3)}


def test_cells_in_the_plane_are_the_measured_bundle() -> None:
    found = choose_topology((512, 512), (1, 1), budget=CPU_2D, n_cases=20)
    assert (found.patch_size, found.batch_size) == ((256, 256), 4)
    assert found.channels == (32, 64, 128, 256, 512)


def test_a_gpu_and_hours_get_wider_networks() -> None:
    small = choose_topology((160, 160, 160), (1, 1, 1), budget=choose_budget(3, cuda=False), n_cases=50)
    hours = choose_topology((160, 160, 160), (1, 1, 1), budget=choose_budget(3, cuda=False, seconds=4e4), n_cases=50)
    gpu = choose_topology((160, 160, 160), (1, 1, 1), budget=choose_budget(3, cuda=True), n_cases=50)
    assert small.channels[0] < hours.channels[0] < gpu.channels[0]
    assert math.prod(small.patch_size) < math.prod(hours.patch_size) < math.prod(gpu.patch_size)
    assert gpu.patch_size == (128, 128, 128)


def test_thick_slices_are_neither_halved_nor_convolved_across_at_first() -> None:
    found = choose_topology((320, 320, 30), (0.8, 0.8, 5.0), budget=CPU_3D, n_cases=30)
    assert found.strides[:2] == ((2, 2, 1), (2, 2, 1))
    assert found.strides[2] == (2, 2, 2)
    assert found.kernel_sizes[:2] == ((3, 3, 1), (3, 3, 1))
    assert found.kernel_sizes[2] == (3, 3, 3)
    assert found.patch_size[0] > 3 * found.patch_size[2]


def test_a_huge_image_gets_a_patch_of_equal_sides_in_millimetres() -> None:
    found = choose_topology((512, 512, 500), (0.8, 0.8, 1.0), budget=CPU_3D, n_cases=100)
    sides = [n * s for n, s in zip(found.patch_size, (0.8, 0.8, 1.0), strict=True)]
    assert max(sides) <= 1.4 * min(sides)
    assert math.prod(found.patch_size) <= CPU_3D.patch_voxels


@pytest.mark.parametrize("size", [(3, 3, 3), (10, 12, 9), (64, 64, 1), (64, 64, 3), (5, 40, 7)])
def test_tiny_volumes_get_a_network_of_two_levels_at_least(size: tuple[int, ...]) -> None:
    found = choose_topology(size, (1, 1, 1), budget=CPU_3D, n_cases=10)
    assert len(found.channels) >= 2
    assert shapes_of(found).output_size(found.patch_size) == found.patch_size


def test_an_axis_of_one_voxel_is_not_convolved_across() -> None:
    found = choose_topology((64, 64, 1), (1, 1, 1), budget=CPU_3D, n_cases=10)
    assert {row[2] for row in found.kernel_sizes} == {1}


def test_a_network_in_the_plane_on_volumes_sees_single_planes() -> None:
    found = choose_topology((160, 160, 50), (1, 1, 3), budget=CPU_2D, n_cases=14, flat_axis=2)
    assert found.patch_size == (160, 160, 1)
    assert {row[2] for row in (*found.kernel_sizes, *found.strides)} == {1}
    assert shapes_of(found).halo[2] == 0


def test_smaller_limits_are_kept() -> None:
    found = choose_topology((160, 160, 160), (1, 1, 1), budget=GPU_3D, n_cases=9, patch_voxels=50_000, batch_size=2)
    assert math.prod(found.patch_size) <= 50_000
    assert found.batch_size == 2


def test_every_value_has_a_reason_and_numbers() -> None:
    for decision in choose_topology((35, 50, 36), (1, 1, 1), budget=CPU_3D, n_cases=200).decisions:
        assert decision.reason
        assert decision.numbers


@given(
    size=st.lists(st.integers(1, 700), min_size=2, max_size=3),
    spacing=st.lists(st.floats(0.1, 9), min_size=3, max_size=3),
    cuda=st.booleans(),
    n_cases=st.integers(1, 500),
)
@settings(max_examples=150, deadline=None)
def test_whatever_the_images_the_network_accepts_its_patch(
    size: list[int], spacing: list[float], cuda: bool, n_cases: int
) -> None:
    budget = choose_budget(len(size), cuda=cuda)
    found = choose_topology(size, spacing[: len(size)], budget=budget, n_cases=n_cases)
    shapes = shapes_of(found)
    assert all(edge % stride == 0 for edge, stride in zip(found.patch_size, shapes.total_stride, strict=True))
    assert math.prod(found.patch_size) <= budget.patch_voxels
    assert 2 <= found.batch_size <= 12
    assert math.prod(found.patch_size) * found.batch_size <= max(budget.batch_voxels, 2 * math.prod(found.patch_size))
    assert len(found.channels) == len(found.kernel_sizes) == len(found.strides) + 1


def test_budgets_by_device_and_time() -> None:
    assert choose_budget(2, cuda=False) is CPU_2D
    assert choose_budget(2, cuda=True) is GPU_2D
    assert choose_budget(3, cuda=False, seconds=1800) is CPU_3D
    assert choose_budget(3, cuda=False, seconds=7200) is CPU_3D_LONG
    assert choose_budget(3, cuda=True, seconds=60) is GPU_3D


def test_target_spacing_is_the_median() -> None:
    found = target_spacing([[1, 1, 2], [1, 1, 3], [2, 1, 4]], [[50, 50, 30]] * 3)
    assert found.spacing_mm == (1.0, 1.0, 3.0)
    assert found.size == (50, 50, 30)


def test_a_far_coarser_axis_takes_its_tenth_percentile() -> None:
    spacings = [[0.8, 0.8, 5.0]] * 8 + [[0.8, 0.8, 3.0]] * 2
    found = target_spacing(spacings, [[400, 400, 40]] * 10)
    assert found.spacing_mm == (0.8, 0.8, 3.0)
    assert found.size == (400, 400, 67)
    assert "10th percentile" in found.reason


def test_a_huge_image_is_made_coarser_but_not_beyond_its_structures() -> None:
    spacings, shapes = [[0.9, 0.9, 3.0]] * 3, [[512, 512, 130]] * 3
    thick = target_spacing(spacings, shapes, max_voxels=4e6, thinnest_mm=60)
    assert math.prod(thick.size) <= 4.2e6
    assert thick.spacing_mm[2] == 3.0  # the fine axes first
    thin = target_spacing(spacings, shapes, max_voxels=4e6, thinnest_mm=4.5)
    assert thin.spacing_mm == (1.5, 1.5, 3.0)
    thinner = target_spacing(spacings, shapes, max_voxels=4e6, thinnest_mm=1.0)
    assert thinner.spacing_mm == (0.9, 0.9, 3.0)


def test_a_patch_shows_much_of_the_image_where_structures_stay_thick() -> None:
    spacings, shapes = [[1.0, 1.0, 3.0]] * 3, [[160, 160, 55]] * 3
    plain = target_spacing(spacings, shapes, thinnest_mm=12)
    wide = target_spacing(spacings, shapes, context_voxels=360_000, thinnest_mm=12)
    assert plain.spacing_mm == (1.0, 1.0, 3.0)
    assert math.prod(wide.size) <= 370_000
    assert "shows much of the image" in wide.reason and "12 mm" in wide.numbers
    thin = target_spacing(spacings, shapes, context_voxels=360_000, thinnest_mm=6)
    assert thin.spacing_mm == (1.2, 1.2, 3.0)  # five voxels thick, not beyond
    assert target_spacing([[1.0] * 3] * 3, [[160] * 3] * 3, context_voxels=1, thinnest_mm=99).spacing_mm == (3.0,) * 3


def test_only_short_trainings_on_a_cpu_give_resolution_for_context() -> None:
    assert CPU_3D.context_patches < math.inf
    assert {budget.context_patches for budget in (CPU_3D_LONG, GPU_3D, CPU_2D, GPU_2D)} == {math.inf}
