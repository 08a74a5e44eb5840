"""What leaves the machine names no case and no path; a data set is known by its content."""

import json
from pathlib import Path

from medunet.tracking import CaseCodes
from medunet.tracking.anonymous import anonymous_config, copy_bundle, text_files, zip_folder
from medunet.tracking.content import content_digest


def test_the_digest_depends_on_content_and_not_on_names(tmp_path: Path) -> None:
    for folder, name in (("a", "x"), ("b", "y")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.nii").write_bytes(b"image")
        (tmp_path / folder / f"{name}_label.nii").write_bytes(b"label")

    def digest(folder: str, name: str) -> str:
        item = {"image": str(tmp_path / folder / f"{name}.nii"), "label": str(tmp_path / folder / f"{name}_label.nii")}
        return content_digest([{**item, "name": name}])

    before = digest("a", "x")
    assert before == digest("b", "y")
    (tmp_path / "a" / "x.nii").write_bytes(b"Image")
    assert digest("a", "x") != before


def test_a_packed_bundle_names_neither_paths_nor_cases(tmp_path: Path) -> None:
    changed = {
        "validation_cases": [[], ["Doe"]],
        "tracking_uri": ["", "https://ward.example"],
        "skip_cases": [[], ["Roe"]],
    }
    config = {"dataset_dir": "/ward/x", "init_from": "/home/me/run", "validation_cases": ["Doe"], "lr": "$@a + '/b'"}
    files = {
        "configs/train.json": json.dumps(config),
        "docs/fingerprint.json": '{"cases": ["Doe"], "broken": {"Roe": "Roe.nii: empty"}}',
        "docs/changes.json": json.dumps({"bundle": "unet_3d", "presets": [], "changed": changed}),
        "models/model.pt": "weights",
        "models/last.pt": "state of the optimizer",
    }
    run, copy = tmp_path / "run", tmp_path / "copy"
    for name, content in files.items():
        (run / name).parent.mkdir(exist_ok=True, parents=True)
        (run / name).write_text(content)
    codes = CaseCodes(["Doe"])
    together = "".join(text_files(run, codes).values())
    assert not [word for word in ("Doe", "Roe", "ward", "home") if word in together]
    assert "case_001" in together
    assert anonymous_config({"lr": "$@a + '/b'"}, codes) == {"lr": "$@a + '/b'"}
    copy_bundle(run, copy, codes)
    packed = zip_folder(copy)
    assert b"weights" in packed
    assert b"optimizer" not in packed
    assert packed == zip_folder(copy)
