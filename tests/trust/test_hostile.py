"""Hostile bundles are rejected with a list of findings, and nothing of them is run: no marker file appears."""

import json
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

from medunet.bundle import find_bundle, specialise, verify_bundle
from medunet.bundle.specialise import write_specialised
from medunet.errors import DataError, MedunetError, SecurityError
from medunet.networks import UNet
from medunet.prediction import Predictor
from medunet.prediction.configuration import parse_inference
from medunet.runs import PreparedRun, evaluate_bundle, train_bundle, train_folds, train_run
from medunet.runtime import load_checkpoint
from medunet.trust import UntrustedBundleError, judge, require_trust
from medunet.trust.verdict import Verdict

from .conftest import Payload, change

Make = Callable[..., Path]


def evil(marker: Path) -> dict[str, dict[str, Any]]:
    """Return changes of inference.json, each of which runs `touch marker` or opens a door."""
    touch = f"touch {marker}"
    shell = {"_target_": "os.system", "command": touch}
    load, names = {"_target_": "LoadImaged", "keys": "image"}, {"dataset": ["os.system"], "batch_size": None}
    return {
        "import in an expression": {"device": f"$__import__('os').system('{touch}')"},
        "a known expression and more": {"ckpt_dir": f"$@bundle_root + '/models' and os.system('{touch}')"},
        "white space before the dollar": {"device": f" $__import__('os').system('{touch}')"},
        "expression in imports": {"imports": ["$import os", f"$os.system('{touch}')"]},
        "expression in a list": {"initialize": [[f"$os.system('{touch}')"]]},
        "expression in a component": {"inferer": {"_target_": "Compose", "transforms": [f"$os.system('{touch}')"]}},
        "import of a module": {"imports": ["$import antigravity"]},
        "shell as target": {"network_def": shell},
        "shell through a trusted module": {"network_def": {**shell, "_target_": "monai.transforms.os.system"}},
        "shell through medunet": {"network_def": {**shell, "_target_": "medunet.files.os.system"}},
        "shell by MONAI": {"network_def": {"_target_": "monai.utils.run_cmd", "cmd_list": ["touch", str(marker)]}},
        "target by reference": {"evil": "os.system", "network_def": {**shell, "_target_": "@evil"}},
        "target by macro": {"evil": "os.system", "network_def": {**shell, "_target_": "%evil"}},
        "target by flat key": {"network_def::_target_": "os.system"},
        "target by merging key": {"+network_def": {"_target_": "os.system", "command": touch}},
        "target that is no text": {"network_def": {"_target_": ["os.system"]}},
        "bundle inside of a bundle": {"network_def": {"_target_": "monai.bundle.load", "name": "x"}},
        "pickle by torch": {"network_def": {"_target_": "torch.load", "f": "x.pt", "weights_only": False}},
        "pickle through torch": {"network_def": {"_target_": "torch.nn.modules.module.torch.load", "f": "x"}},
        "pickle by a cache": {"dataset": {"_target_": "PersistentDataset", "weights_only": False, "cache_dir": "c"}},
        "reader by name": {"steps/load/reader": "subprocess.Popen"},
        "reader by name in a list": {"steps/load/reader": ["subprocess.Popen"]},
        "reader by reference": {"evil": "subprocess.Popen", "steps/load/reader": "@evil"},
        "reader by flat key": {"steps::load::reader": "subprocess.Popen"},
        "reader by flat key into a list": {"steps#load#reader#0": "subprocess.Popen"},
        "reader by name as a key": {"steps/load": {**load, "reader": {"os.system": 1}, "command": touch}},
        "reader by a component that gives names": {"steps/load/reader": {"_target_": "DataLoader", **names}},
        "reader by flat key, as int reads it": {"steps::load::reader:: 0": "os.system", "steps/load/reader": []},
        "reader by flat keys into a component": {
            **{f"steps::load::reader::{key}": value for key, value in names.items()},
            "steps::load::reader::_target_": "DataLoader",
        },
        "reader by a later call": {"steps/load": {**load, "_mode_": "callable", "command": touch}},
        "pickles for readers": {"steps/load/allow_pickle": True},
        "pickles for readers by a list": {"steps/load/allow_pickle": [False]},
        "pickles for readers by an empty list in a list": {"steps/load/allow_pickle": [[]]},
        "pickles for readers by a flat key": {"steps::load::allow_pickle::x": False},
        "pickles for readers by a known expression": {"steps/load/allow_pickle": "$@rank == 0"},
        "writer by name": {"post/save": {"_target_": "SaveImaged", "keys": "pred", "writer": "subprocess.Popen"}},
        "merger by name": {"inferer": {"_target_": "PatchInferer", "merger_cls": "subprocess.Popen"}},
        "merger by name on a reviewed target": {"tile_inferer/merger_cls": "subprocess.Popen"},
        "another file": {"network_def": "%/etc/evil.json::network_def"},
        "another file in the bundle": {"network_def": "%docs/evil.json::network_def"},
        "debugger": {"network_def/_mode_": "debug"},
        "breakpoint": {"network_def/_debug_": True},
        "results over the user's images": {"prediction_dir": "/home"},
        "results beside the bundle": {"output_dir": "../../thesis"},
        "results to a stranger": {"output_dir": "http://example.org/collect"},
        "results elsewhere by a file URL": {"output_dir": "file:/home"},
        "results to a stranger by reference": {"data": "http://example.org/collect", "output_dir": "@data"},
        "results to a stranger by relative reference": {"x": {"source": ["/home"], "output_dir": "@#source#0"}},
        "results to a stranger by the metadata": {"output_dir": "@_meta_#homepage"},
    }


def test_every_hostile_config_is_rejected(foreign: Make, marker: Path) -> None:
    bundle = foreign()
    whole = (bundle / "configs" / "inference.json").read_text()
    for name, changes in evil(marker).items():
        (bundle / "configs" / "inference.json").write_text(whole)
        change(bundle / "configs" / "inference.json", changes)
        assert not judge(bundle).is_trusted, name
    assert not marker.exists()


def test_a_hostile_config_is_rejected_by_every_entry_point(foreign: Make, marker: Path, tmp_path: Path) -> None:
    bundle = foreign(inference=evil(marker)["import in an expression"])
    data, out = tmp_path / "data", tmp_path / "out"
    calls: list[Callable[[], object]] = [
        lambda: Predictor(bundle, output_dir=out, device="cpu"),
        lambda: specialise(bundle, out, {}),
        lambda: train_bundle(bundle, data, out, device="cpu"),
        lambda: train_folds(bundle, data, out, device="cpu"),
        lambda: evaluate_bundle(bundle, data, out),
    ]
    for call in calls:
        with pytest.raises(UntrustedBundleError, match=r"inference\.json"):
            call()
    assert verify_bundle(bundle)["network input and output"] is not None
    assert not marker.exists()
    assert not out.exists()


@pytest.mark.parametrize("config", ["train", "evaluate", "metadata", "few", "new"])
def test_every_config_is_scanned(config: str, foreign: Make) -> None:
    bundle = foreign()
    path = bundle / "configs" / f"{config}.json"
    path.write_text("{}") if config == "new" else None
    change(path, {"evil": "$__import__('os').system('id')"})
    with pytest.raises(UntrustedBundleError, match=config):
        require_trust(bundle)


FILES = {
    "script": ("scripts/__init__.py", "import os"),
    "module that shadows torch": ("torch.py", "import os"),
    "compiled": ("scripts/x.cpython-311-x86_64-linux-gnu.so", "x"),
    "pickle": ("models/cache.pkl", "x"),
    "config in YAML": ("configs/inference.yaml", "device: $__import__('os')"),
    "config of unknown kind": ("configs/inference.toml", "x"),
    "json with a key twice": ("configs/evil.json", '{"a": {"_target_": "Compose"}, "a": {"_target_": "os.system"}}'),
    "invalid json": ("configs/evil.json", "{"),
    "json of a thousand levels": ("configs/evil.json", "[" * 100_000),
    "json of endless digits": ("configs/evil.json", "1" * 100_000),
    "json in bytes": ("configs/evil.json", "\udcff"),
    **{
        f"logging with {line}": ("configs/logging.conf", f"[handler_x]\n{line}")
        for line in (
            "class=StreamHandler\nargs=(__import__('os').system('x'),)",
            "class=FileHandler\nargs=('/etc/cron.d/x','w')",
            "class=__import__('os').system('x')",
            "kwargs={'x': __import__('os').system('x')}",
            "args=()\n  or __import__('os').system('x')",
        )
    },
    "logging with a formatter": ("configs/logging.conf", "[formatter_x]\nclass=os.system"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_rejected(name: str, foreign: Make) -> None:
    bundle = foreign()
    path = bundle / FILES[name][0]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(FILES[name][1].encode("utf-8", "surrogateescape"))
    with pytest.raises(UntrustedBundleError, match=path.name.replace(".", r"\.")):
        require_trust(bundle)


def test_a_config_of_ten_gigabytes_is_not_read(foreign: Make) -> None:
    bundle = foreign()
    with (bundle / "configs" / "big.json").open("wb") as file:
        file.truncate(10 << 30)  # of zeros, sparse
    assert [finding.why for finding in judge(bundle).findings] == ["too large for a config"]
    with (bundle / "configs" / "metadata.json").open("wb") as file:
        file.truncate(10 << 30)
    assert "too large" in str(verify_bundle(bundle)["metadata"])


def test_links_out_of_the_bundle_and_to_folders_are_rejected(foreign: Make, tmp_path: Path) -> None:
    bundle = foreign(train={"device": "$__import__('os').system('id')"})
    (bundle / "docs" / "self.md").symlink_to("README.md")
    (bundle / "models").symlink_to("/etc")
    assert [finding.file for finding in judge(bundle).findings] == ["models", "configs/train.json"]
    (bundle / "models").unlink()
    (bundle / "configs").rename(bundle / "more")
    (bundle / "configs").symlink_to("more")
    with pytest.raises(UntrustedBundleError, match="a link to a folder"):
        specialise(bundle, tmp_path / "out", {})
    own = specialise(find_bundle("unet_2d"), tmp_path / "own", {})
    (own / "configs").rename(tmp_path / "elsewhere")
    (own / "configs").symlink_to(tmp_path / "elsewhere")
    assert not judge(own).is_trusted


def test_a_folder_that_cannot_be_listed_is_rejected(foreign: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = foreign()
    scandir = os.scandir

    def closed(path: str) -> Any:
        if Path(path).name == "configs":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("os.scandir", closed)
    assert [finding.why for finding in judge(bundle).findings] == ["a folder that cannot be listed"]


def test_upper_case_config_folders_are_scanned(foreign: Make) -> None:
    bundle = foreign(train={"device": "$evil()"})
    (bundle / "configs").rename(bundle / "Configs")
    assert [finding.file for finding in judge(bundle).findings] == ["configs/train.json"]


def test_a_pickle_as_weights_is_not_run(foreign: Make, marker: Path, tmp_path: Path) -> None:
    bundle = foreign(inference={"network_def/channels": [4, 8]})
    (bundle / "models").mkdir()
    weights = bundle / "models" / "model.pt"
    for write in (
        lambda: torch.save({"model": Payload(marker)}, weights),
        lambda: weights.write_bytes(pickle.dumps({"model": Payload(marker)}, protocol=2)),
        lambda: torch.save({"model": Payload(marker)}, weights, _use_new_zipfile_serialization=False),
    ):
        write()
        with pytest.raises(DataError, match="only tensors"):
            Predictor(bundle, output_dir=tmp_path / "out", device="cpu")
    torch.jit.save(torch.jit.script(torch.nn.Identity()), str(weights))
    with warnings.catch_warnings(), pytest.raises(MedunetError):
        warnings.simplefilter("ignore")  # PyTorch's, of a TorchScript archive
        Predictor(bundle, output_dir=tmp_path / "out", device="cpu")
    assert not marker.exists()


def test_weights_that_unpack_to_gigabytes_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data/0", bytes(64 << 20))
    with pytest.raises(SecurityError, match="many times its size"):
        load_checkpoint(path)


def test_other_weights_than_recorded_are_rejected(foreign: Make, tmp_path: Path) -> None:
    bundle = foreign(inference={"network_def/channels": [4, 8]})
    (bundle / "models").mkdir()
    torch.save({"model": UNet(2, 1, 2, channels=(4, 8)).state_dict()}, bundle / "models" / "model.pt")
    change(bundle / "configs" / "metadata.json", {"weights": {"model.pt": "0" * 64}})
    with pytest.raises(UntrustedBundleError, match=r"models/model\.pt.*weights do not match"):
        Predictor(bundle, output_dir=tmp_path / "out", device="cpu")
    for wrong in ({"../../x": "0" * 64}, {"model.pt": 3}, ["x"]):
        change(bundle / "configs" / "metadata.json", {"weights": wrong})
        assert not judge(bundle).is_trusted


def test_verify_prints_safe_findings_and_runs_nothing(
    foreign: Make, marker: Path, medunet: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = foreign(
        train={"device": f"$__import__('os').system('touch {marker}')"},
        few={"x": {"_target_": "os.system"}, "y": "$evil\x1b[2J\r\nTrusted: nothing to see \u202e"},
    )
    assert medunet("bundle", "verify", bundle) == 4
    text = capsys.readouterr().out
    assert "NOT TRUSTED. Running this bundle could run code" in text
    assert "configs/train.json device: $__import__('os')" in text
    assert "configs/few.json x::_target_: os.system" in text
    assert "not checked, since the bundle is not trusted" in text
    assert not {"\x1b", "\r", "\u202e"} & set(text)
    assert not any(line.startswith("Trusted") for line in text.splitlines())
    assert not marker.exists()


def test_an_error_prints_some_findings_and_contains_all(foreign: Make) -> None:
    with pytest.raises(UntrustedBundleError, match="and 28 more") as caught:
        require_trust(foreign(train={f"x{index}": "$evil()" for index in range(40)}))
    assert len(caught.value.findings) == 40


def swap_after(file: str, content: dict[str, Any]) -> Callable[..., Verdict]:
    """Return a `require_trust` after which a config of the bundle is another one."""

    def judge_and_swap(bundle: Path, *, trust: bool = False) -> Verdict:
        verdict = require_trust(bundle, trust=trust)
        path = bundle / "configs" / file
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | content))
        return verdict

    return judge_and_swap


def test_the_inspected_content_is_what_runs(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = specialise(find_bundle("unet_2d"), tmp_path / "run", {"network_def::channels": [4, 8]})
    swap = swap_after("inference.json", {"imports": [f"$__import__('pathlib').Path({str(marker)!r}).touch()"]})
    monkeypatch.setattr("medunet.prediction.configuration.require_trust", swap)
    parser = parse_inference(folder, device=torch.device("cpu"))
    assert parser.get_parsed_content("in_channels") == 1
    parser.get_parsed_content("imports")
    assert not marker.exists()


def test_the_inspected_content_is_what_is_trained(
    tmp_path: Path, foreign: Make, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, run = foreign(train={"network_def/channels": [4, 8]}), tmp_path / "run"
    evil = f"$__import__('pathlib').Path({str(marker)!r}).touch()"
    configs = write_specialised(swap_after("train.json", {"device": evil})(bundle), run, {})
    assert judge(run).reason == "known"
    change(run / "configs" / "train.json", {"device": evil, "imports": [evil], "initialize": [evil]})

    def stop(workflow: ConfigWorkflow) -> None:
        workflow.parser.get_parsed_content("imports")
        assert workflow.parser["bundle_root"] == str(run)
        raise InterruptedError

    monkeypatch.setattr("monai.bundle.ConfigWorkflow.run", stop)
    with pytest.raises(InterruptedError):
        train_run(PreparedRun(run, configs), device=torch.device("cpu"))
    assert not marker.exists()


@pytest.mark.parametrize("name", ["few", "new"])
def test_an_overlay_that_changes_during_the_copy_is_copied_as_inspected(
    name: str, tmp_path: Path, foreign: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = swap_after(f"{name}.json", {"device": "$evil()"})
    monkeypatch.setattr(sys.modules["medunet.bundle.specialise"], "require_trust", swap)
    specialise(foreign(), tmp_path / "out", {})
    assert not [path for path in (tmp_path / "out").rglob("*.json") if "evil" in path.read_text()]
    assert judge(tmp_path / "out").is_trusted


def test_an_incomplete_bundle_is_a_typed_error_or_harmless(tmp_path: Path, foreign: Make) -> None:
    bundle = foreign()
    for file, content in (
        ("configs/metadata.json", {}),
        ("configs/train.json", {"network_def": "x"}),
        ("configs/inference.json", {}),
        ("docs/changes.json", {"changed": {"epochs": 5}, "presets": []}),
        ("docs/changes.json", {"changed": "x"}),
    ):
        whole = path.read_text() if (path := bundle / file).exists() else "{}"
        path.write_text(json.dumps(content))
        with suppress(MedunetError):
            specialise(bundle, tmp_path / "out", {})
        with suppress(MedunetError):
            Predictor(bundle, output_dir=tmp_path / "predicted", device="cpu")
        path.write_text(whole)
