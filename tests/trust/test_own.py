"""A bundle of medunet needs no --trust, also after an ordinary edit; a new expression does."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from medunet.bundle import find_bundle, shipped_bundles, specialise, verify_bundle
from medunet.datasets import open_dataset
from medunet.prediction import Predictor
from medunet.runtime import load_checkpoint
from medunet.trust import TRUST_VARIABLE, UntrustedBundleError, adopt, judge, require_trust

from .conftest import change

Make = Callable[..., Path]


@pytest.mark.parametrize("name", shipped_bundles())
def test_shipped_bundles_are_trusted(name: str, foreign: Make) -> None:
    assert judge(find_bundle(name)).reason == "known"
    assert judge(foreign(bundle=name)).reason == "known"


def test_plain_values_may_be_edited_in_every_bundle(foreign: Make) -> None:
    train = {"epochs": 7, "dataset_dir": "/data/x", "label_names": ["background", "left/right"], "init_from": "/runs/a"}
    network = {"network_def/channels": [4, 8], "loss": {"_target_": "GeneralizedDiceLoss", "softmax": True}}
    assert judge(foreign(train={**train, **network}, inference={"network_def/channels": [4, 8]})).reason == "known"


def test_paths_and_addresses_may_be_edited_in_a_bundle_that_medunet_created_here(foreign: Make, tmp_path: Path) -> None:
    edits = {"tracking_uri": "http://server:5000", "store_dir": "/scratch/store"}
    assert not judge(foreign(train=edits)).is_trusted
    own = specialise(find_bundle("unet_2d"), tmp_path / "own", {})
    change(own / "configs" / "train.json", edits)
    assert judge(own).reason == "known"
    change(own / "configs" / "train.json", {"device": "$evil()"})
    assert not judge(own).is_trusted


def test_an_expression_of_the_user_is_trusted_until_the_config_changes(tmp_path: Path) -> None:
    own = specialise(find_bundle("unet_2d"), tmp_path / "own", {"device": "$torch.device('cpu')"})
    assert judge(own).reason == "recorded"
    change(own / "configs" / "train.json", {"epochs": 7})
    assert not judge(own).is_trusted  # the expression might now mean something else
    require_trust(own, trust=True)
    assert judge(own).reason == "recorded"


def test_trust_is_for_exactly_this_content(foreign: Make, tmp_path: Path) -> None:
    bundle = foreign(train={"device": "$torch.device('cpu')"})
    for content in (None, "", "import os"):
        if content is not None:
            (bundle / "more.py").write_text(content)
        assert not judge(bundle).is_trusted
        require_trust(bundle, trust=True)
        assert judge(bundle).reason == "recorded"
    own = specialise(find_bundle("unet_2d"), tmp_path / "own", {})
    (own / "evil.py").write_text("import os")
    specialise(find_bundle("unet_2d"), own, {})  # starting a run again does not approve it
    assert not judge(own).is_trusted


def test_trust_holds_for_one_command_if_it_cannot_be_recorded(
    foreign: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDUNET_CONFIG_DIR", str(tmp_path / "file" / "config"))
    bundle = foreign(train={"device": "$torch.device('cpu')"})
    require_trust(bundle, trust=True)
    specialise(bundle, tmp_path / "out", {})  # as `medunet train --trust` does, which looks twice
    assert judge(tmp_path / "out").reason == "recorded"


def test_the_environment_trusts_exactly_the_given_hash_and_records_nothing(
    foreign: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = foreign(train={"device": "$torch.device('cpu')"})
    with pytest.raises(UntrustedBundleError) as info:
        require_trust(bundle)
    digest = judge(bundle).digest
    assert f"{TRUST_VARIABLE}={digest}" in str(info.value)
    for wrong in ("1", "yes", digest[:16], "*"):
        monkeypatch.setenv(TRUST_VARIABLE, wrong)
        assert not judge(bundle).is_trusted
    monkeypatch.setenv(TRUST_VARIABLE, f"{'0' * 64}, {digest.upper()}")
    assert require_trust(bundle).reason == "given"
    change(bundle / "configs" / "train.json", {"device": "$torch.device('cuda')"})
    assert not judge(bundle).is_trusted
    change(bundle / "configs" / "train.json", {"device": "$torch.device('cpu')"})
    monkeypatch.delenv(TRUST_VARIABLE)
    assert not judge(bundle).is_trusted


def test_a_run_is_trusted_and_edited_until_its_weights_change(run_2d: Path, cells: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_2d, run)
    adopt(run)  # as where it was trained
    verdict = judge(run)
    assert verdict.reason == "known"
    assert set(verdict.weights) == {"model.pt", "model.safetensors"}
    assert verify_bundle(run)["weights"] is None
    change(run / "configs" / "inference.json", {"mirror_axes": [0], "label_colors": {"cell": [1, 2, 3]}})
    image = open_dataset(cells).cases[0].images[0]
    assert Predictor(run, output_dir=tmp_path / "out", device="cpu").predict_case(image).is_file()
    expected = load_checkpoint(run / "models" / "model.pt")["model"].keys()
    (run / "models" / "model.pt").unlink()  # the safe file is enough
    assert load_checkpoint(run / "models" / "model.pt")["model"].keys() == expected
    (run / "models" / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(UntrustedBundleError, match="weights do not match"):
        Predictor(run, output_dir=tmp_path / "out2", device="cpu")
