"""Studies that arrive over DICOM's network or in a folder are segmented once; hostile senders gain nothing."""

import contextlib
import gc
import json
import re
import shutil
import socket
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
from canary import LINKS, WORDS
from pydicom.uid import generate_uid

from medunet.deploy import listen
from medunet.deploy.listen import Listener
from medunet.deploy.monailabel.server import usable_port
from medunet.errors import ConfigError, DataError
from medunet.prediction import PredictOptions
from medunet.prediction.configuration import CALIBRATION
from medunet.prediction.review import fit_reviews

net = pytest.importorskip("pynetdicom", reason="pynetdicom is absent: pip install 'medunet[listen]'")
pytest.importorskip("highdicom")
pytestmark = pytest.mark.filterwarnings("ignore")
CT, REPORT, ECHO = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.1.1"
SECONDS = 60.0  # until something that a test waits for must have happened


@pytest.fixture
def make_study(tmp_path: Path, make_series: Callable[..., Path]) -> Callable[..., list[Path]]:
    """Write a CT series of 16 slices with unusual words in its headers; return its files by position."""

    def make(name: str, **options: Any) -> list[Path]:
        size = {"columns": 16, "rows": 16, "slices": 16}
        folder = make_series(tmp_path / name, **{**size, **LINKS, **options})
        return sorted(folder.iterdir(), key=lambda path: pydicom.dcmread(path).InstanceNumber)

    return make


@pytest.fixture
def start(bundle: Path, tmp_path: Path) -> Iterator[Callable[..., Listener]]:
    """Start a listener on `tmp_path/out`; it ends with the test."""
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> Listener:
            stack.close()  # the one before
            given = {"bundle": bundle, "settle": 0.3, **options}
            listener = Listener(output=tmp_path / "out", options=PredictOptions(device="cpu"), **given)
            stack.callback(listener.close)
            return listener

        yield make
    gc.collect()  # pynetdicom leaves sockets of broken connections open


@contextlib.contextmanager
def connection(port: int, title: str = "SENDER") -> Iterator[Any]:
    ours = net.AE(title)
    for kind in (CT, REPORT, ECHO):
        ours.add_requested_context(kind, "1.2.840.10008.1.2.1")
    link = ours.associate("127.0.0.1", port)
    yield link
    if link.is_established:
        link.release()
        time.sleep(0.05)


def send(port: int, files: Sequence[Path]) -> list[int]:
    with connection(port) as link:
        return [link.send_c_store(path).Status for path in files]


def lines_of(listener: Listener, count: int = 1) -> list[str]:
    """Return the next lines."""
    lines, end = [], time.monotonic() + SECONDS
    while len(lines) < count:
        if (line := listener.step()) is not None:
            lines.append(line)
        assert time.monotonic() < end, lines
        time.sleep(0.02)
    return lines


def is_idle(listener: Listener, seconds: float = 0.8) -> bool:
    """Return whether no study is complete for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if listener.step() is not None:
            return False
        time.sleep(0.05)
    return True


def results(output: Path) -> dict[str, list[pydicom.Dataset]]:
    """Return the SR and the SEG of each study."""
    found: dict[str, list[pydicom.Dataset]] = {}
    for path in sorted((output / "results").rglob("*.dcm"), reverse=True):
        dataset = pydicom.dcmread(path)
        found.setdefault(str(dataset.StudyInstanceUID), []).append(dataset)
    return found


def test_interleaved_studies_are_segmented_once_under_names_that_no_sender_chooses(start, make_study, tmp_path, caplog):
    port = usable_port()
    listener = start(address=("127.0.0.1", port))
    hostile = "../../../tmp/evil"
    first, second = make_study("a"), make_study("b", StudyInstanceUID=hostile, series_uid="/etc/passwd")
    report = pydicom.dcmread(first[0])  # an object of the study that is no image
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = REPORT
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    report.SeriesInstanceUID = generate_uid()
    del report.PixelData, report.Rows, report.Columns
    report.save_as(tmp_path / "report.dcm")
    anonymous = pydicom.dcmread(first[0])
    del anonymous.StudyInstanceUID
    anonymous.save_as(tmp_path / "anonymous.dcm")
    with connection(port) as one, connection(port) as two:
        for mine, other in zip(first, second, strict=True):
            assert one.send_c_store(mine).Status == two.send_c_store(other).Status == 0
        assert one.send_c_store(tmp_path / "report.dcm").Status == 0
        assert two.send_c_store(tmp_path / "anonymous.dcm").Status == 0xC000
    lines = lines_of(listener, 2)
    assert sorted(line.split(": ")[1].rpartition(",")[0] for line in lines) == [
        "1 series segmented",
        "1 series skipped (no image), 1 series segmented",
    ]
    found = results(tmp_path / "out")
    assert found.keys() == {str(pydicom.dcmread(first[0]).StudyInstanceUID), hostile}
    for sr, seg in found.values():
        assert (seg.Modality, sr.Modality) == ("SEG", "SR")
        evidence = sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
        assert evidence.ReferencedSOPInstanceUID == seg.SOPInstanceUID
    assert not list((tmp_path / "out" / "incoming").iterdir())
    assert not list((tmp_path / "out" / "working").iterdir())
    names = [part for path in (tmp_path / "out" / "results").rglob("*") for part in path.stem.split("_")]
    assert all(set(name) <= set("0123456789abcdef") or name in ("measurements", "sr") for name in names)
    written = "".join(
        path.read_text() for path in (tmp_path / "out").rglob("*") if path.suffix in (".jsonl", ".json", ".csv")
    )
    said = written + caplog.text + "".join(lines)
    assert not [word for word in (*WORDS, *found) if word in said]
    assert set(send(port, first)) == {0}  # accepted and ignored
    assert is_idle(listener)
    listener = start(address=("127.0.0.1", port))
    assert set(send(port, first)) == {0}
    assert is_idle(listener)
    assert len(results(tmp_path / "out")) == 2


def test_a_study_whose_connection_broke_off_waits_for_the_rest_also_after_a_restart(start, make_study, tmp_path):
    port = usable_port()
    files = make_study("a")
    listener = start(address=("127.0.0.1", port))
    with connection(port) as link:
        assert {link.send_c_store(path).Status for path in files[:9]} == {0}
        link.abort()
    assert is_idle(listener)
    listener = start(address=("127.0.0.1", port))
    assert is_idle(listener)
    assert set(send(port, files[9:])) == {0}
    (line,) = lines_of(listener)
    assert "1 series segmented" in line
    ((_, seg),) = results(tmp_path / "out").values()
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 16


def test_an_incomplete_study_fails_after_a_while_and_may_be_sent_again(start, make_study, monkeypatch, tmp_path):
    port = usable_port()
    files = make_study("a")
    listener = start(address=("127.0.0.1", port))
    monkeypatch.setattr(listen, "HOLD_SECONDS", 0.5)
    with connection(port) as link:
        link.send_c_store(files[0])
        link.abort()
    assert "1 series failed (the connection broke off)" in lines_of(listener)[0]
    send(port, [*files[:5], *files[6:]])
    assert "1 series failed (slice distances are uneven" in lines_of(listener)[0]
    assert not results(tmp_path / "out")
    send(port, files)
    assert "1 series segmented" in lines_of(listener)[0]


@pytest.mark.slow
def test_studies_objects_connections_and_the_disk_have_limits(start, make_study, monkeypatch, tmp_path):
    port = usable_port()
    files, other = make_study("a"), make_study("b")
    monkeypatch.setattr(listen, "MAX_WAITING", 1)
    monkeypatch.setattr(listen, "MAX_STUDY", 20 << 17)
    listener = start(address=("127.0.0.1", port), titles=["SENDER"])
    with connection(port, "STRANGER") as link:
        assert link.is_rejected
    with connection(port) as link:
        assert link.send_c_store(files[0]).Status == 0
        assert link.send_c_store(other[0]).Status == 0xA700  # another study is arriving
        assert {link.send_c_store(path).Status for path in files[1:]} == {0}
    assert "1 series segmented" in lines_of(listener)[0]
    monkeypatch.setattr(listen, "HOLD_SECONDS", 0.5)
    assert send(port, (other * 2)[:22])[-2:] == [0xA700] * 2
    assert "1 series failed (the study is too large)" in lines_of(listener)[0]
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(listen.RESERVE))
    assert set(send(port, other)) == {0xA700}
    assert "1 series failed (the disk is full)" in lines_of(listener)[0]
    monkeypatch.undo()
    monkeypatch.setattr(listen, "LARGEST_OBJECT", 1 << 19)
    large = pydicom.dcmread(other[0])
    large.PixelData = bytes(1 << 20)
    large.save_as(tmp_path / "large.dcm")
    with connection(port) as link:
        assert "Status" not in link.send_c_store(tmp_path / "large.dcm")  # the connection is closed
    with contextlib.ExitStack() as stack:  # a flood, and a message of 4 GB
        flood = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(20)]
        flood[0].sendall(b"\x01\x00\xff\xff\xff\xf0" + bytes(1000))
        flood[0].settimeout(SECONDS)
        with contextlib.suppress(ConnectionResetError):
            assert flood[0].recv(10) == b""
    end = time.monotonic() + SECONDS
    while True:
        with connection(port) as link:
            if link.is_established and link.send_c_echo().Status == 0:
                break
        assert time.monotonic() < end


def test_results_are_sent_until_the_node_has_stored_them(start, make_study, monkeypatch, tmp_path, caplog):
    port, back = usable_port(), usable_port()
    monkeypatch.setattr(listen, "SEND_SECONDS", 0.1)
    stored: list[tuple[str, str]] = []
    answers = iter([0x0000, 0xA700, *[0x0000] * 4])  # the first report is rejected once

    def store(event: Any) -> int:
        stored.append((event.request.AffectedSOPClassUID.name, event.request.AffectedSOPInstanceUID))
        return next(answers)

    listener = start(address=("127.0.0.1", port), send_to=("PACS", "127.0.0.1", back))
    send(port, [*make_study("a"), *make_study("b")])
    assert [line.rpartition(", ")[2] for line in lines_of(listener, 2)] == ["1 to be sent", "2 to be sent"]
    assert "results are sent to PACS again" in caplog.text
    node = net.AE("PACS")
    node.supported_contexts = net.StoragePresentationContexts
    server = node.start_server(("127.0.0.1", back), block=False, evt_handlers=[(net.evt.EVT_C_STORE, store)])
    try:
        listener = start(send_to=("PACS", "127.0.0.1", back))  # another process
        end = time.monotonic() + SECONDS
        while results(tmp_path / "out"):
            assert listener.step() is None
            assert time.monotonic() < end
    finally:
        server.shutdown()
    assert [kind for kind, _ in stored] == ["Segmentation Storage", "Enhanced SR Storage"] * 3
    assert stored[:2] == stored[4:]  # the other study did not wait for the one that was rejected
    assert len(set(stored)) == 4
    entries = [json.loads(line) for line in (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()]
    assert entries[-1]["sent"]
    assert "it does not store a result" in caplog.text


def test_a_calibrated_bundle_reviews_every_series(start, bundle, make_study, tmp_path):
    names = list(start(store=tmp_path)._predictor.structures)
    rows = [{"agreement": dict.fromkeys(names, k / 40), "dice": dict.fromkeys(names, k / 40)} for k in range(40)]
    document = {**fit_reviews(rows, names), "training": {f"{name} size": [[0.0], [1e9]] for name in names}}
    document["training"]["modality"] = ["MR"]
    calibrated = shutil.copytree(bundle, tmp_path / "calibrated")
    (calibrated / CALIBRATION).write_text(json.dumps(document))
    listener = start(store=tmp_path / "a", bundle=calibrated)
    make_study("a")
    (line,) = lines_of(listener)
    assert re.search(r"1 series segmented \(expected Dice 0\.00 to \d\.\d\d, [1-9] flags?\), ", line)
    (review,) = (tmp_path / "out" / "results").glob("*/review.json")
    (case,) = json.loads(review.read_text())["cases"]
    assert "modality: CT; training had MR" in case["flags"]
    page = review.with_suffix(".html").read_text()
    assert "data:image/png" in page
    assert not [word for word in WORDS if word in page + line]


def test_a_folder_is_watched_and_not_changed(start, make_study, tmp_path, caplog):
    store = tmp_path / "store"
    files, magnetic = make_study("a"), make_study("b", Modality="MR")
    listener = start(store=store, modality="CT", settle=0.5)
    for path in files[:8]:
        (store / "deep" / "Doe^John").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, store / "deep" / "Doe^John")
        assert listener.step() is None
    (store / "notes.txt").write_text("no image")
    (store / "short.dcm").write_bytes(files[0].read_bytes()[:200])
    for path in (*files[8:], *magnetic):
        shutil.copy(path, store)
    before = sorted((path, path.stat().st_mtime_ns) for path in store.rglob("*"))
    lines = lines_of(listener, 2)
    assert sorted(line.split(": ")[1].rpartition(",")[0] for line in lines) == [
        "1 series segmented",
        "1 series skipped (another modality)",
    ]
    assert sorted((path, path.stat().st_mtime_ns) for path in store.rglob("*")) == before
    assert "Doe" not in caplog.text
    assert is_idle(listener)
    seg = results(tmp_path / "out")[str(pydicom.dcmread(files[0]).StudyInstanceUID)][1]
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 16


def kill(_: object) -> None:
    raise SystemExit


def test_a_series_that_ends_the_process_is_tried_three_times(start, make_study, monkeypatch, tmp_path):
    store = tmp_path / "a"
    make_study("a")
    listener = start(store=store, settle=0.0)  # after a restart, the same study is also complete in the folder

    for _ in range(listen.MAX_ATTEMPTS):
        monkeypatch.setattr(listener._predictor, "predict", kill)
        with pytest.raises(SystemExit):
            lines_of(listener)
        listener = start(store=store, settle=0.0)
    assert "1 series failed (the process ended 3 times)" in lines_of(listener)[0]


def test_a_study_that_was_being_deleted_is_not_used_again(start, make_study, monkeypatch, tmp_path):
    listener = start()
    listener.add(make_study("a", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])[0])
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(shutil, "rmtree", kill)
        lines_of(listener)
    assert is_idle(start())
    assert not (tmp_path / "out" / "done").exists()


def test_limits_are_those_of_senders_not_of_a_folder(start, make_study, monkeypatch, tmp_path):
    monkeypatch.setattr(listen, "MAX_WAITING", 0)
    monkeypatch.setattr(listen, "MAX_STUDY", 0)
    listener = start(store=tmp_path / "a")
    make_study("a", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert "1 series skipped (no image)" in lines_of(listener)[0]


def test_a_listener_needs_its_folder_its_bundle_and_one_channel(start, bundle, make_study, tmp_path):
    start(store=tmp_path)
    with pytest.raises(DataError, match="another process"):
        Listener(bundle, tmp_path / "out", PredictOptions(), store=tmp_path)
    ledger = tmp_path / "other" / "ledger.jsonl"
    ledger.parent.mkdir()
    ledger.write_text('{"bundle": "another", "replaces": false}\n')
    with pytest.raises(DataError, match="results of another bundle"):
        Listener(bundle, tmp_path / "other", PredictOptions(), store=tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="port cannot be used"):
        Listener(bundle, tmp_path / "third", PredictOptions(), address=taken.getsockname()[:2])
