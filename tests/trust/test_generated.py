"""Generated configs around each dangerous argument: the scan accepts none that could run code.

`MEDUNET_FUZZ_EXAMPLES=20000 pytest --log-cli-level=INFO tests/trust/test_generated.py` tries more and prints how many.
"""

import itertools
import json
import logging
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser

from medunet.trust.known import GADGET_ARGUMENTS
from medunet.trust.scan import scan_bundle

logger = logging.getLogger(__name__)
EXAMPLES = int(os.environ.get("MEDUNET_FUZZ_EXAMPLES", "100"))
READER = {"_target_": "medunet.io.MedunetReader"}
NAMES = {"_target_": "DataLoader", "dataset": ["tripwire.fire"], "batch_size": None}
"""A component that MONAI iterates: it yields a name, which MONAI imports and calls."""
LEAVES: list[Any] = [
    *(None, True, False, 0, 1, 0.0, -1, 1.5, "", "false", "default", "debug", "callable"),
    *("ITKReader", "NumpyReader", "tripwire.fire", "@x", "@rank", "%x", "$@rank == 0", " $@rank == 0"),
    *({"tripwire.fire": 1}, {"_target_": "Compose"}, {"_target_": "tripwire.fire"}, {"_target_": ["os.system"]}),
    *(READER, NAMES),
]
SPELLINGS = ["{}", "+{}", "a::{}", "a#{}", "+a::{}", "a::~{}", "a::0::{}"]
PARTS = ["{}::0", "{}:: 0", "{}#x", "{}::_target_", "{}::0::_target_", "+{}::tripwire.fire"]


def containers(value: Any) -> Iterator[Any]:
    """Yield every container that Python takes for true, though a reader may take its content for the value."""
    yield from ([value], [[value]], [value, value], [{"x": value}], {"x": value}, {"0": value}, {"_target_": value})
    yield {"_target_": "Compose", "transforms": value}


def surroundings(key: str, value: Any) -> Iterator[dict[str, Any]]:
    yield {key: value}
    yield {"steps": [{"_target_": "LoadImaged", "keys": "image", key: value}]}
    yield {"a": {"b": [[{"c": {key: value}}]]}}


def rejected(configs: Mapping[str, Any], folder: Path) -> set[str]:
    """Return the names of the configs in which the scan finds something; all are scanned as parts of one file."""
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "configs" / "train.json").write_text(json.dumps(configs))
    return {finding.id.partition("::")[0] for finding in scan_bundle(folder).findings}


def is_harmless(argument: str, value: Any) -> bool:
    """Return whether :data:`GADGET_ARGUMENTS` allows a value, decided without the scan."""
    if argument == "reader" and isinstance(value, list):
        return all(not isinstance(one, list) and is_harmless(argument, one) for one in value)
    if argument == "reader" and isinstance(value, dict):
        return value == READER
    return any(type(value) is type(one) and value == one for one in GADGET_ARGUMENTS[argument][0])


def test_dangerous_arguments_reject_containers_and_other_types(tmp_path: Path) -> None:
    values = [*LEAVES, [], {}, [[]], [{}], *itertools.chain.from_iterable(map(containers, [*LEAVES, [], {}]))]
    keys = [(spelling, True) for spelling in SPELLINGS] + [(part, False) for part in PARTS]
    counts: Counter[bool] = Counter()
    wrong = []
    for argument, (spelling, is_whole) in itertools.product(GADGET_ARGUMENTS, keys):
        configs, harmless = {}, set()
        for index, value in enumerate(values):
            places = list(surroundings(spelling.format(argument), value))
            for config in places if EXAMPLES > 1000 else [places[index % len(places)]]:
                name = f"config{len(configs)}"
                configs[name] = config
                if is_whole and is_harmless(argument, value):
                    harmless.add(name)
        wrong += [configs[name] for name in (configs.keys() - harmless) ^ rejected(configs, tmp_path)]
        counts += Counter({True: len(harmless), False: len(configs) - len(harmless)})
    logger.info(f"{counts[False]} hostile and {counts[True]} harmless configs tried, {len(wrong)} misjudged")
    assert wrong == []
    assert counts[False] > 20_000
    assert counts[True] > 50


def test_harmless_values_are_accepted(tmp_path: Path) -> None:
    plain = {"allow_pickle": False, "weights_only": True, "_mode_": "default"}
    for reader in (None, "ITKReader", ["ITKReader", READER], {**READER, "uneven": "resample"}):
        assert not rejected({"load": {"_target_": "LoadImaged", "keys": "image", "reader": reader, **plain}}, tmp_path)


class Payload:
    """Fires the tripwire when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["tripwire"].fire, ()


@pytest.fixture
def fired(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the calls of `tripwire.fire`, which can be imported by name, and which a pickle calls."""
    calls: list[str] = []

    def fire(*_: Any, **__: Any) -> None:
        calls.append("fired")

    module = ModuleType("tripwire")
    fire.__module__, fire.__qualname__ = "tripwire", "fire"
    module.fire = fire  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tripwire", module)
    return calls


VALUES = st.recursive(
    st.sampled_from([*LEAVES, *[None, True, False, "ITKReader", READER] * 5]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["0", "x", "tripwire.fire", "dataset", "reader"]), inner, max_size=2)
        | st.builds(lambda value: {**READER, "dataset": value}, inner)
        | st.builds(lambda value: {**NAMES, "dataset": value}, inner)
    ),
    max_leaves=4,
)
INNER = st.dictionaries(st.sampled_from(["reader", "allow_pickle", "weights_only", "dtype"]), VALUES, max_size=3)
PATHS = st.builds(
    lambda plus, separator, names: plus + separator.join(["x", *names]),
    st.sampled_from(["", "", "+"]),
    st.sampled_from(["::", "#"]),
    st.lists(st.sampled_from(["reader", "allow_pickle", "0", *NAMES, "tripwire.fire"]), min_size=1, max_size=3),
)
FLAT = st.dictionaries(PATHS, VALUES | st.sampled_from(["DataLoader", ["tripwire.fire"]]), max_size=4)


def test_an_accepted_config_runs_nothing_when_monai_loads_it(fired: list[str], tmp_path: Path) -> None:
    """MONAI itself merges the flat keys, builds the loader and reads a hostile file."""
    np.save(tmp_path / "hostile.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    counts: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, deadline=None, database=None)
    @given(inner=INNER, flat=FLAT)
    def try_one(inner: dict[str, Any], flat: dict[str, Any]) -> None:
        config = {"rank": 0, "x": {"_target_": "LoadImaged", "keys": "image", **inner}, **flat}
        counts["tried"] += 1
        if rejected(config, tmp_path):
            return
        counts["accepted"] += 1
        load(tmp_path)
        assert fired == []

    try_one()
    logger.info(f"{counts['tried']} configs tried, {counts['accepted']} accepted, {len(fired)} of them ran code")
    assert counts["accepted"] > counts["tried"] // 100


def load(folder: Path) -> None:
    """Build the loader of a config as `monai.bundle` does and read the hostile file; an error runs nothing."""
    parser = ConfigParser()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(Exception):  # MONAI raises many kinds of errors
            parser.read_config(str(folder / "configs" / "train.json"))
            parser.get_parsed_content("x")({"image": str(folder / "hostile.npy")})


def test_rejected_configs_do_run_code_in_monai(fired: list[str], tmp_path: Path) -> None:
    np.save(tmp_path / "hostile.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    loader = {"_target_": "LoadImaged", "keys": "image"}
    flat = {f"x::reader::{key}": value for key, value in NAMES.items()}
    for config in (
        {"x": {**loader, "allow_pickle": [False]}},
        {"x": {**loader, "reader": "tripwire.fire"}},
        {"x": {**loader, "reader": READER}, **flat},
    ):
        fired.clear()
        assert rejected(config, tmp_path)
        load(tmp_path)
        assert fired


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


@settings(max_examples=150, deadline=None)
@given(
    text=st.binary(max_size=200) | st.builds(lambda x, w: json.dumps({"x": x, "weights": w}).encode(), JSON, JSON),
    name=st.sampled_from(["train.json", "metadata.json", "logging.conf", "x.json"]),
)
def test_no_content_makes_the_scan_fail(text: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "configs").mkdir()
        (Path(folder) / "configs" / name).write_bytes(text)
        assert all(str(finding).isprintable() for finding in scan_bundle(Path(folder)).findings)
