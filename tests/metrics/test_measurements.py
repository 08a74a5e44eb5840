"""Measurements: against SimpleITK, against every pair of points of the mesh, and the values of the IBSI's phantom."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.distance import pdist
from skimage.measure import marching_cubes, mesh_surface_area

from medunet.metrics import growth, measure_labels

# The digital phantom of the Image Biomarker Standardisation Initiative (Alex Zwanenburg, CC BY 4.0), `[z][y][x]`;
# "." is outside the mask. Its reference values are in the initiative's manual (arXiv 1612.07003).
PHANTOM = """
14411 14611 41641 44641 / 14411 11611 .1311 44611 / 144.. 11111 11.11 11611 / 144.. 11111 11111 11611"""
SPACING = (1.5, 0.8, 3.0)


def blob(seed: int = 0, shape: tuple[int, ...] = (22, 19, 14)) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2, mode="nearest")
    return (noise > np.percentile(noise, 70)).astype(np.uint8)


def measured(mask: np.ndarray, affine: np.ndarray, **options: Any) -> dict[str, Any]:
    (row,) = measure_labels(mask, affine, {"a": [1]}, **options)
    return row


def test_the_phantom_of_the_ibsi_has_its_reference_values() -> None:
    cells = np.array([[list(row) for row in part.split()] for part in PHANTOM.split("/")]).T
    mask = (cells != ".").astype(int)
    image = np.where(cells == ".", "9", cells).astype(float)[None]
    row = measured(mask, np.diag([2.0, 2, 2, 1]), image=image)
    found = [
        row["volume_mm3"],
        row["surface_mm2"],
        row["diameter_mm"],
        row["intensity_mean"],
        row["intensity_std"] ** 2,
    ]
    assert [float(f"{value:.3g}") for value in found] == [592, 388, 13.1, 2.15, 3.05]
    assert [row[f"intensity_{name}"] for name in ("min", "p10", "median", "p90", "max")] == [1, 1, 1, 4, 6]


@pytest.mark.parametrize("seed", range(3))
def test_size_position_and_intensity_are_simpleitks(seed: int) -> None:
    mask, image = blob(seed), np.random.default_rng(seed).gamma(2, 50, (22, 19, 14)).astype(np.float32)
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])
    itk, values = sitk.GetImageFromArray(mask.T), sitk.GetImageFromArray(image.T)
    for one in (itk, values):
        one.SetSpacing(SPACING)
        one.SetDirection(turn.ravel().tolist())
        one.SetOrigin((-10, 20, 5))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * SPACING, (-10, 20, 5)
    row = measured(mask, np.diag([-1, -1, 1, 1]) @ affine, image=image[None])
    shape, intensity = sitk.LabelShapeStatisticsImageFilter(), sitk.LabelIntensityStatisticsImageFilter()
    shape.Execute(itk)
    intensity.Execute(itk, values)
    count = shape.GetNumberOfPixels(1)
    assert row["volume_mm3"] == pytest.approx(shape.GetPhysicalSize(1), rel=1e-9)
    left, posterior, superior = shape.GetCentroid(1)
    assert [row["right_mm"], row["anterior_mm"], row["superior_mm"]] == pytest.approx([-left, -posterior, superior])
    assert [row["x"], row["y"], row["z"]] == pytest.approx(
        itk.TransformPhysicalPointToContinuousIndex(shape.GetCentroid(1))
    )
    assert row["intensity_mean"] == pytest.approx(intensity.GetMean(1), rel=1e-6)
    sample = row["intensity_std"] * math.sqrt(count / (count - 1))  # SimpleITK's is that of a sample
    assert sample == pytest.approx(intensity.GetStandardDeviation(1), rel=1e-6)
    ends = [row["intensity_min"], row["intensity_max"]]
    assert ends == pytest.approx([intensity.GetMinimum(1), intensity.GetMaximum(1)])


@pytest.mark.parametrize("seed", range(3))
def test_surface_and_diameters_are_those_of_the_mesh(seed: int) -> None:
    mask = blob(seed)
    affine = np.diag([*SPACING, 1.0])
    affine[0, 2] = 0.7  # a tilted gantry
    row = measured(mask, affine)
    vertices, faces, *_ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5, method="lorensen")
    points = vertices @ affine[:3, :3].T
    # differs only where a cube and its complement have other triangles
    assert row["surface_mm2"] == pytest.approx(mesh_surface_area(points, faces), rel=0.02)
    assert row["diameter_mm"] == pytest.approx(pdist(points).max(), rel=1e-6)
    slices = {index: points[vertices[:, 2] == index + 1] for index in range(mask.shape[2])}
    longest = {index: pdist(part).max() for index, part in slices.items() if len(part)}
    assert row["long_axis_mm"] == pytest.approx(max(longest.values()), rel=1e-6)
    assert longest[row["axial_slice"]] == pytest.approx(row["long_axis_mm"])
    ball = np.linalg.norm(np.mgrid[-9:10, -9:10, -9:10], axis=0) <= 8.2
    faces_only = mesh_surface_area(*marching_cubes(np.pad(ball, 1).astype(np.float32), 0.5, method="lorensen")[:2])
    assert measured(ball.astype(int), np.eye(4))["surface_mm2"] == pytest.approx(faces_only, rel=1e-6)


def test_the_short_axis_is_the_longest_one_perpendicular_to_the_long_axis() -> None:
    x, y = np.mgrid[-60:61, -60:61] * 0.5
    for degrees in (0, 17, 45, 80):
        turn = np.deg2rad(degrees)
        along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        row = measured(((along / 25) ** 2 + (across / 10) ** 2 <= 1).astype(int), np.diag([0.5, 0.5, 1, 1]))
        assert [row["long_axis_mm"], row["short_axis_mm"]] == pytest.approx([50, 20], abs=0.75)
        assert row["area_mm2"] == pytest.approx(math.pi * 250, rel=0.01)
    corner = np.zeros((9, 9), int)  # the hull of an L; its longest diagonal joins the tips
    corner[0, :7] = corner[:7, 0] = 1
    row = measured(corner, np.eye(4))
    assert row["long_axis_mm"] == pytest.approx(math.hypot(7, 6))
    assert row["short_axis_mm"] < row["long_axis_mm"] / 1.5


def test_the_axial_slice_follows_the_patient_not_the_file() -> None:
    mask = np.zeros((12, 12, 12), int)
    mask[3, 2:11, 4:6] = 1  # 9 along the second axis of the file
    affine = np.eye(4)
    for order in itertools.permutations(range(3)):
        turned = affine[:, [*order, 3]]
        row = measured(mask.transpose(order), turned)
        assert (row["long_axis_mm"], row["axial_slice"]) == (pytest.approx(9, abs=0.3), pytest.approx(4, abs=1))


def test_structures_at_the_border_are_flagged_and_absent_ones_have_no_size() -> None:
    labels = np.zeros((8, 9, 10), int)
    labels[2:4, 2:4, 2:4], labels[0, 5, 5], labels[4, 4, 9] = 1, 2, 3
    rows = measure_labels(labels, np.eye(4), {"a": [1], "b": [2], "ab": [1, 2], "c": [3], "d": [4]})
    assert [row.get("is_cut_off") for row in rows] == [False, True, True, True, None]
    assert [row["volume_mm3"] for row in rows] == [8, 1, 9, 1, 0]
    objects = measure_labels(labels, np.eye(4), {}, objects={1: "cell", 3: "cell"})
    assert [(row["structure"], row["object"]) for row in objects] == [("cell", 1), ("cell", 3)]


def test_pictures_are_measured_in_pixels() -> None:
    labels = np.zeros((8, 9), int)
    labels[2:5, 2:6] = 1
    row = measured(labels, np.eye(4), image=np.stack([labels * 3.0, labels * 7.0]), unit="px")
    assert [row[name] for name in ("area_px", "intensity_1_mean", "intensity_2_mean")] == [12, 3, 7]
    assert row["perimeter_px"] == pytest.approx(2 * (2 + 3) + 4 * math.sqrt(0.5))
    assert not [name for name in row if name.endswith("_mm")]


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 0.9, 3)])
@pytest.mark.parametrize("radii", [(6.3, 6.3, 6.3), (14.2, 9, 7)])
def test_a_border_displaced_by_half_a_voxel_changes_the_volume_by_its_uncertainty(
    radii: tuple[float, ...], spacing: tuple[float, ...]
) -> None:
    parts = [axis / radius for axis, radius in zip(np.mgrid[-17:18, -17:18, -17:18], radii, strict=True)]
    row = measured((np.linalg.norm(parts, axis=0) <= 1).astype(int), np.diag([*spacing, 1]))
    voxel = math.prod(spacing)
    larger, smaller = (4 / 3 * math.pi * voxel * math.prod(r + step for r in radii) for step in (0.5, -0.5))
    assert row["volume_uncertainty_mm3"] == pytest.approx((larger - smaller) / 2, rel=0.12)


def test_growth_is_beyond_its_uncertainty_or_not() -> None:
    grid = np.linalg.norm(np.mgrid[-17:18, -17:18, -17:18], axis=0)
    before, same, larger, gone = (measured((grid <= radius).astype(int), np.eye(4)) for radius in (8, 8.3, 12, -1))
    assert not growth(before, same)["is_beyond_uncertainty"]
    result = growth(before, larger)
    assert result["is_beyond_uncertainty"]
    assert result["volume_change_percent"] == pytest.approx(100 * (12**3 / 8**3 - 1), rel=0.03)
    assert result["long_axis_change_mm"] == pytest.approx(8, abs=1)
    assert growth(before, gone)["volume_change_percent"] == -100
    assert growth(gone, larger)["volume_change_percent"] is None
