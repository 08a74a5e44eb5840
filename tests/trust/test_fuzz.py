"""Whatever is wrapped around it: what MONAI would run is found, and no text makes the scan fail."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.trust import scan_bundle

EVIL: list[Any] = [
    "$__import__('os').system('id')",
    "$@evaluator.run() or @evil",
    "%other.json::a",
    {"_target_": "os.system", "command": "id"},
    {"_target_": "@evil"},
    {"steps::load::reader": "subprocess.Popen"},
    {"+steps#load#reader#3": "subprocess.Popen"},
    {"reader": [["subprocess.Popen"]]},
    {"_mode_": "debug"},
]
KEYS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["a", "steps", "_target_x", "keys", "a::b", "+a", "0", "transforms", "_desc_", "data"]),
)
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.sampled_from(["a", "@a", "Compose"])
)
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


def scan(text: bytes, name: str = "train.json") -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        configs = Path(folder) / "configs"
        configs.mkdir()
        (configs / name).write_bytes(text)
        return list(map(str, scan_bundle(Path(folder)).findings))


@settings(max_examples=150, deadline=None)
@given(evil=st.sampled_from(EVIL), around=st.lists(st.tuples(KEYS, JSON, st.booleans()), max_size=6))
def test_evil_is_found_however_deep_it_lies(evil: Any, around: list[tuple[str, Any, bool]]) -> None:
    value = evil
    for key, other, as_list in around:
        value = [other, value] if as_list else {f"x{key}": other, key: value}
    assert scan(json.dumps({"value": value}).encode())


@settings(max_examples=150, deadline=None)
@given(text=st.binary(max_size=200), name=st.sampled_from(["train.json", "metadata.json", "logging.conf", "x.json"]))
def test_no_bytes_make_the_scan_fail(text: bytes, name: str) -> None:
    for finding in scan(text, name):
        assert finding.isprintable()


@settings(max_examples=100, deadline=None)
@given(content=JSON, weights=JSON)
def test_no_metadata_make_the_scan_fail(content: Any, weights: Any) -> None:
    scan(json.dumps({"x": content, "weights": weights}).encode(), "metadata.json")
