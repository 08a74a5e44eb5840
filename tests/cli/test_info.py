"""`medunet info` and `medunet list`."""

import json

import torch
from commands import Capture, Medunet

import medunet as package


def test_info_has_what_a_bug_report_needs(medunet: Medunet, capsys: Capture) -> None:
    assert medunet("info", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["medunet"] == package.__version__
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["fast_format"] in ("float32", "bfloat16", "float16")
    assert facts["free_memory_gb"] > 0
    assert {"dicom", "export", "openvino", "ray", "gpu"} <= facts["extras"].keys()
    assert "dev" not in facts["extras"]
    assert medunet("info") == 0
    assert "cache folder" in capsys.readouterr().out


def test_list_names_bundles_and_presets(medunet: Medunet, capsys: Capture) -> None:
    assert medunet("list", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    bundles, models = document["bundles"], document["models"]
    assert "CC0" in models["nuclei"]["data_source"]
    assert set(bundles) == {"unet_2015", "unet_2d", "unet_3d"}
    assert bundles["unet_3d"]["presets"] == ["few", "sgd_poly"]
    assert medunet("list") == 0
    assert "unet_2015" in capsys.readouterr().out
