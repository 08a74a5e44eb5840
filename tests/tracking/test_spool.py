"""The spool: what waits is whole, in order, and outlives its process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from medunet.errors import DataError
from medunet.tracking import CaseCodes
from medunet.tracking.anonymous import anonymous_config, pack_bundle, text_files
from medunet.tracking.dataset import content_digest
from medunet.tracking.sender import TRIES, Delivery
from medunet.tracking.server import Server
from medunet.tracking.spool import Spool
from medunet.tracking.state import RunState


class FakeServer(Server):
    """Takes records while it is up, and refuses what it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__("http://nowhere")
        self.taken: list[dict[str, Any]] = []
        self.error = error
        self.up = True

    def is_up(self) -> bool:
        return self.up

    def lets_in(self) -> bool:
        return True

    def send(self, record: Any, *, run_id: str, payload: Path) -> None:
        if self.error is not None and record.get("bad"):
            raise self.error
        self.taken.append({**record, "run_id": run_id})


def test_records_wait_in_order_for_a_later_process(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    for number in range(3):
        first.put({"kind": "metrics", "number": number, "run_id": "r"})
    second = Spool(tmp_path)
    second.put({"kind": "metrics", "number": 3, "run_id": "r"})
    server = FakeServer()
    assert Delivery(second, server, tmp_path / "state").run() == "empty"
    assert [record["number"] for record in server.taken] == [0, 1, 2, 3]
    assert not len(Spool(tmp_path))


def test_nothing_is_removed_while_the_server_is_down(tmp_path: Path) -> None:
    spool, server = Spool(tmp_path), FakeServer()
    spool.put({"kind": "metrics", "run_id": "r"})
    server.up = False
    assert Delivery(spool, server, tmp_path / "state").run() == "down"
    assert len(spool) == 1


@pytest.fixture
def answering() -> Iterator[Callable[[int], str]]:
    """Something before a server that answers everything with one status; gives its address."""
    started: list[ThreadingHTTPServer] = []

    def start(status: int) -> str:
        class Proxy(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_error(status)

            def log_message(self, *_: object) -> None:
                pass

        started.append(ThreadingHTTPServer(("127.0.0.1", 0), Proxy))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{started[-1].server_port}"

    yield start
    for proxy in started:
        proxy.shutdown()
        proxy.server_close()


@pytest.mark.parametrize(("status", "outcome"), [(502, "down"), (503, "down"), (504, "down"), (404, "empty")])
def test_a_proxy_without_its_server_is_a_server_that_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answering: Callable[[int], str], status: int, outcome: str
) -> None:
    server = Server(answering(status))
    monkeypatch.setattr(server, "send", lambda *_, **__: None)
    spool = Spool(tmp_path)
    spool.put({"kind": "metrics", "run_id": "r"})
    assert Delivery(spool, server, tmp_path / "state").run() == outcome
    assert len(spool) == (outcome == "down")


@pytest.mark.parametrize(("status", "outcome"), [(401, "locked"), (403, "locked"), (404, "failed")])
def test_a_login_that_is_not_taken_any_more_does_not_cost_records(
    tmp_path: Path, answering: Callable[[int], str], status: int, outcome: str
) -> None:
    spool, server = Spool(tmp_path), Server(answering(status))
    spool.put({"kind": "metrics", "run_id": "r", "time": 0, "step": 1, "values": {"loss": 1.0}})
    delivery = Delivery(spool, server, tmp_path / "state")
    assert [delivery.run() for _ in range(TRIES - 1)] == [outcome] * (TRIES - 1)
    delivery.run()
    assert len(spool) == (outcome == "locked")


def test_a_record_that_the_server_will_never_take_does_not_hold_up_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path)
    spool.put({"kind": "metrics", "bad": True, "run_id": "r"}, content=b"x")
    spool.put({"kind": "metrics", "run_id": "r"})
    server = FakeServer(MlflowException("no such run", error_code=3002))
    server.error.error_code = "RESOURCE_DOES_NOT_EXIST"  # type: ignore[union-attr]
    delivery = Delivery(spool, server, tmp_path / "state")
    assert delivery.run() == "empty"
    assert (delivery.delivered, delivery.refused) == (1, 1)
    assert sorted(path.name for path in (tmp_path / "refused").iterdir()) == ["00000001.bin", "00000001.json"]
    assert "no such run" in caplog.text
    later = Spool(tmp_path)
    later.put({"kind": "metrics", "number": 3, "run_id": "r"})
    assert later.names() == ["00000002"]  # not the number of the one that was put aside
    assert later.readmit() == 1
    assert (later.names(), later.refused()) == (["00000001", "00000002"], [])
    assert later.payload("00000001").read_bytes() == b"x"


def test_another_error_is_tried_again_but_not_for_ever(tmp_path: Path) -> None:
    spool, server = Spool(tmp_path), FakeServer(RuntimeError("database is locked"))
    spool.put({"kind": "metrics", "bad": True, "run_id": "r"})
    delivery = Delivery(spool, server, tmp_path / "state")
    assert [delivery.run() for _ in range(TRIES)] == ["failed"] * (TRIES - 1) + ["empty"]


def test_records_of_a_run_without_an_id_get_the_one_that_was_made(tmp_path: Path) -> None:
    state = RunState("http://nowhere", key="k", run_id="made")
    state.save(tmp_path / "state")
    spool, server = Spool(tmp_path / "spool"), FakeServer()
    spool.put({"kind": "metrics", "run_id": "", "key": "k"})
    Delivery(spool, server, tmp_path / "state").run()
    assert server.taken[0]["run_id"] == "made"


def test_a_broken_record_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "00000007.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        Spool(tmp_path).read("00000007")


def test_the_digest_follows_content_and_not_names(tmp_path: Path) -> None:
    for folder, name in (("a", "x"), ("b", "y")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.nii").write_bytes(b"image")
        (tmp_path / folder / f"{name}_label.nii").write_bytes(b"label")

    def digest(folder: str, name: str) -> str:
        item = {"image": str(tmp_path / folder / f"{name}.nii"), "label": str(tmp_path / folder / f"{name}_label.nii")}
        return content_digest([{**item, "name": name}], cache=tmp_path / "cache")

    assert digest("a", "x") == digest("b", "y")
    before = digest("a", "x")
    (tmp_path / "a" / "x.nii").write_bytes(b"Image")
    assert digest("a", "x") != before


def test_a_packed_bundle_names_neither_paths_nor_cases(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "docs").mkdir()
    text = '{"dataset_dir": "/ward/x", "init_from": "/home/me/run", "validation_cases": ["Doe"], "lr": "$@a + \'/b\'"}'
    (tmp_path / "configs" / "train.json").write_text(text)
    (tmp_path / "docs" / "fingerprint.json").write_text('{"cases": ["Doe"], "broken": {"Roe": "Roe.nii: empty"}}')
    (tmp_path / "docs" / "README.md").write_text("Cases that were left out:\n\n- Roe: empty\n- Poe: empty\n\n## Next\n")
    changed = {
        "validation_cases": [[], ["Doe"]],
        "tracking_uri": ["", "https://ward.example"],
        "skip_cases": [[], ["Roe"]],
    }
    changes = {"bundle": "unet_3d", "presets": [], "changed": changed}
    (tmp_path / "docs" / "changes.json").write_text(json.dumps(changes))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").write_bytes(b"weights")
    (tmp_path / "models" / "last.pt").write_bytes(b"state of the optimizer")
    codes = CaseCodes(["Doe"])
    together = "".join(text_files(tmp_path, codes).values())
    assert not [word for word in ("Doe", "Roe", "Poe", "ward", "home") if word in together]
    assert "case_001" in together
    assert "## Next" in together
    assert anonymous_config({"lr": "$@a + '/b'"}, codes) == {"lr": "$@a + '/b'"}
    packed = pack_bundle(tmp_path, codes)
    assert b"weights" in packed
    assert b"optimizer" not in packed
    assert packed == pack_bundle(tmp_path, codes)
