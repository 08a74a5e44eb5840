"""Boxes and points: the numbers that are drawn are those of the cases."""

import re

import pytest
from matplotlib.figure import Figure
from scores import case

from medunet.metrics import paired_difference
from medunet.reports.distributions import class_scores, difference_panel, distribution_panels
from medunet.reports.panels import LIGHT, VARIABLES, render_svg

CASES = [case(f"case {found}", found) for found in (0, 4, 7, 8, 9, 10)]


def test_a_missed_class_has_dice_zero_and_no_distance() -> None:
    dice = class_scores(CASES, "liver", "dice")
    assert dice["case 0"] == 0
    assert dice["case 4"] == pytest.approx(2 * 4 / 14)
    assert list(class_scores(CASES, "liver", "hd95_mm")) == [f"case {found}" for found in (4, 7, 8, 9, 10)]
    assert class_scores(CASES, "spleen", "dice") == {}
    assert [panel.title for panel in distribution_panels({"A": CASES[:1]}, names=["liver"])] == ["Dice"]


def test_every_point_belongs_to_a_case() -> None:
    panels = distribution_panels({"A": CASES}, names=["liver", "spleen"])
    assert [panel.title for panel in panels] == ["Dice", "mean surface distance (mm)", "HD95 (mm)"]
    for panel, count in zip(panels, (6, 5, 5), strict=True):
        (gid,) = panel.points
        assert len(panel.points[gid]) == count
        svg = render_svg(panel, key="test")
        group = svg[svg.index(f'id="{gid}"') :]
        assert len(re.findall("<use ", group[: group.index("</g>\n</g>")])) == count


def test_points_are_at_their_scores_and_runs_are_side_by_side() -> None:
    panel = distribution_panels({"A": CASES, "B": CASES[:3]}, names=["liver"])[0]
    axes = Figure().subplots()
    panel.draw(axes, LIGHT)
    drawn = [entry.get_offsets()[:, 1].tolist() for entry in axes.collections if entry.get_gid()]
    scores = list(class_scores(CASES, "liver", "dice").values())
    assert drawn == [scores, scores[:3]]
    assert [len(cases) for cases in panel.points.values()] == [6, 3]
    assert all(letter in render_svg(panel, key="t") for letter in (">A<", ">B<"))


def test_differences_are_drawn_with_their_cases() -> None:
    difference = paired_difference({"a": 0.5, "b": 0.6}, {"a": 0.7, "b": 0.5})
    panel = difference_panel("B - A", {"liver": difference}, key="d", colour="#123456")
    axes = Figure().subplots()
    panel.draw(axes, LIGHT)
    assert axes.collections[0].get_offsets()[:, 1].tolist() == pytest.approx([0.2, -0.1])
    assert list(panel.points.values()) == [("a", "b")]


def test_svg_uses_the_colours_of_the_page_and_no_external_resource() -> None:
    svg = render_svg(distribution_panels({"A": CASES}, names=["liver"])[0], key="k")
    assert svg.startswith("<svg viewBox=") and svg.rstrip().endswith("</svg>")
    assert "var(--soft)" in svg and not any(colour in svg for colour in VARIABLES)
    assert "http" not in svg and "<style" not in svg and "DejaVu" not in svg
    assert svg == render_svg(distribution_panels({"A": CASES}, names=["liver"])[0], key="k")
    other = render_svg(distribution_panels({"A": CASES}, names=["liver"])[0], key="other")
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (svg, other)]
    assert ids[0] & ids[1] == {"strip-dice-0"}
