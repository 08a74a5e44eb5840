"""Commands that need a bundle of medunet reject third-party bundles in one line with a remedy."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medunet.bundle import specialise
from medunet.deploy.monailabel.served import serve
from medunet.errors import ConfigError
from medunet.runs import evaluate_bundle, report_runs, train_bundle

COMMANDS: dict[str, Callable[[Path, Path, Path], object]] = {
    "train": lambda bundle, data, output: train_bundle(bundle, data, output / "run", trust=True),
    "evaluate": lambda bundle, data, output: evaluate_bundle(bundle, data, output / "out", trust=True),
    "report": lambda bundle, data, output: report_runs([bundle], output / "report.html"),
    "label": lambda bundle, data, output: serve([bundle]),
    "init": lambda bundle, data, output: specialise(bundle, output / "new", {}, trust=True),
}


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_needs_a_bundle_of_medunet_gives_a_remedy(
    tmp_path: Path, cells: Path, command: str, suffix: str
) -> None:
    bundle = tmp_path / "zoo"
    (bundle / "configs").mkdir(parents=True)
    for name in ("train", "evaluate", "inference"):
        (bundle / "configs" / f"{name}{suffix}").write_text(json.dumps({"network_def": {"_target_": "UNet"}}))
    (bundle / "configs" / "metadata.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"needs a bundle of medunet .*medunet predict"):
        COMMANDS[command](bundle, cells, tmp_path)
