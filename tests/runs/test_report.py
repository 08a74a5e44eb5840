"""The report of real runs, made by the command and opened in a real browser."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from small import SMALL_3D

from medunet.bundle import find_bundle, plan_bundle, specialise
from medunet.bundle.explain import settings_of
from medunet.config import to_json
from medunet.datasets import open_dataset
from medunet.errors import ConfigError, DataError
from medunet.io import read_volume, write_volume
from medunet.runs import evaluate_bundle, report_runs, train_bundle
from medunet.runs.results import find_run, read_cases
from medunet.runtime import load_checkpoint, save_weights
from medunet.trust import record_weights

if TYPE_CHECKING:
    from .conftest import ReportBrowser

# MONAI and ignite warn about themselves
pytestmark = pytest.mark.filterwarnings("ignore")

PHONE = 390


@pytest.fixture(scope="module")
def runs(run_3d: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of other weights, evaluated on the same three cases."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [Path(shutil.copytree(run_3d, folder / name)) for name in ("seed_0", "seed_1")]
    weights = load_checkpoint(runs[1] / "models" / "model.pt")["model"]
    save_weights({name: tensor.flip(0) for name, tensor in weights.items()}, runs[1] / "models" / "model.pt")
    record_weights(runs[1], to_text=to_json)
    return runs


@pytest.fixture(scope="module")
def page(runs: list[Path]) -> Path:
    return report_runs(runs[:1], runs[0] / "report.html", device="cpu").page


@pytest.fixture(scope="module")
def both(runs: list[Path], page: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_runs(runs, tmp_path_factory.mktemp("both") / "both.html", device="cpu").page


def test_a_run_that_was_not_measured_is_measured(runs: list[Path], page: Path) -> None:
    cases = read_cases(runs[0] / "evaluation" / "metrics.json")
    assert sorted(case["name"] for case in cases) == ["ct_000", "ct_002", "ct_004"]
    document = json.loads(re.search(r'id="document">(.*?)</script>', page.read_text()).group(1))  # type: ignore[union-attr]
    assert document["cases"] == [case["name"] for case in sorted(cases, key=lambda case: case["mean_dice"])]
    figures = {path.relative_to(page.parent / "report_figures").as_posix() for path in page.parent.rglob("*.png")}
    assert {"scores.png", "curves.png"} < figures
    assert len([name for name in figures if name.startswith("cases/")]) == 3


@pytest.mark.parametrize("name", ["page", "both"])
def test_no_path_is_in_the_page(name: str, runs: list[Path], request: pytest.FixtureRequest) -> None:
    text = re.sub(r'id="picture-\d+">.*?</script>', "", request.getfixturevalue(name).read_text(encoding="utf-8"))
    assert str(runs[0].parent) not in text
    assert not re.search(r"(?<![\w<./&:])/(tmp|home|root|work|usr|var|etc|mnt|data)\b", text)
    assert ".nii" not in text


def test_values_say_why_they_are_as_they_are(runs: list[Path]) -> None:
    found = {setting.id: setting for setting in settings_of(runs[0])}
    assert found["epochs"].value == "2" and found["epochs"].is_changed
    assert found["epochs"].why.startswith("set for this run, unet_3d has 55")
    assert found["label_names"].why.startswith("taken from the data")
    assert not found["learning_rate"].is_changed
    assert "a number of steps" in found["steps_per_epoch"].why
    assert "dataset_dir" not in found and "tracking_uri" not in found and "store_dir" not in found


def test_a_run_of_a_plan_says_what_was_planned_and_what_was_changed(volumes: Path, tmp_path: Path) -> None:
    plan = plan_bundle(volumes, tmp_path / "plan", measure=False, device="cpu").plan
    chosen = next(decision for decision in plan.decisions if decision.id == "batch_size")
    run = specialise(tmp_path / "plan", tmp_path / "run", {"batch_size": 77})
    found = {setting.id: setting for setting in settings_of(run)}
    assert found["batch_size"].why.startswith(f"set for this run; the plan chose {chosen.value}")
    assert found["batch_size"].is_changed and found["label_names"].is_changed  # beside the shipped bundle
    patch = next(decision for decision in plan.decisions if decision.id == "patch_size")
    assert found["patch_size"].why.startswith(patch.reason)
    readme = (run / "docs" / "README.md").read_text()
    assert f"| `batch_size` | `77` | set for this run; the plan chose {chosen.value} |" in readme
    assert chosen.reason not in readme
    # by hand, afterwards
    config = json.loads((run / "configs" / "train.json").read_text())
    (run / "configs" / "train.json").write_text(json.dumps({**config, "batch_size": 78}))
    found = {setting.id: setting for setting in settings_of(run)}
    assert found["batch_size"].why.startswith(f"set for this run; the plan chose {chosen.value}")


def test_cases_that_were_trained_on_are_told(runs: list[Path], volumes: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    evaluate_bundle(run, volumes, run / "evaluation", section="all", device="cpu")
    results = find_run(run, "run", dataset=open_dataset(volumes)).results
    assert results.trained_on == {"ct_001", "ct_003", "ct_005"}
    assert results.notes[0].startswith("3 of 6 measured cases were trained on")
    assert "some of them trained on" in results.facts["measured"]


def test_a_case_that_was_left_out_moves_no_other_between_training_and_validation(volumes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(volumes, tmp_path / "data"))
    image = data / "imagesTr" / "ct_000.nii.gz"
    image.write_bytes(image.read_bytes()[:-2000])  # its header is whole, so it is one of the data set's cases
    changes = {**SMALL_3D, "epochs": 1, "folds": 2, "tracking_uri": ""}
    run = tmp_path / "run"
    train_bundle(find_bundle("unet_3d"), data, run, changes=changes, device="cpu", skip_bad=True)
    evaluate_bundle(run, data, run / "evaluation", device="cpu")
    results = find_run(run, "run", dataset=open_dataset(data)).results
    assert [case["name"] for case in results.cases] == ["ct_001", "ct_003", "ct_005"]
    assert results.trained_on == {"ct_002", "ct_004"}
    assert not results.notes
    assert results.facts["measured"].endswith("validation of fold 0")


def test_a_moved_data_set_costs_the_slices_only(runs: list[Path], page: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    config = json.loads((run / "configs" / "evaluate.json").read_text())
    (run / "configs" / "evaluate.json").write_text(json.dumps({**config, "dataset_dir": str(tmp_path / "gone")}))
    written = report_runs([run], tmp_path / "r.html", figures=False)
    assert (written.cases, written.drawn, written.figures) == (3, 0, None)
    (run / "evaluation" / "metrics.json").unlink()
    written = report_runs([run], tmp_path / "r.html", figures=False)
    assert written.cases == 0
    assert "Not evaluated: its data set is missing" in written.page.read_text()


def test_broken_results_and_no_run_are_errors(runs: list[Path], page: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    (run / "evaluation" / "metrics.json").write_text("[")
    with pytest.raises(DataError, match="not a table of metrics"):
        report_runs([run], tmp_path / "r.html")
    with pytest.raises(ConfigError, match="about one run or several"):
        report_runs([], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_the_command_writes_beside_the_run(
    runs: list[Path], page: Path, medunet: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert medunet("report", runs[0], "--title", "Mine", "--no-figures") == 0
    assert "3 cases, 3 with slices" in capsys.readouterr().out
    assert "<h1>Mine</h1>" in (runs[0] / "report.html").read_text()
    assert medunet("report", "unet_3d") == 2
    assert "no such bundle" in capsys.readouterr().err


def test_a_cross_validation_of_pictures_is_shown_out_of_fold(
    folds_2d: Path, tmp_path: Path, browser: ReportBrowser
) -> None:
    written = report_runs([folds_2d], tmp_path / "r.html", device="cpu")
    assert (written.cases, written.drawn) == (4, 4)
    text = written.page.read_text()
    assert "each by the fold that held it out" in text
    assert "V_rand" in text and "Cleaning after the network" in text
    assert "<code>folds</code>" in text and "<code>fold</code>" not in text  # not that of its first member
    assert "HD95 (px)" in text and " mm" not in re.sub(r"<table.*?</table>", "", text, flags=re.DOTALL)  # no scale
    browser.open(written.page)
    assert browser.errors == []
    assert browser.run("document.querySelectorAll('#planes canvas').length") == 1  # no slider for a picture
    assert browser.run("document.querySelector('#planes canvas').clientHeight") > 300
    assert browser.run("document.querySelectorAll('input[type=range]').length") == 0
    assert browser.run("document.querySelectorAll('#table tbody tr').length") == 4


DRAWN = """
(() => {
  const strokes = [];
  const real = CanvasRenderingContext2D.prototype.stroke;
  CanvasRenderingContext2D.prototype.stroke = function () {
    strokes.push([this.strokeStyle, this.getLineDash().length]);
  };
  window.dispatchEvent(new Event("resize"));
  const box = document.querySelector("#reference");
  box.dispatchEvent(new Event("input"));
  CanvasRenderingContext2D.prototype.stroke = real;
  return strokes;
})()
"""
"""What the viewer draws: colours of lines, and whether they are dashed."""


def test_regions_are_drawn_and_measured_as_the_unions_that_they_are(
    volumes: Path, tmp_path: Path, browser: ReportBrowser
) -> None:
    data = Path(shutil.copytree(volumes, tmp_path / "data"))
    manifest = json.loads((data / "dataset.json").read_text())
    manifest["labels"] = {"background": 0, "trunk": [1, 2, 3, 4, 5], "abdomen": [2, 3, 4], "liver": 2}
    manifest["regions_class_order"] = [1, 3, 2]
    (data / "dataset.json").write_text(json.dumps(manifest))
    changes = {**SMALL_3D, "epochs": 1, "folds": 3, "tracking_uri": ""}
    train_bundle(find_bundle("unet_3d"), data, tmp_path / "run", changes=changes, device="cpu")
    evaluate_bundle(tmp_path / "run", data, tmp_path / "run" / "evaluation", device="cpu")
    # a perfect prediction, written as medunet writes regions
    found = find_run(tmp_path / "run", "run", dataset=open_dataset(data))
    for name, path in found.predictions.items():
        reference = read_volume(data / "labelsTr" / f"{name}.nii.gz")
        painted = np.asarray(reference.image[0])
        painted = np.where(np.isin(painted, (3, 4)), 3, np.where(painted == 5, 1, painted)).astype(np.uint8)
        write_volume(painted, path, affine=reference.image.affine)
    written = report_runs([tmp_path / "run"], tmp_path / "r.html", device="cpu")
    document = json.loads(re.search(r'id="document">(.*?)</script>', written.page.read_text()).group(1))  # type: ignore[union-attr]
    assert [entry["name"] for entry in document["classes"]] == ["trunk", "abdomen", "liver"]
    assert sorted(document["unions"]) == [[1, 2], [1, 2, 3]]
    browser.open(written.page)
    assert browser.errors == []
    # reference and prediction mean the same wherever they are
    band = "[...document.querySelectorAll('.band')].some(band => {const pixels = band.getContext('2d').getImageData("
    band += (
        "0, 0, band.width, band.height).data; return pixels.some((v, i) => i % 4 === 0 && v > 200 && pixels[i + 3])})"
    )
    assert browser.run(band) is False
    lines = browser.run(DRAWN)
    assert {colour for colour, dashed in lines if not dashed} == {entry["colour"] for entry in document["classes"]}
    assert {colour for colour, dashed in lines if dashed} == {"#ffffff"}
    assert (tmp_path / "r_figures" / "cases").is_dir()


@pytest.mark.parametrize("name", ["page", "both"])
@pytest.mark.parametrize("dark", [False, True])
def test_the_browser_has_nothing_to_complain_of(
    name: str, dark: bool, browser: ReportBrowser, request: pytest.FixtureRequest
) -> None:
    browser.open(request.getfixturevalue(name), dark=dark)
    assert browser.errors == []
    assert not [url for url in browser.requests if not url.startswith(("data:", "file:", "blob:"))]
    picture = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("L"))
    assert (np.median(picture) < 80) == dark


@pytest.mark.parametrize("name", ["page", "both"])
def test_a_phone_scrolls_down_only(name: str, browser: ReportBrowser, request: pytest.FixtureRequest) -> None:
    browser.open(request.getfixturevalue(name), width=PHONE, height=844)
    assert browser.run("document.documentElement.scrollWidth") == PHONE
    wide = (
        "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg') && "
        f"e.getBoundingClientRect().right > {PHONE} + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert browser.run(wide) == []
    assert browser.errors == []


def test_a_click_sorts_the_table_and_typing_filters_it(page: Path, browser: ReportBrowser) -> None:
    browser.open(page)
    names = (
        "[...document.querySelectorAll('#table tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].dataset.value)"
    )
    dice = "[...document.querySelectorAll('#table tbody tr')].map(r => +r.cells[1].dataset.value)"
    worst_first = browser.run(dice)
    assert worst_first == sorted(worst_first)
    browser.click("#table tr + tr th:nth-child(2) button")
    assert browser.run(dice) == worst_first[::-1]
    browser.click("#table tr + tr th:nth-child(1) button")
    assert browser.run(names) == ["ct_000", "ct_002", "ct_004"]
    assert browser.run("document.querySelector('#case').options[0].text") == "ct_000"  # the viewer follows
    browser.click("#filter")
    browser("Input.insertText", text="004")
    assert browser.run(names) == ["ct_004"]
    assert browser.run("document.querySelector('#count').textContent") == "1 of 3 cases"
    assert browser.errors == []


def test_the_slider_moves_through_the_slices(page: Path, browser: ReportBrowser) -> None:
    browser.open(page)
    caption = "document.querySelector('#planes .caption').textContent"
    picture = "document.querySelector('#planes canvas').toDataURL()"
    assert browser.run("document.querySelectorAll('#planes .row:not(.sliders) canvas').length") == 3
    before, drawn = browser.run(caption), browser.run(picture)
    slices = browser.run("+document.querySelector('#planes input[type=range]').max")
    assert re.fullmatch(rf"axial \d+/{slices}", before)
    browser.click("#planes input[type=range]", x=0.02)
    assert browser.run(caption) == f"axial 1/{slices}"
    browser.press("ArrowRight", 39)
    assert browser.run(caption) == f"axial 2/{slices}"
    assert browser.run(picture) != drawn
    browser.click("#planes .plane:nth-child(2) canvas", y=0.99)  # the lowest row of the coronal plane
    assert browser.run(caption) == f"axial {slices}/{slices}"
    assert browser.errors == []


def test_contours_can_be_hidden_and_cases_chosen(both: Path, browser: ReportBrowser) -> None:
    browser.open(both)
    assert browser.run("document.querySelectorAll('#planes .row:not(.sliders)').length") == 2  # a row a run
    picture = "[...document.querySelectorAll('#planes canvas')].map(c => c.toDataURL()).join()"
    everything = browser.run(picture)
    browser.click("#reference")
    without = browser.run(picture)
    assert without != everything
    browser.click("#predictions")
    assert browser.run(picture) != without
    first = browser.run("document.querySelector('#viewer').dataset.case")
    browser.click("#next")
    browser.wait(f"document.querySelector('#viewer').dataset.case !== '{first}'")
    point = browser.run("(() => { const p = document.querySelector('use[data-case]'); return +p.dataset.case; })()")
    browser.click("use[data-case]")
    browser.wait(f"document.querySelector('#viewer').dataset.case === page.cases[{point}]")
    assert browser.errors == []


def test_outlines_close_and_enclose(page: Path, browser: ReportBrowser) -> None:
    browser.open(page)
    # a square with a hole, a single voxel at the border, and two voxels that touch at a corner
    script = """(() => {
      const rows = 7, columns = 9, mask = new Uint8Array(rows * columns);
      for (let r = 1; r < 5; r++) for (let c = 1; c < 5; c++) mask[r * columns + c] = 1;
      mask[2 * columns + 2] = 0; mask[6 * columns] = 1; mask[1 * columns + 6] = mask[2 * columns + 7] = 1;
      const area = (line) => line.reduce((sum, [x, y], i) => {
        const [u, v] = line[(i + 1) % line.length]; return sum + (x * v - u * y) / 2; }, 0);
      return outlines(mask, rows, columns).map(area).map((a) => Math.round(a * 100) / 100).sort((a, b) => a - b);
    })()"""
    # a voxel alone is a diamond of half its area; corners of the square are cut by an eighth each
    assert browser.run(script) == [-0.5, 0.5, 0.5, 0.5, 15.5]
