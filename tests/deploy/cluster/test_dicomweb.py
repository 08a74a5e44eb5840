"""Series from a DICOMweb store, and segmentations back into it."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
import pytest

from medunet.cli.app import main
from medunet.deploy.cluster import DicomWebStore, predict_cohort
from medunet.deploy.cluster.dicomweb import RemoteSeries, parts_of
from medunet.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore")

needs_highdicom = pytest.mark.skipif(importlib.util.find_spec("highdicom") is None, reason="highdicom is absent")


class Store(ThreadingHTTPServer):
    """As much of PS3.18 as is asked for; `files` by series, results in `stored`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files: dict[str, list[bytes]] = {}
        self.entries: list[dict[str, Any]] = []
        self.stored: list[bytes] = []
        self.most = 1000
        self.cut: int | None = None
        self.url = f"http://127.0.0.1:{self.server_port}/dicom-web"

    def add(self, folder: Path) -> str:
        contents = [path.read_bytes() for path in sorted(folder.iterdir())]
        header = pydicom.dcmread(sorted(folder.iterdir())[0])
        uid = str(header.SeriesInstanceUID)
        self.files[uid] = contents
        self.entries.append({"0020000D": tag(header.StudyInstanceUID), "0020000E": tag(uid), "00080060": tag("CT")})
        return uid


def tag(value: object) -> dict[str, Any]:
    return {"vr": "UI", "Value": [str(value)]}


class _Answer(BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        if place.path == "/dicom-web/series":
            query = {key: values[0] for key, values in parse_qs(place.query).items()}
            start, most = int(query["offset"]), min(int(query["limit"]), self.server.most)
            wanted = [e for e in self.server.entries if query.get("Modality") in (None, e["00080060"]["Value"][0])]
            self._say("application/dicom+json", json.dumps(wanted[start : start + most]).encode())
            return
        contents = self.server.files.get(place.path.rpartition("/")[2])
        if contents is None:
            self.send_error(404)
            return
        head = b"--b\r\nContent-Type: application/dicom\r\n\r\n"
        body = [part for content in contents for part in (head, content, b"\r\n")]
        self._say('multipart/related; type="application/dicom"; boundary=b', *body, b"--b--\r\n")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.stored += parts_of(body, self.headers["Content-Type"])
        self._say("application/dicom+json", b"{}")

    def _say(self, kind: str, *body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(sum(map(len, body))))
        self.end_headers()
        for part in body[: self.server.cut]:
            self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def medunet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str]]:
    """Run `medunet WORDS` in this process: exit code and standard error."""

    def run(*words: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["medunet", *map(str, words)])
        with pytest.raises(SystemExit) as info:
            main()
        return info.value.code, capsys.readouterr().err

    return run


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def test_series_of_images_are_found_page_by_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medunet.deploy.cluster.dicomweb.PAGE", 3)
    for index, modality in enumerate(["CT", "SEG", "MR", "CT", "RTSTRUCT", "CT", "CT"]):
        store.entries.append({"0020000D": tag("1"), "0020000E": tag(index), "00080060": tag(modality)})
    assert [found.series for found in DicomWebStore(store.url).series()] == ["0", "2", "3", "5", "6"]
    assert [found.series for found in DicomWebStore(store.url).series({"Modality": "MR"})] == ["2"]


def test_a_store_may_give_less_than_a_page(store: Store) -> None:
    store.most = 2
    for index in range(5):
        store.entries.append({"0020000D": tag("1"), "0020000E": tag(index), "00080060": tag("CT")})
    assert [found.series for found in DicomWebStore(store.url).series()] == ["0", "1", "2", "3", "4"]


def test_pixels_that_look_like_a_boundary_end_no_part() -> None:
    body = b"--b\r\nA: 1\r\n\r\nx--b\r\ny--b--z\r\n--b--"
    assert list(parts_of(body, "multipart/related; boundary=b")) == [b"x--b\r\ny--b--z"]


def test_a_long_series_is_not_held_in_memory(store: Store, tmp_path: Path) -> None:
    slices = [bytes([number]) * (1 << 20) for number in range(64)]
    store.files["1.2"] = slices
    tracemalloc.start()
    folder = DicomWebStore(store.url).fetch(RemoteSeries(store.url, "1", "1.2"), tmp_path / "series")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8 << 20
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == slices


def test_an_answer_that_breaks_off_is_one_typed_error(store: Store, tmp_path: Path) -> None:
    store.files["1.2"], store.cut = [b"a" * 100, b"b" * 100], 4
    with pytest.raises(DataError, match=r"does not answer as it should.*IncompleteRead"):
        DicomWebStore(store.url).fetch(RemoteSeries(store.url, "1", "1.2"), tmp_path / "series")
    assert list((tmp_path / "series").iterdir()) == []


def test_an_answer_without_files_is_one_typed_error(store: Store, tmp_path: Path) -> None:
    store.files["1.2"] = []
    with pytest.raises(DataError, match="gave no files"):
        DicomWebStore(store.url).fetch(RemoteSeries(store.url, "1", "1.2"), tmp_path / "series")


def test_a_store_that_is_down_is_one_typed_error() -> None:
    with pytest.raises(DataError, match="does not answer"):
        list(DicomWebStore("http://127.0.0.1:9/dicom-web").series())


def test_no_room_for_a_series_fails_that_case_only(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DicomWebStore, "fetch", full)
    cases = [RemoteSeries("http://127.0.0.1:9", "1", uid) for uid in ("1.1", "1.2")]
    result = predict_cohort(bundle, cases, tmp_path / "out", device="cpu")
    assert [outcome.name for outcome in result.failed] == ["1.1", "1.2"]
    assert "No space left" in str(result.failed[0].error)


@needs_highdicom
def test_segmentations_go_back_into_the_store(
    bundle: Path,
    store: Store,
    make_series: Callable[..., Path],
    medunet: Callable[..., tuple[object, str]],
    tmp_path: Path,
) -> None:
    uids = [store.add(make_series(tmp_path / f"in_{index}", columns=16, rows=16, slices=16)) for index in range(2)]
    store.entries.append({"0020000D": tag("1.2"), "0020000E": tag("1.2.3"), "00080060": tag("CT")})  # cannot be fetched
    options = ["--query", "Modality=CT", "--send-back", "--device", "cpu"]
    code, said = medunet("predict", bundle, store.url, "--output", tmp_path / "out", *options)
    assert code == 3
    assert "2 of 3 cases have results" in said and "1.2.3" in said and "404" in said
    results = [pydicom.dcmread(pydicom.filebase.DicomBytesIO(content)) for content in store.stored]
    assert [result.Modality for result in results] == ["SEG", "SEG"]
    referenced = {result.ReferencedSeriesSequence[0].SeriesInstanceUID for result in results}
    assert referenced == set(uids)
    # sent once; results that lie there from a prediction that did not send are sent
    store.stored.clear()
    ledger = tmp_path / "out" / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"sent": true', '"sent": false', 1))
    code, said = medunet("predict", bundle, store.url, "--output", tmp_path / "out", *options)
    assert code == 3 and "2 of 3 cases have results" in said
    assert len(store.stored) == 1
    # the series themselves are not kept
    assert sorted(path.name for path in (tmp_path / "out").glob("*.dcm")) == sorted(f"{uid}.dcm" for uid in uids)
