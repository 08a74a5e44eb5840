"""Network, patch and batch for images of all kinds."""

import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from medunet.networks import UNetShapes
from medunet.planning.topology import CPU_2D, CPU_3D, Topology, choose_budget, choose_topology, target_spacing


def shapes_of(topology: Topology) -> UNetShapes:
    strides, kernels = topology.strides, topology.kernel_sizes
    return UNetShapes(len(topology.patch_size), len(topology.channels), strides=strides, kernel_sizes=kernels)


def test_a_gpu_or_a_long_time_gives_wider_networks() -> None:
    budgets = [choose_budget(3, cuda=False), choose_budget(3, cuda=False, seconds=7200), choose_budget(3, cuda=True)]
    small, hours, gpu = (choose_topology((160, 160, 160), (1, 1, 1), budget=budget, n_cases=50) for budget in budgets)
    assert small.channels[0] < hours.channels[0] < gpu.channels[0]
    assert math.prod(small.patch_size) < math.prod(hours.patch_size) < math.prod(gpu.patch_size)
    assert gpu.patch_size == (128, 128, 128)


def test_a_gpu_with_more_memory_gets_larger_patches_if_there_is_time() -> None:
    whole = choose_budget(3, cuda=True)
    assert choose_budget(3, cuda=True, memory=8e9) == whole
    assert choose_budget(3, cuda=True, memory=22e9).patch_voxels == 2 * whole.patch_voxels
    assert choose_budget(3, cuda=True, memory=140e9).batch_voxels == 4 * whole.batch_voxels
    assert choose_budget(3, cuda=True, memory=140e9, seconds=1800) == whole
    assert choose_budget(3, cuda=True, memory=140e9, seconds=36000).patch_voxels == 4 * whole.patch_voxels
    assert choose_budget(3, cuda=False, memory=140e9) == choose_budget(3, cuda=False)


def test_thick_slices_are_not_pooled_or_convolved_at_the_first_levels() -> None:
    chosen = choose_topology((320, 320, 30), (0.8, 0.8, 5.0), budget=CPU_3D, n_cases=30)
    assert chosen.strides[:2] == ((2, 2, 1), (2, 2, 1))
    assert chosen.strides[2] == (2, 2, 2)
    assert chosen.kernel_sizes[:2] == ((3, 3, 1), (3, 3, 1))
    assert chosen.kernel_sizes[2] == (3, 3, 3)
    assert chosen.patch_size[0] > 3 * chosen.patch_size[2]


def test_a_huge_image_gets_a_patch_of_equal_sides_in_millimetres() -> None:
    chosen = choose_topology((512, 512, 500), (0.8, 0.8, 1.0), budget=CPU_3D, n_cases=100)
    sides = [n * s for n, s in zip(chosen.patch_size, (0.8, 0.8, 1.0), strict=True)]
    assert max(sides) <= 1.4 * min(sides)
    assert math.prod(chosen.patch_size) <= CPU_3D.patch_voxels


def test_2d_networks_on_volumes_take_single_slices() -> None:
    chosen = choose_topology((160, 160, 50), (1, 1, 3), budget=CPU_2D, n_cases=14, flat_axis=2)
    assert chosen.patch_size == (160, 160, 1)
    assert {row[2] for row in (*chosen.kernel_sizes, *chosen.strides)} == {1}
    assert shapes_of(chosen).halo[2] == 0


@given(
    size=st.lists(st.integers(1, 700), min_size=2, max_size=3),
    spacing=st.lists(st.floats(0.1, 9), min_size=3, max_size=3),
    cuda=st.booleans(),
    n_cases=st.integers(1, 500),
)
@example(size=[3, 3, 3], spacing=[1, 1, 1], cuda=False, n_cases=10)
@example(size=[64, 64, 1], spacing=[1, 1, 1], cuda=False, n_cases=10)
@settings(max_examples=100, deadline=None)
def test_each_network_accepts_its_patch(size: list[int], spacing: list[float], cuda: bool, n_cases: int) -> None:
    budget = choose_budget(len(size), cuda=cuda)
    chosen = choose_topology(size, spacing[: len(size)], budget=budget, n_cases=n_cases)
    shapes = shapes_of(chosen)
    assert len(chosen.channels) >= 2
    assert shapes.output_size(chosen.patch_size) == chosen.patch_size
    assert all(edge % stride == 0 for edge, stride in zip(chosen.patch_size, shapes.total_stride, strict=True))
    assert math.prod(chosen.patch_size) <= budget.patch_voxels
    assert 2 <= chosen.batch_size <= 12
    voxels = math.prod(chosen.patch_size)
    assert voxels * chosen.batch_size <= max(budget.batch_voxels, 2 * voxels)


def test_a_much_coarser_axis_uses_the_tenth_percentile_of_its_spacings() -> None:
    spacings = [[0.8, 0.8, 5.0]] * 8 + [[0.8, 0.8, 3.0]] * 2
    chosen = target_spacing(spacings, [[400, 400, 40]] * 10)
    assert chosen.spacing_mm == (0.8, 0.8, 3.0)
    assert chosen.size == (400, 400, 67)
    assert "10th percentile" in chosen.reason


def test_large_images_are_resampled_coarser_as_far_as_structures_allow() -> None:
    spacings, shapes = [[0.9, 0.9, 3.0]] * 3, [[512, 512, 130]] * 3
    thick = target_spacing(spacings, shapes, max_voxels=4e6, thinnest_mm=60)
    assert math.prod(thick.size) <= 4.2e6
    assert thick.spacing_mm[2] == 3.0  # the fine axes first
    thin = target_spacing(spacings, shapes, max_voxels=4e6, thinnest_mm=4.5)
    assert thin.spacing_mm == (1.5, 1.5, 3.0)
    thinner = target_spacing(spacings, shapes, max_voxels=4e6, thinnest_mm=1.0)
    assert thinner.spacing_mm == (0.9, 0.9, 3.0)


def test_spacing_grows_for_context_if_structures_stay_thick() -> None:
    spacings, shapes = [[1.0, 1.0, 3.0]] * 3, [[160, 160, 55]] * 3
    plain = target_spacing(spacings, shapes, thinnest_mm=12)
    wide = target_spacing(spacings, shapes, context_voxels=360_000, thinnest_mm=12)
    assert plain.spacing_mm == (1.0, 1.0, 3.0)
    assert math.prod(wide.size) <= 370_000
    assert "shows much of the image" in wide.reason and "12 mm" in wide.numbers
    thin = target_spacing(spacings, shapes, context_voxels=360_000, thinnest_mm=6)
    assert thin.spacing_mm == (1.2, 1.2, 3.0)  # five voxels thick, not beyond
    assert target_spacing([[1.0] * 3] * 3, [[160] * 3] * 3, context_voxels=1, thinnest_mm=99).spacing_mm == (3.0,) * 3
