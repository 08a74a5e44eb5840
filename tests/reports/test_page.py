"""The page: whole, self-contained, and safe with any name."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medunet.errors import DataError
from medunet.metrics import CaseScores, evaluate_case
from medunet.reports import EpochRecord, render_overlay, write_report

LABELS = {"background": 0, "liver": 1, "spleen & <kidney>": 2}
EVIL = '<script>alert("x")</script>&'
VOID = {"meta", "link", "img", "source", "br"}


class Page(HTMLParser):
    """What a browser would see: elements, links, text; open elements must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data + "\n"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def case(name: str, found: int) -> CaseScores:
    """Return scores of a case whose liver has 10 pixels, of which so many were found."""
    pred, ref = np.zeros((9, 11), int), np.zeros((9, 11), int)
    ref[4, :10] = 1
    pred[4, :found] = 1
    return evaluate_case(pred, ref, spacing_mm=(1, 1), labels=LABELS, name=name)


def picture() -> bytes:
    return render_overlay(np.eye(9), np.eye(9, dtype=int), labels=LABELS, spacing_mm=(1, 1))


@pytest.fixture
def page(tmp_path: Path) -> Page:
    history = [EpochRecord(epoch=1, iteration=5, loss=1.0, lr=1e-3, seconds=1.0, val_dice={"liver": 0.5})]
    cases = [case("good", 9), case(EVIL, 2), case("lost", 0)]
    path = write_report(
        tmp_path / "report.html",
        title=f"run {EVIL}",
        summary={"Device": "cpu", EVIL: EVIL},
        history=history,
        cases=cases,
        overlays={entry["name"]: picture() for entry in cases},
    )
    found = Page(path.read_text(encoding="utf-8"))
    assert found.open == []
    return found


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    links = [
        attributes[key] or ""
        for _, attributes in page.elements
        for key in ("src", "href", "srcset", "action", "data")
        if key in attributes
    ]
    assert len(links) >= 8  # icon, two panels of curves twice, three overlays
    assert all(link.startswith("data:") for link in links)
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy["content"] or "")


def test_every_picture_can_be_decoded(page: Page) -> None:
    sources = [image["src"] or "" for image in page.all("img")] + [
        entry["srcset"] or "" for entry in page.all("source")
    ]
    for source in sources:
        kind, content = source.split(",", 1)
        assert kind == "data:image/png;base64"
        assert min(Image.open(io.BytesIO(base64.b64decode(content))).size) > 0


def test_names_are_text_and_never_elements(page: Page) -> None:
    assert len(page.all("script")) == 1
    assert f"run {EVIL}" in page.text
    assert page.text.count(EVIL) >= 5  # headline, title, key, value, table, caption
    assert "spleen & <kidney>" in page.text


def test_the_worst_case_comes_first(page: Page) -> None:
    rows = [cell["data-value"] for cell in page.all("td") if cell.get("title") is not None]
    assert rows == ["lost", EVIL, "good"]
    assert [image["alt"] for image in page.all("img")][-3:] == [f"Overlay of {name}" for name in rows]


def test_missing_numbers_say_why(page: Page) -> None:
    words = page.text.split("\n")
    assert words.count("missed") == 2  # HD95 and MSD of the lost liver
    assert words.count("absent") == 9  # the second class in three cases


def test_a_report_needs_nothing_but_a_title(tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", title="empty", summary={})
    found = Page(path.read_text(encoding="utf-8"))
    assert found.open == []
    assert not found.all("table")


def test_em_scores_have_tiles_and_columns(tmp_path: Path) -> None:
    ref = np.full((8, 9), 255)
    ref[:, 4] = 0
    scores = evaluate_case(ref, ref, spacing_mm=(1, 1), labels={"background": 0, "cell": 255}, em=True, name="em_16")
    found = Page(write_report(tmp_path / "r.html", title="EM", summary={}, cases=[scores]).read_text(encoding="utf-8"))
    assert len(found.all("button")) == 2 + 3 + 4
    assert found.text.count("1.0000") == 4  # V_rand and V_info, tile and column


def test_only_so_many_overlays_are_shown(tmp_path: Path) -> None:
    cases = [case(f"case {place}", place) for place in range(5)]
    path = write_report(
        tmp_path / "r.html",
        title="many",
        summary={},
        cases=cases,
        overlays={entry["name"]: picture() for entry in cases},
        max_overlays=2,
    )
    found = Page(path.read_text(encoding="utf-8"))
    assert len(found.all("img")) == 2
    assert "2 of 5 cases" in found.text


def test_an_overlay_that_is_no_picture_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no")
    for overlay in (tmp_path / "a.png", tmp_path / "absent.png", b"no"):
        with pytest.raises(DataError, match="overlay of a"):
            write_report(tmp_path / "r.html", title="t", summary={}, cases=[case("a", 1)], overlays={"a": overlay})
    assert not (tmp_path / "r.html").exists()
