"""Third-party bundles that MONAI runs pass, and their faults are reported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from zoo import Config, write_zoo_bundle

from medunet.bundle import verify_bundle

pytestmark = pytest.mark.filterwarnings("ignore")


def edit(bundle: Path, name: str, change: Callable[[Config], object]) -> None:
    path = bundle / "configs" / f"{name}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("text", [json, yaml], ids=["json", "yaml"])
def test_a_zoo_bundle_without_evaluation_passes(tmp_path: Path, text: Any, caplog: pytest.LogCaptureFixture) -> None:
    bundle = write_zoo_bundle(tmp_path / "spleen", text=text)
    results = verify_bundle(bundle, trust=True)
    assert {name: fault for name, fault in results.items() if fault} == {}
    assert len(results) == 6
    assert "not by the schema meta_schema_20220324.json" in caplog.text


def test_an_overlay_is_checked_over_its_base(tmp_path: Path) -> None:
    bundle = write_zoo_bundle(tmp_path / "spleen")
    train = {"network_def": {"_target_": "UNet"}, "validate": {"preprocessing": None, "evaluator": {}}}
    (bundle / "configs" / "train.json").write_text(json.dumps(train))
    overlay = {"validate#evaluator": {"_target_": "Identity"}, "validate#steps": "@validate#preprocessing"}
    (bundle / "configs" / "evaluate.json").write_text(json.dumps(overlay))
    (bundle / "configs" / "multi_gpu_train.json").write_text(json.dumps({"device": "@nothing"}))
    assert verify_bundle(bundle, trust=True)["references and arguments"] is None
    (bundle / "configs" / "evaluate.json").write_text(json.dumps(overlay | {"validate#steps": "@validate#absent"}))
    assert "@validate::absent" in str(verify_bundle(bundle, trust=True)["references and arguments"])


@pytest.mark.parametrize("shape", [["8*n", "8*n", "8*n"], ["2**p*n", "16", "*"], [16, 16, 16]])
def test_sizes_of_the_metadata_may_be_expressions(tmp_path: Path, shape: list[Any]) -> None:
    def resize(metadata: Config) -> None:
        formats = metadata["network_data_format"]
        for tensor in (formats["inputs"]["image"], formats["outputs"]["pred"]):
            tensor["spatial_shape"] = shape

    bundle = write_zoo_bundle(tmp_path / "spleen")
    edit(bundle, "metadata", resize)
    assert verify_bundle(bundle, trust=True)["network input and output"] is None
    edit(bundle, "metadata", lambda content: content["network_data_format"]["outputs"]["pred"].update(num_channels=3))
    assert "does not match metadata.json" in str(verify_bundle(bundle, trust=True)["network input and output"])


@pytest.mark.parametrize(
    ("name", "change", "check", "message"),
    [
        ("metadata", lambda content: content.pop("authors"), "metadata", "'authors' is a required property"),
        ("inference", lambda content: content.update(x="@absent"), "references and arguments", "@absent"),
        ("inference", lambda config: config["network_def"].update(img_size=1), "network input and output", "img_size"),
        ("inference", lambda config: config["network_def"].update(channels=[2, 4]), "weights", "weights do not fit"),
    ],
)
def test_faults_of_a_zoo_bundle_are_reported(
    tmp_path: Path, name: str, change: Callable[[Config], object], check: str, message: str
) -> None:
    bundle = write_zoo_bundle(tmp_path / "spleen")
    edit(bundle, name, change)
    assert message in str(verify_bundle(bundle, trust=True)[check])


def test_a_check_that_cannot_run_here_is_logged_and_not_reported_as_a_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = write_zoo_bundle(tmp_path / "spleen")
    imports = {"imports": ["$import absent_package"], "network_def": "$absent_package.network()"}
    edit(bundle, "inference", lambda content: content.update(imports))
    assert "network input and output" not in verify_bundle(bundle, trust=True)
    assert "a package is missing: import absent_package (No module named 'absent_package')" in caplog.text


def test_a_bundle_without_a_workflow_never_passes(tmp_path: Path) -> None:
    bundle = write_zoo_bundle(tmp_path / "spleen")
    (bundle / "configs" / "inference.json").rename(bundle / "configs" / "other.json")
    results, fault = verify_bundle(bundle, trust=True), "neither a config named train nor one named inference"
    assert fault in str(results["files"]) and fault in str(results["weights"])
