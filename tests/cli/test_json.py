"""`--json`: one document on standard output, with exactly the fields that docs/reference/json.md lists."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Capture, Medunet, sets
from small import SMALL_2D

import medunet as package
from medunet.io import write_volume

pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
KINDS: dict[str, Any] = {
    **{"string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "list": list},
    "null": type(None),
}
Ask = Callable[..., dict[str, Any]]


def fields(title: str) -> dict[str, str]:
    """Return the type of each key in the tables below a heading that contains the title."""
    section = next(part for part in re.split(r"^#+ ", PAGE, flags=re.MULTILINE) if title in part.partition("\n")[0])
    rows = re.findall(r"^\| (`[^|]+`) \| ([a-z, ]+) \|", section, re.MULTILINE)
    types: dict[str, str] = {}
    for keys, text in rows:
        kind, optional, _ = text.partition(", optional")
        kinds, names = kind.split(", "), re.findall(r"`([^`]+)`", keys)
        assert len(kinds) in (1, len(names)), keys
        types |= {name: (kinds[i] if len(kinds) > 1 else kind) + optional for i, name in enumerate(names)}
    return types


def differences(value: Any, types: dict[str, str], path: str = "") -> set[str]:
    """Return what differs between a value and the documented fields."""
    kind = types.get(path, "object").removesuffix(", optional")
    wrong: set[str] = set()
    if kind == "any":
        return wrong
    names = [name.partition(" of ")[0] for name in kind.split(" or ")]
    if not isinstance(value, tuple(KINDS[name] for name in names)) or (
        isinstance(value, bool) and "boolean" not in names
    ):
        return {f"{path} must be {kind}, is {value!r}"}
    if isinstance(value, dict):
        prefix = f"{path}." if path else ""
        children = {name for name in types if re.fullmatch(re.escape(prefix) + r"[A-Za-z0-9_]+", name)}
        wildcard = next((name for name in children if name.removeprefix(prefix).isupper()), None)
        required = {name for name in children - {wildcard} if not types[name].endswith("optional")}
        wrong |= {f"{name} is missing" for name in required - {prefix + key for key in value}}
        for key, entry in value.items():
            child = prefix + key if prefix + key in children else wildcard
            wrong |= {f"{prefix}{key} is not documented"} if child is None else differences(entry, types, child)
    elif isinstance(value, list):
        of = re.search(r"of (\w+)s\b", kind)
        item = types | {f"{path}[]": of[1] if of else types.get(f"{path}[]", "object")}
        for entry in value:
            wrong |= differences(entry, item, f"{path}[]")
    return wrong


@pytest.fixture
def ask(medunet: Medunet, capfd: Capture) -> Ask:
    """Run a command with --json, compare its document with the page, and return the document."""

    def run(*words: object, page: str = "", code: int = 0) -> dict[str, Any]:
        name = " ".join(str(word) for word in words[: 2 if words[0] in ("runs", "bundle") else 1])
        assert medunet(*words, "--json") == code
        printed = capfd.readouterr().out
        document: dict[str, Any] = json.loads(printed, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
        types = fields("`--json`") | ({} if "error" in document else fields(page or f"`medunet {name}`"))
        assert differences(document, types) == set()
        assert (document["schema"], document["command"], document["version"]) == (1, name, package.__version__)
        return document

    return run


def test_documents_about_bundles_and_the_machine(ask: Ask) -> None:
    assert ask("info")["python"]
    assert set(ask("list")["bundles"]) == {"unet_2015", "unet_2d", "unet_3d"}
    assert ask("get", "nuclei")["sha256"] == ask("list", "--models")["models"]["nuclei"]["sha256"]
    (entry,) = ask("bundle", "show", "unet_3d", "epochs")["ids"]
    assert entry["type"] == "integer"
    faults = ask("bundle", "verify", "unet_2d")["faults"]
    assert set(faults.values()) == {None}


def test_documents_about_data(ask: Ask, cells: Path, volumes: Path, tmp_path: Path) -> None:
    assert ask("cache")["removed_cases"] == 0
    assert ask("check", volumes)["summary"]["classes"]["liver"]["median_ml"] > 0
    assert ask("check", cells, "--headers")["cases"] == []
    objects = tmp_path / "objects"
    for part, values in (("images", np.eye(9, 8) * 200), ("labels", np.eye(9, 8) * np.arange(8))):
        write_volume(values.astype(np.uint16), objects / part / "a.png")
    assert ask("check", objects, "--instances")["summary"]["objects"]["count"] == 7
    (tmp_path / "data").mkdir()
    assert ask("check", tmp_path / "data", code=4)["findings"][0]["severity"] == "error"
    planned = ask("plan", cells, "-o", tmp_path / "planned", "--estimate", "--device", "cpu")
    assert "patch_size" in {decision["id"] for decision in planned["decisions"]}


def test_documents_about_runs(ask: Ask, run_2d: Path, cells: Path, tmp_path: Path) -> None:
    (run,) = ask("runs", "list", "--runs", run_2d.parent)["runs"]
    best = ask("runs", "best", "--runs", run_2d.parent)
    assert best["run"] == run
    assert best["folder"] == str(run_2d)
    assert ask("runs", "compare", "--runs", run_2d.parent)["runs"] == [run]
    assert ask("runs", "sync", run_2d.parent)["unsent_runs"] == 0
    result = ask("evaluate", run_2d, "--data", cells, "-o", tmp_path / "evaluation")
    summary = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["summary"]
    assert {key: result[key] for key in summary} == summary
    one = ["--pred", tmp_path / "evaluation" / "predictions", "--ref", cells / "labelsTr", "-o", tmp_path / "folders"]
    assert ask("evaluate", *one)["mean_dice"] == pytest.approx(result["mean_dice"])
    names = [path.stem for path in (tmp_path / "evaluation" / "predictions").glob("*.png")]
    (tmp_path / "sites.csv").write_text("\n".join(["case,site", *(f"{name},A" for name in names)]) + "\n")
    assert ask("evaluate", *one, "--force", "--subgroups", tmp_path / "sites.csv")["weakest"]["value"] == "A"


def test_documents_about_predictions(ask: Ask, run_2d: Path, cells: Path, tmp_path: Path) -> None:
    image, out = cells / "imagesTs" / "cells_004.png", tmp_path / "out"
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:50])
    assert [case["status"] for case in ask("predict", run_2d, image, "-o", out)["cases"]] == ["written"]
    preview = ask("predict", run_2d, image, "-o", out, "--dry-run", page="`medunet predict --dry-run`")
    assert preview["cases"] == [{"images": [str(image)], "path": str(out / image.name), "action": "fail"}]
    words = ["predict", run_2d, image, tmp_path / "cut.png", "-o", out, "--skip-existing", "--manifest", out / "m.json"]
    document = ask(*words, code=3)
    assert [case["status"] for case in document["cases"]] == ["there already", "failed"]
    assert json.loads((out / "m.json").read_text()) == document
    (tmp_path / "cohort.csv").write_text(f"image,name\n{image},one\n")
    assert ask("predict", run_2d, tmp_path / "cohort.csv", "-o", tmp_path / "b")["cases"][0]["attempts"] == 1
    assert "error" in ask("predict", run_2d, image, "-o", out, "--device", "cuda:99", code=2)


def test_documents_about_measurements(ask: Ask, run_2d: Path, cells: Path, tmp_path: Path) -> None:
    (case,) = ask("predict", run_2d, cells / "imagesTs" / "cells_004.png", "-o", tmp_path / "out", "--measure")["cases"]
    words = [
        "measure",
        tmp_path / "out",
        "--images",
        cells / "imagesTs",
        "--compare",
        tmp_path / "out",
        "-o",
        tmp_path / "m",
    ]
    document = ask(*words, "--labels", "cell=255")
    assert [row["area_change_px"] for row in document["growth"]] == [0]
    assert case["measurements"][0]["case"] == "cells_004"


def test_training_prints_its_result(ask: Ask, run_2d: Path, folds_2d: Path, cells: Path) -> None:
    result = ask("train", run_2d, "--data", cells, "--output", run_2d, "--epochs", 2, "--resume", "--tracking-uri", "")
    assert result["run"] == str(run_2d)
    words = ["train", "unet_2d", "--data", cells, "--output", "new", "--dry-run"]
    preview = ask(*words, page="`medunet train --dry-run`")
    assert preview["cases"] == [{"fold": 0, "training": 3, "validation": 1}]
    words = ["train", "unet_2d", "--data", cells, "--output", folds_2d, "--folds", "all", "--tracking-uri", ""]
    folds = ask(*words, *sets({**SMALL_2D, "epochs": 1, "folds": 2}), page="`medunet train --folds`")["folds"]
    assert {fold["status"] for fold in folds} == {"there already"}


def test_an_error_is_a_document_and_a_line(ask: Ask, medunet: Medunet, capfd: Capture) -> None:
    error = ask("bundle", "show", "nosuch", code=2)["error"]
    assert error["type"] == "ConfigError"
    assert medunet("bundle", "show", "nosuch", "--json") == 2
    assert capfd.readouterr().err.strip() == f"error {error['message']}"
