"""`medunet bundle tune-inference` writes the fastest form of a network into a bundle's configs."""

import json
from pathlib import Path

import pytest

from medunet.prediction import Predictor, tuning
from medunet.runtime import Form
from medunet.runtime.timing import Timing
from tests.support.commands import run_medunet
from tests.support.small import untrained_run

RULE = Form("float32", channels_last=True)  # of a network with batch norm, without fast bfloat16


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return untrained_run(tmp_path / "run", autocast_dtype="auto")


@pytest.mark.parametrize("fastest_format", ["float32"], indirect=True)
@pytest.mark.parametrize(
    ("timings", "expected"),
    [
        ([Timing(Form("bfloat16"), 50.0), Timing(RULE, 80.0)], ("bfloat16", False, "eager")),
        ([Timing(Form("bfloat16"), 78.0), Timing(RULE, 80.0)], ("auto", None, "eager")),
        ([Timing(RULE, rejected="wrong")], ("auto", None, "eager")),
    ],
    ids=["faster", "about as fast", "all rejected"],
)
def test_the_fastest_form_is_written_and_used(run, fastest_format, timings, expected, monkeypatch):
    monkeypatch.setattr(tuning, "time_forms", lambda *args: timings)
    tuning.tune_inference(run, device="cpu")
    for name in ("inference", "evaluate"):
        config = json.loads((run / "configs" / f"{name}.json").read_text())
        network = config["network"]
        assert (config["autocast_dtype"], network["channels_last"], network["backend"]) == expected
    predictor = Predictor(run, device="cpu")
    assert predictor.forms == (timings[0].form if expected[0] == "bfloat16" else RULE,)


def test_the_command_times_every_form(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medunet.runtime.timing.has_openvino", lambda: False)  # compiles for seconds
    assert run_medunet("bundle", "tune-inference", run, "--device", "cpu", "--size", "16,16,16") == 0
    printed = capsys.readouterr().out
    assert "eager float32 channels-last" in printed
    assert "autocast_dtype: " in printed
    for size in ("16,16", "0,16,16"):
        assert run_medunet("bundle", "tune-inference", run, "--device", "cpu", "--size", size) == 2
    assert "one positive number per spatial axis" in capsys.readouterr().err
