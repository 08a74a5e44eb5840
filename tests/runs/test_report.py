"""The report of real runs, written by the command and opened in a real browser."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Capture, Medunet
from PIL import Image
from small import SMALL_3D

from medunet.bundle import find_bundle, plan_bundle, specialise
from medunet.bundle.explain import settings_of
from medunet.config import to_json
from medunet.datasets import open_dataset
from medunet.errors import ConfigError, DataError
from medunet.io import read_volume, write_volume
from medunet.prediction.evaluation import label_maps
from medunet.runs import evaluate_bundle, report_runs, train_bundle
from medunet.runs.results import find_run, read_cases
from medunet.runs.seen import seen_cases
from medunet.runtime import load_checkpoint, save_weights
from medunet.trust import record_weights

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


def document_of(page: Path) -> Any:
    [text] = re.findall(r'id="document">(.*?)</script>', page.read_text())
    return json.loads(text)


def test_a_run_is_evaluated_before_it_is_reported(runs: list[Path], page: Path) -> None:
    cases = read_cases(runs[0] / "evaluation" / "metrics.json")
    assert sorted(case["name"] for case in cases) == ["ct_000", "ct_002", "ct_004"]
    assert document_of(page)["cases"] == [case["name"] for case in sorted(cases, key=lambda case: case["mean_dice"])]
    figures = {path.relative_to(page.parent / "report_figures").as_posix() for path in page.parent.rglob("*.png")}
    assert {"scores.png", "curves.png"} < figures
    assert len([name for name in figures if name.startswith("cases/")]) == 3


@pytest.mark.parametrize("name", ["page", "both"])
def test_the_page_contains_no_path(name: str, runs: list[Path], request: pytest.FixtureRequest) -> None:
    text = re.sub(r'id="picture-\d+">.*?</script>', "", request.getfixturevalue(name).read_text(encoding="utf-8"))
    assert str(runs[0].parent) not in text
    assert not re.search(r"(?<![\w<./&:])/(tmp|home|root|work|usr|var|etc|mnt|data)\b", text)
    assert ".nii" not in text


def test_a_run_of_a_plan_reports_planned_and_changed_values(volumes: Path, tmp_path: Path) -> None:
    plan = plan_bundle(volumes, tmp_path / "plan", measure=False, device="cpu").plan
    decisions = {decision.id: decision for decision in plan.decisions}
    changed = f"set for this run; the plan chose {decisions['batch_size'].value}"
    run = specialise(tmp_path / "plan", tmp_path / "run", {"batch_size": 77})
    settings = {setting.id: setting for setting in settings_of(run)}
    assert settings["batch_size"].why.startswith(changed)
    assert settings["batch_size"].is_changed and settings["label_names"].is_changed  # beside the shipped bundle
    assert settings["patch_size"].why.startswith(decisions["patch_size"].reason)
    readme = (run / "docs" / "README.md").read_text()
    assert f"| `batch_size` | `77` | {changed} |" in readme
    assert decisions["batch_size"].reason not in readme
    # by hand, afterwards
    config = json.loads((run / "configs" / "train.json").read_text())
    (run / "configs" / "train.json").write_text(json.dumps({**config, "batch_size": 78}))
    assert {setting.id: setting for setting in settings_of(run)}["batch_size"].why.startswith(changed)


def test_cases_that_were_trained_on_are_reported(runs: list[Path], volumes: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    evaluate_bundle(run, volumes, run / "evaluation", section="all", device="cpu")
    dataset = open_dataset(volumes)
    results = find_run(run, "run", dataset, seen_cases(run, dataset), notes=[]).results
    assert results.trained_on == {"ct_001", "ct_003", "ct_005"}
    assert results.notes[0].startswith("3 of 6 measured cases were trained on")
    assert "some of them trained on" in results.facts["measured"]


def test_without_its_data_set_a_report_has_no_slices(runs: list[Path], page: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    config = json.loads((run / "configs" / "evaluate.json").read_text())
    (run / "configs" / "evaluate.json").write_text(json.dumps({**config, "dataset_dir": str(tmp_path / "gone")}))
    written = report_runs([run], tmp_path / "r.html", figures=False)
    assert (written.cases, written.drawn, written.figures) == (3, 0, None)
    (run / "evaluation" / "metrics.json").unlink()
    written = report_runs([run], tmp_path / "r.html", figures=False)
    assert written.cases == 0
    assert "Not evaluated: its data set is missing" in written.page.read_text()


def test_damaged_results_and_no_run_are_errors(runs: list[Path], page: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    (run / "evaluation" / "metrics.json").write_text("[")
    with pytest.raises(DataError, match="not a table of metrics"):
        report_runs([run], tmp_path / "r.html")
    with pytest.raises(ConfigError, match="wrong number of runs"):
        report_runs([], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_the_command_writes_beside_the_run(runs: list[Path], page: Path, medunet: Medunet, capsys: Capture) -> None:
    assert medunet("report", runs[0], "--title", "Mine", "--no-figures", "--force") == 0
    assert "3 cases, 3 with slices" in capsys.readouterr().out
    assert "<h1>Mine</h1>" in (runs[0] / "report.html").read_text()


def test_a_cross_validation_of_pictures_is_reported_out_of_fold(
    folds_2d: Path, tmp_path: Path, browser: ReportBrowser
) -> None:
    written = report_runs([folds_2d], tmp_path / "r.html", device="cpu")
    assert (written.cases, written.drawn) == (4, 4)
    text = written.page.read_text()
    for part in ("each by the fold that held it out", "V_rand", "Post-processing", "<code>folds</code>"):
        assert part in text
    assert "<code>fold</code>" not in text  # not that of its first member
    assert "HD95 (px)" in text and " mm" not in re.sub(r"<table.*?</table>", "", text, flags=re.DOTALL)  # no scale
    browser.open(written.page)
    assert browser.errors == []
    assert browser.run("document.querySelectorAll('#planes canvas').length") == 1
    assert browser.run("document.querySelector('#planes canvas').clientHeight") > 300
    assert browser.run("document.querySelectorAll('input[type=range]').length") == 0  # no slider for a picture
    assert browser.run("document.querySelectorAll('#table tbody tr').length") == 4


# what the viewer draws: colours of lines, and whether they are dashed
DRAWN = """
(() => {
  const strokes = [];
  const real = CanvasRenderingContext2D.prototype.stroke;
  CanvasRenderingContext2D.prototype.stroke = function () {
    strokes.push([this.strokeStyle, this.getLineDash().length]);
  };
  window.dispatchEvent(new Event("resize"));
  document.querySelector("#reference").dispatchEvent(new Event("input"));
  CanvasRenderingContext2D.prototype.stroke = real;
  return strokes;
})()
"""
# whether the bands of errors have a bright pixel
ERRORS = """
[...document.querySelectorAll('.band')].some(band => {
  const pixels = band.getContext('2d').getImageData(0, 0, band.width, band.height).data;
  return pixels.some((v, i) => i % 4 === 0 && v > 200 && pixels[i + 3]);
})
"""


def test_regions_are_drawn_and_measured_as_unions(volumes: Path, tmp_path: Path, browser: ReportBrowser) -> None:
    data, run = Path(shutil.copytree(volumes, tmp_path / "data")), tmp_path / "run"
    manifest = json.loads((data / "dataset.json").read_text())
    manifest["labels"] = {"background": 0, "trunk": [1, 2, 3, 4, 5], "abdomen": [2, 3, 4], "liver": 2}
    manifest["regions_class_order"] = [1, 3, 2]
    (data / "dataset.json").write_text(json.dumps(manifest))
    changes = {**SMALL_3D, "epochs": 1, "folds": 3, "tracking_uri": ""}
    train_bundle(find_bundle("unet_3d"), data, run, changes=changes, device="cpu")
    evaluate_bundle(run, data, run / "evaluation", device="cpu")
    # a perfect prediction, written as medunet writes regions
    for name, path in label_maps(run / "evaluation" / "predictions").items():
        reference = read_volume(data / "labelsTr" / f"{name}.nii.gz")
        painted = np.asarray(reference.image[0])
        painted = np.where(np.isin(painted, (3, 4)), 3, np.where(painted == 5, 1, painted)).astype(np.uint8)
        write_volume(painted, path, affine=reference.image.affine)
    document = document_of(report_runs([run], tmp_path / "r.html", device="cpu").page)
    assert [entry["name"] for entry in document["classes"]] == ["trunk", "abdomen", "liver"]
    assert sorted(document["unions"]) == [[1, 2], [1, 2, 3]]
    browser.open(tmp_path / "r.html")
    assert browser.errors == []
    assert browser.run(ERRORS) is False
    lines = browser.run(DRAWN)
    assert {colour for colour, dashed in lines if not dashed} == {entry["colour"] for entry in document["classes"]}
    assert {colour for colour, dashed in lines if dashed} == {"#ffffff"}
    assert (tmp_path / "r_figures" / "cases").is_dir()


@pytest.mark.parametrize(("name", "dark"), [("page", False), ("both", True)])
def test_the_browser_reports_no_error_and_phones_scroll_vertically_only(
    name: str, dark: bool, browser: ReportBrowser, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(name)
    browser.open(path, dark=dark)
    assert browser.errors == []
    assert not [url for url in browser.requests if not url.startswith(("data:", "file:", "blob:"))]
    picture = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("L"))
    assert (np.median(picture) < 80) == dark
    browser.open(path, width=PHONE, height=844)
    assert browser.run("document.documentElement.scrollWidth") == PHONE
    wide = (
        "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg') && "
        f"e.getBoundingClientRect().right > {PHONE} + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert browser.run(wide) == []
    assert browser.errors == []


def test_a_click_sorts_the_table_and_typing_filters_it(page: Path, browser: ReportBrowser) -> None:
    browser.open(page)
    rows = "[...document.querySelectorAll('#table tbody tr')]"
    names = f"{rows}.filter(r => !r.hidden).map(r => r.cells[0].dataset.value)"
    dice = f"{rows}.map(r => +r.cells[1].dataset.value)"
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
    assert browser.run("document.querySelectorAll('#planes .row:not(.sliders)').length") == 2  # one row per run
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
    point = browser.run("+document.querySelector('use[data-case]').dataset.case")
    browser.click("use[data-case]")
    browser.wait(f"document.querySelector('#viewer').dataset.case === page.cases[{point}]")
    assert browser.errors == []


def test_outlines_are_closed_and_have_the_area_of_the_mask(page: Path, browser: ReportBrowser) -> None:
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
    # a single voxel is a diamond of half its area; corners of the square are cut by an eighth each
    assert browser.run(script) == [-0.5, 0.5, 0.5, 0.5, 15.5]
