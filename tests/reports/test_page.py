"""The page: whole, self-contained, and safe with any name."""

import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scores import case as scored
from scores import em_case

from medunet.errors import DataError
from medunet.metrics import CaseScores
from medunet.reports import (
    RunResults,
    Setting,
    lowest_dice,
    pack_case,
    render_curves,
    write_figures,
    write_report,
)

LABELS = {"background": 0, "liver": 1, "spleen & <kidney>": 2}
EVIL = '<script>alert("x")</script>&\'"><img src=x onerror=alert(1)>'
EPOCH = {"epoch": 1, "iteration": 5, "loss": 1.0, "lr": 1e-3, "seconds": 1.0, "val_dice": {"liver": 0.5}}
VOID = {"meta", "link", "img", "source", "br", "input", "path", "use"}


class Page(HTMLParser):
    """Elements, links and text of a page; elements must be closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data + "\n"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def document(self) -> dict[str, object]:
        return json.loads(self.scripts[0])


def case(name: str, found: int) -> CaseScores:
    return scored(name, found, labels=LABELS)


def results(name: str = "run", **changes: object) -> RunResults:
    settings = [Setting("epochs", "60", "set for this run", True), Setting("seed", EVIL, EVIL)]
    values: dict[str, object] = {"cases": [case("good", 9), case(EVIL, 2), case("lost", 0)], "settings": settings}
    values |= {"histories": {"": [EPOCH]}, "facts": {"network": "UNet", EVIL: EVIL}, "notes": [EVIL]}
    return RunResults(name, **{**values, **changes})  # type: ignore[arg-type] # as above


def stack(maps: int = 2):
    places = np.zeros((6, 7, 8), np.uint8)
    places[2:4, 2:5, 2:6] = 1
    return pack_case(np.zeros((1, 6, 7, 8), np.float32), [places] * maps, affine=np.eye(4))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("page") / "r.html"
    stacks = {EVIL: stack(), "good": stack()}
    page = Page(write_report(path, [results()], title=f"run {EVIL}", stacks=stacks))
    assert page.open == []
    return page


def test_the_page_loads_no_external_resource(page: Page) -> None:
    keys = ("src", "href", "srcset", "action", "data", "xlink:href")
    links = [attributes[key] or "" for _, attributes in page.elements for key in keys if key in attributes]
    assert links and all(link.startswith(("data:", "#")) for link in links)
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy["content"] or "")
    # the one address is the name of SVG's namespace
    assert set(re.findall(r"https?://[^\s\"'<>)]+", page.source)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\((?!#)", page.source)


def test_names_are_escaped(page: Page) -> None:
    scripts = [script.get("type", "code") for script in page.all("script")]
    assert scripts == ["application/json"] * 3 + ["code"]
    assert not page.all("img")
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert f"run {EVIL}" in page.text
    assert page.text.count(EVIL) >= 6  # headline, note, fact, its key, setting, its reason, table
    assert "spleen & <kidney>" in page.text
    assert page.document["cases"] == ["lost", EVIL, "good"]


def test_the_worst_case_comes_first_and_cases_without_a_number_come_last(page: Page) -> None:
    rows = [row["data-case"] for row in page.all("tr") if "data-case" in row]
    assert rows == ["0", "1", "2"]
    buttons = [entry["title"] for entry in page.all("button") if entry.get("class") == "link"]
    assert buttons == ["lost", EVIL, "good"]
    nothing: CaseScores = {"name": "nothing", "mean_dice": math.nan, "classes": {}}
    runs = [results(cases=[case("a", 9), case("b", 8), nothing]), results(cases=[case("a", 1), case("b", 9)])]
    assert list(lowest_dice(runs)) == ["a", "b", "nothing"]  # by the worst Dice of any run


def test_cells_show_scores_or_the_reason_for_a_missing_score(page: Page) -> None:
    row = page.source[page.source.index('data-case="0"') :]
    cells = re.findall(r"<td[^>]*>(?:<button[^>]*>)?([^<]*)", row[: row.index("</tr>")])
    assert cells[:5] == ["lost", "0.000", "0.000", "missed", "missed"]
    assert cells[5:] == ["absent"] * 3
    good = page.source[page.source.index('data-case="2"') :]
    assert f'data-value="{case("good", 9)["mean_dice"]}"' in good[: good.index("</tr>")]


def test_points_of_the_figures_lead_to_their_cases_by_unique_ids(page: Page) -> None:
    points = page.document["points"]
    assert isinstance(points, dict)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(points) <= set(ids)
    assert points["strip-dice-0"] == [2, 1, 0]  # in the order of the run's cases


def test_several_runs_are_shown_side_by_side(tmp_path: Path) -> None:
    first = results("first", cases=[case(f"c{n}", n) for n in range(1, 10)])
    second = results("second", cases=[case(f"c{n}", n + 1) for n in range(1, 9)], settings=[Setting("epochs", "90")])
    path = write_report(
        tmp_path / "r.html", [first, second], title="two", stacks={"c1": stack(3), "c9": stack(2)}, maps={"c9": ["A"]}
    )
    found = Page(path)
    assert found.open == []
    assert "on\n8 cases that both have" in found.text
    assert "0.008" in found.text  # 2 / 2^8: all eight rise
    assert {"mean Dice A", "mean Dice B", "B - A"} <= set(found.text.split("\n"))
    pictures = [json.loads(text) for text in found.scripts[1:3]]
    assert [picture["letters"] for picture in pictures] == [["A", "B"], ["A"]]
    changed = [row["data-changed"] for row in found.all("tr") if "data-changed" in row]
    assert changed == ["yes", "yes"]
    figures = write_figures(tmp_path / "figures", [first, second])
    assert [path.name for path in figures] == ["scores.png", "differences.png", "curves.png"]
    widths = [
        Image.open(io.BytesIO(render_curves(history))).width for history in ([EPOCH], [{**EPOCH, "val_dice": {}}])
    ]
    assert widths[0] == 2 * widths[1]  # Dice has a panel only if there was validation
    with pytest.raises(DataError, match="without epochs"):
        render_curves([])


def test_a_cross_validation_shows_folds_and_cleaning(tmp_path: Path) -> None:
    groups = {"good": "fold 0", EVIL: "fold 1", "lost": "fold 1"}
    cleaning = [["class", "used"], ["liver", "yes"]]
    run = results(groups=groups, histories={"fold 0": [EPOCH], "fold 1": [EPOCH]}, cleaning=cleaning)
    found = Page(write_report(tmp_path / "r.html", [run], title="cv"))
    assert found.open == []
    assert found.text.count("fold 1") >= 3
    assert "Post-processing" in found.text


def test_a_case_is_marked_if_an_evaluated_run_was_trained_on_it(tmp_path: Path) -> None:
    # the second run was measured on the first two cases, and trained on the first and the third
    first = results("first", cases=[case("one", 3), case("two", 4), case("three", 5)])
    second = results("second", cases=[case("one", 9), case("two", 9)], trained_on=frozenset({"one", "three"}))
    found = Page(write_report(tmp_path / "r.html", [first, second], title="t"))
    assert [line for line in found.text.split("\n") if line.startswith("trained on")] == ["trained on by B"]


def test_a_run_without_metrics_shows_its_curves_and_a_bare_run_is_accepted(tmp_path: Path) -> None:
    found = Page(write_report(tmp_path / "r.html", [results(cases=())], title="training"))
    assert found.open == []
    assert not [table for table in found.all("table") if table.get("id") == "table"]
    assert "Training" in found.text
    assert "Results" not in found.text
    assert Page(write_report(tmp_path / "r.html", [RunResults("empty")], title="empty")).open == []


def test_calibrated_runs_have_a_reliability_diagram(tmp_path: Path) -> None:
    before = {"bins": [[0.6, 0.5, 0.4], [0.9, 0.7, 0.6]], "ece": 0.16}
    after = {"bins": [[0.6, 0.5, 0.4], [0.9, 0.9, 0.6]], "ece": 0.04}
    runs = [results("a", reliability={"before": before, "after": after, "temperature": 2.0}), results("b")]
    text = write_report(tmp_path / "r.html", runs, title="x").read_text()
    assert "A before calibration, error 0.1600" in text
    assert "A after calibration, error 0.0400" in text
    assert "B after" not in text
    assert 'href="#probabilities"' in text
    assert {path.stem for path in write_figures(tmp_path, runs)} >= {"reliability"}
    assert "#probabilities" not in write_report(tmp_path / "r.html", [results()], title="x").read_text()


def test_em_scores_have_tiles_and_columns(tmp_path: Path) -> None:
    found = Page(write_report(tmp_path / "r.html", [RunResults("em", cases=[em_case("em_16")])], title="EM"))
    assert found.text.count("1.0000") == 4  # V_rand and V_info, tile and column
