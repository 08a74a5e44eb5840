"""Series from a DICOMweb store, and segmentations back into it."""

import importlib.util
import json
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
import pytest

from medunet.deploy.cluster import DicomWebStore, predict_cohort
from medunet.deploy.cluster.dicomweb import RemoteSeries, parts_of
from medunet.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore")
needs_highdicom = pytest.mark.skipif(importlib.util.find_spec("highdicom") is None, reason="highdicom is absent")


class Store(ThreadingHTTPServer):
    """The requests of PS3.18 that the test needs; `files` by series, results in `stored`."""

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
        """Log nothing."""


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.mark.parametrize(("page", "most"), [(3, 1000), (100, 2)])  # a store may return less than a page
def test_series_of_images_are_listed_page_by_page(
    page: int, most: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medunet.deploy.cluster.dicomweb.PAGE", page)
    store.most = most
    for index, modality in enumerate(["CT", "SEG", "MR", "CT", "RTSTRUCT", "CT", "CT"]):
        store.entries.append({"0020000D": tag("1"), "0020000E": tag(index), "00080060": tag(modality)})
    assert [found.series for found in DicomWebStore(store.url).series()] == ["0", "2", "3", "5", "6"]
    assert [found.series for found in DicomWebStore(store.url).series({"Modality": "MR"})] == ["2"]


def test_pixels_that_look_like_a_boundary_do_not_end_a_part() -> None:
    body = b"--b\r\nA: 1\r\n\r\nx--b\r\ny--b--z\r\n--b--"
    assert list(parts_of(body, "multipart/related; boundary=b")) == [b"x--b\r\ny--b--z"]


def test_a_long_series_is_streamed_to_disk(store: Store, tmp_path: Path) -> None:
    slices = [bytes([number]) * (1 << 20) for number in range(64)]
    store.files["1.2"] = slices
    tracemalloc.start()
    folder = DicomWebStore(store.url).fetch(RemoteSeries(store.url, "1", "1.2"), tmp_path / "series")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8 << 20
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == slices


@pytest.mark.parametrize(
    ("files", "cut", "cause"),
    [([b"a" * 100, b"b" * 100], 4, r"does not answer as it should.*IncompleteRead"), ([], None, "returned no files")],
)
def test_an_incomplete_answer_is_one_typed_error(
    files: list[bytes], cut: int | None, cause: str, store: Store, tmp_path: Path
) -> None:
    store.files["1.2"], store.cut = files, cut
    with pytest.raises(DataError, match=cause):
        DicomWebStore(store.url).fetch(RemoteSeries(store.url, "1", "1.2"), tmp_path / "series")
    assert list((tmp_path / "series").iterdir()) == []


def test_a_store_that_is_down_is_one_typed_error() -> None:
    with pytest.raises(DataError, match="does not answer"):
        list(DicomWebStore("http://127.0.0.1:9/dicom-web").series())


def test_a_full_disk_fails_the_cases_and_not_the_command(
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
def test_segmentations_are_sent_back_to_the_store(
    *,
    bundle: Path,
    store: Store,
    make_series: Callable[..., Path],
    medunet: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    uids = [store.add(make_series(tmp_path / f"in_{index}", columns=16, rows=16, slices=16)) for index in range(2)]
    store.entries.append({"0020000D": tag("1.2"), "0020000E": tag("1.2.3"), "00080060": tag("CT")})  # cannot be fetched
    words = ["predict", bundle, store.url, "--output", tmp_path / "out", "--query", "Modality=CT", "--send-back"]
    assert medunet(*words, "--device", "cpu") == 3
    printed = capsys.readouterr().err
    assert "2 of 3 cases have results" in printed and "1.2.3" in printed and "404" in printed
    results = [pydicom.dcmread(pydicom.filebase.DicomBytesIO(content)) for content in store.stored]
    assert [result.Modality for result in results] == ["SEG", "SEG"]
    referenced = {result.ReferencedSeriesSequence[0].SeriesInstanceUID for result in results}
    assert referenced == set(uids)
    # sent once; results of a prediction that did not send are sent later
    store.stored.clear()
    ledger = tmp_path / "out" / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"sent": true', '"sent": false', 1))
    assert medunet(*words, "--device", "cpu") == 3
    assert "2 of 3 cases have results" in capsys.readouterr().err
    assert len(store.stored) == 1
    # the series themselves are not kept
    assert sorted(path.name for path in (tmp_path / "out").glob("*.dcm")) == sorted(f"{uid}.dcm" for uid in uids)
