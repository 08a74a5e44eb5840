"""A file that leaves answers as PyTorch does, says how it is to be used, and tells nothing of where it was made."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from medunet.bundle import find_bundle
from medunet.cli.app import main
from medunet.cli.export import FileFormat
from medunet.deploy.export import (
    FORMATS,
    Agreement,
    TileNetwork,
    export_bundle,
    find_format,
    format_of,
    load_tile_network,
)
from medunet.deploy.export.agreement import MAX_RMS, compare, difference
from medunet.deploy.export.formats import Runner
from medunet.deploy.export.onnx_file import OnnxFile
from medunet.deploy.export.tensorrt_file import TensorRtFile
from medunet.deploy.export.tile_sizes import TileSizes, largest_tile
from medunet.deploy.export.torchscript_file import TorchScriptFile
from medunet.errors import ConfigError, DataError
from medunet.files import sha256_of
from medunet.inferers import OverlapTileInferer
from medunet.io import write_volume
from medunet.networks import UNet
from medunet.runs.ensemble import write_ensemble
from medunet.trust import UntrustedBundleError

from .conftest import needs

HERE = ("onnx", "torchscript", "torch-export", "openvino")


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("kind", ["padded", "unpadded", "odd"])
def test_a_file_answers_as_pytorch_for_tiles_of_any_size(
    name: str, kind: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    needs(name)
    output = tmp_path / f"network{find_format(name).suffix}"
    done = export_bundle(bundles[kind], output, to=name)
    assert done.paths[0] == output
    assert done.agreement.rms < MAX_RMS
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in done.paths}

    network, run = load_tile_network(bundles[kind]), format_of(output).open(output)
    for grow in (3, 17):
        size = network.sizes.fit(tuple(n + grow for n in network.patch))
        image = torch.randn(1, 1, *size)
        with torch.inference_mode():
            expected = network.reference(image)
        assert difference(run(image), expected)[0] < MAX_RMS
    assert format_of(output).describe(output) == network.description


@pytest.mark.parametrize("name", HERE)
def test_labels_of_a_case_are_those_of_medunet_predict(
    name: str, bundles: dict[str, Path], volume: Path, tmp_path: Path
) -> None:
    needs(name)
    output = tmp_path / f"network{find_format(name).suffix}"
    agreement = export_bundle(bundles["padded"], output, to=name, image=volume).agreement
    assert agreement.case_voxels == 17 * 19 * 16
    assert agreement.case_unlike == 0


@pytest.mark.data
@pytest.mark.parametrize("name", HERE)
def test_labels_of_a_real_case_are_those_of_medunet_predict(
    name: str, bundles: dict[str, Path], test_data: Path, tmp_path: Path
) -> None:
    needs(name)
    image = test_data / "Task04_Hippocampus" / "imagesTr" / "hippocampus_001.nii.gz"
    output = tmp_path / f"network{find_format(name).suffix}"
    agreement = export_bundle(bundles["padded"], output, to=name, image=image).agreement
    assert agreement.case_unlike is not None
    assert agreement.case_unlike <= 1e-4 * agreement.case_voxels


@pytest.mark.parametrize("name", HERE)
def test_no_path_and_no_line_of_source_is_in_a_file(name: str, bundles: dict[str, Path], tmp_path: Path) -> None:
    needs(name)
    output = tmp_path / f"network{find_format(name).suffix}"
    paths = export_bundle(bundles["padded"], output, to=name).paths
    contents = [path.read_bytes() for path in paths]
    if zipfile.is_zipfile(output):
        archive = zipfile.ZipFile(output)
        contents = [archive.read(entry) for entry in archive.namelist()]
    for secret in (str(tmp_path), str(Path(__file__).parents[3]), "site-packages", "in forward"):
        assert not any(secret.encode() in content for content in contents), secret


def test_the_description_tells_all_that_another_program_needs(bundles: dict[str, Path]) -> None:
    description = load_tile_network(bundles["padded"]).description
    labels = [(label["name"], label["value"]) for label in description["labels"]]
    assert labels == [("background", 0), ("anterior", 1), ("posterior", 2)]
    assert description["spacing_mm"] == [1.0, 1.0, 1.0]
    assert description["orientation"] == "RAS"
    assert (description["mirror_axes"], description["mirror_swaps"], description["view_scales"]) == ([], [], [])
    assert [step["_target_"] for step in description["preprocessing"]] == [
        "Orientationd",
        "Spacingd",
        "NormalizeIntensityd",
    ]
    assert description["preprocessing"][1]["pixdim"] == [1.0, 1.0, 1.0]
    tile = description["tile"]
    assert (tile["stride"], tile["margin"], tile["multiple"]) == ([4, 4, 4], [0, 0, 0], [1, 1, 1])
    assert tile["halo"] == [-(-radius // 4) * 4 for radius in tile["receptive_radius"]]
    assert description["weights_sha256"] == {"model.pt": sha256_of(bundles["padded"] / "models" / "model.pt")}
    unpadded = load_tile_network(bundles["unpadded"]).description["tile"]
    assert (unpadded["margin"], unpadded["multiple"], unpadded["remainder"]) == ([20, 20], [4, 4], [0, 0])
    json.dumps(description)


def test_an_ensemble_is_one_file(bundles: dict[str, Path], volume: Path, tmp_path: Path) -> None:
    runs = {}
    for fold in (0, 1):
        runs[fold] = shutil.copytree(bundles["padded"], tmp_path / f"fold_{fold}")
        state = torch.load(runs[fold] / "models" / "model.pt", weights_only=True)
        state["model"]["head.weight"].mul_(fold + 1)
        torch.save(state, runs[fold] / "models" / "model.pt")
    write_ensemble(tmp_path / "joined", runs, rules=(), decision={"cases": 2})
    for name in ("torchscript", "torch-export"):
        output = tmp_path / f"network{find_format(name).suffix}"
        done = export_bundle(tmp_path / "joined", output, to=name, image=volume)
        assert done.agreement.case_unlike == 0
    assert format_of(output).describe(output)["weights_sha256"].keys() == {"fold_0.pt", "fold_1.pt"}


class Wrong(TorchScriptFile):
    """Answers a little otherwise, in `share` of the voxels."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.change = change

    def open(self, path: Path) -> Runner:
        run = super().open(path)
        return lambda image: self.change(run(image))


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits + 0.01 * torch.randn_like(logits),
        lambda logits: logits.roll(1, dims=2),
        lambda logits: logits[..., :-1],
        lambda logits: logits.clone().index_fill_(2, torch.tensor([0]), torch.nan),
    ],
    ids=["noise", "shifted", "cropped", "not a number"],
)
def test_a_file_that_answers_otherwise_is_refused_and_not_left(
    change: Callable[[torch.Tensor], torch.Tensor],
    bundles: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(FORMATS, "torchscript", Wrong(change))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"answers otherwise than PyTorch.*no file is left"):
        export_bundle(bundles["padded"], tmp_path / "out" / "network.ts", to="torchscript")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_wrong_label_in_a_real_case_is_found(bundles: dict[str, Path], volume: Path) -> None:
    network = load_tile_network(bundles["padded"])

    def run(image: torch.Tensor) -> torch.Tensor:
        logits = network.reference(image)
        noise = tuple(image.shape[2:]) in {network.patch, network.sizes.example()}
        return logits if noise else logits.flip(1)

    agreement = compare(network, run, image=volume)
    assert agreement.rms == 0
    assert agreement.fault is not None
    assert "of the case" in agreement.fault


def test_a_few_ties_are_rounding() -> None:
    assert Agreement(case_unlike=6, case_voxels=62_475).fault is None
    assert Agreement(case_unlike=7, case_voxels=62_475).fault is not None
    assert Agreement(rms=float("nan")).fault is not None


@pytest.mark.parametrize("shipped", ["unet_3d", "unet_2d", "unet_2015"])
def test_an_image_of_any_size_is_cut_into_tiles_within_the_largest(shipped: str) -> None:
    folder = find_bundle(shipped) / "configs"
    parser = ConfigParser()
    parser.read_config(str(folder / "inference.json"))
    network = parser.get_parsed_content("network_def")
    axes = network.shapes.spatial_dims
    largest = largest_tile(network.shapes, tuple(parser["patch_size"]))
    if shipped == "unet_3d":
        assert network.shapes.halo == (56, 56, 56)
        assert largest == (152, 168, 152)
    for size in (largest, (512, 512, 301)[:axes], (1001, 153, 170)[:axes]):
        for extend in (0, 1):
            plan = OverlapTileInferer(largest).plan(size, network, extend=extend)
            assert all(n <= most for tile in plan.tiles for n, most in zip(tile.window_size, largest, strict=True))
    assert all(n <= most for n, most in zip(TileSizes.of(network.shapes).example(), largest, strict=True))


def test_a_tensorrt_profile_goes_up_to_the_largest_tile(bundles: dict[str, Path]) -> None:
    network = load_tile_network(bundles["padded"])
    assert TensorRtFile().largest(network) == largest_tile(network.shapes, network.patch)
    assert OnnxFile().largest(network) is None
    assert network.description["tile"]["largest"] is None


class Limited(TorchScriptFile):
    """Takes tiles up to a size, as an engine does."""

    seen: ClassVar[set[tuple[int, ...]]] = set()

    def largest(self, network: TileNetwork) -> tuple[int, ...]:
        return largest_tile(network.shapes, network.patch)

    def open(self, path: Path) -> Runner:
        most = self.describe(path)["tile"]["largest"]
        run = super().open(path)

        def limited(image: torch.Tensor) -> torch.Tensor:
            self.seen.add(tuple(image.shape[2:]))
            if any(n > limit for n, limit in zip(image.shape[2:], most, strict=True)):
                raise RuntimeError(f"no tiles of {tuple(image.shape)}")
            return run(image)

        return limited


def test_a_case_larger_than_the_largest_tile_is_compared_tile_by_tile(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "torchscript", Limited())  # type: ignore[arg-type]
    voxels = np.random.default_rng(0).normal(size=(90, 40, 33)).astype(np.float32)
    image = write_volume(voxels, tmp_path / "case.nii.gz", affine=np.eye(4))
    agreement = export_bundle(bundles["padded"], tmp_path / "a.ts", to="torchscript", image=image).agreement
    assert (agreement.case_unlike, agreement.case_voxels) == (0, 90 * 40 * 33)
    assert (90, 40, 33) not in Limited.seen
    network = load_tile_network(bundles["padded"])
    assert (
        format_of(tmp_path / "a.ts").describe(tmp_path / "a.ts")
        == network.limited(Limited().largest(network)).description
    )


def test_a_missing_package_names_the_extra(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnx", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"medunet\[export\]"):
        export_bundle(bundles["padded"], tmp_path / "a.onnx", to="onnx")
    with pytest.raises(ConfigError, match=r"medunet\[openvino\]"):
        export_bundle(bundles["padded"], tmp_path / "a.xml", to="openvino")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_tensorrt_without_a_gpu_says_where_to_go(bundles: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"torch sees none.*remedy.*--to onnx"):
        export_bundle(bundles["padded"], tmp_path / "a.engine", to="tensorrt")


def test_an_untrusted_bundle_is_not_run(bundles: dict[str, Path], tmp_path: Path) -> None:
    foreign = shutil.copytree(bundles["padded"], tmp_path / "foreign")
    path = foreign / "configs" / "inference.json"
    path.write_text(path.read_text().replace('"$import os"', '"$print(1)"'))
    with pytest.raises(UntrustedBundleError):
        export_bundle(foreign, tmp_path / "a.ts", to="torchscript")
    assert export_bundle(foreign, tmp_path / "a.ts", to="torchscript", trust=True).paths


def test_a_file_is_neither_replaced_nor_misnamed_by_accident(bundles: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.ts").write_bytes(b"mine")
    with pytest.raises(DataError, match="exists already"):
        export_bundle(bundles["padded"], tmp_path / "a.ts", to="torchscript")
    with pytest.raises(ConfigError, match=r"a\.ts"):
        export_bundle(bundles["padded"], tmp_path / "a.onnx", to="torchscript")
    assert (tmp_path / "a.ts").read_bytes() == b"mine"


def test_weights_are_needed(bundles: dict[str, Path], tmp_path: Path) -> None:
    bare = shutil.copytree(bundles["padded"], tmp_path / "bare")
    shutil.rmtree(bare / "models")
    with pytest.raises(DataError, match="no checkpoint"):
        export_bundle(bare, tmp_path / "a.ts", to="torchscript")


def test_an_onnx_file_opens_batch_and_axes(bundles: dict[str, Path], tmp_path: Path) -> None:
    needs("onnx")
    import onnx

    OnnxFile().write(load_tile_network(bundles["unpadded"]), tmp_path / "a.onnx")
    graph = onnx.load(tmp_path / "a.onnx").graph
    shown = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (graph.input[0], graph.output[0])
    ]
    assert shown == [["batch", 1, "x", "y"], ["batch", 2, "x - 40", "y - 40"]]
    assert not any(node.op_type == "BatchNormalization" for node in graph.node)


def test_the_network_is_folded_before_it_leaves(bundles: dict[str, Path]) -> None:
    network = load_tile_network(bundles["padded"])
    assert isinstance(network.reference, UNet)
    norms = [sum(isinstance(m, torch.nn.BatchNorm3d) for m in part.modules()) for part in
             (network.reference, network.module)]  # fmt: skip
    assert norms[0] > 0
    assert norms[1] == 0


@pytest.mark.filterwarnings("ignore")
def test_the_command_says_what_was_compared(
    bundles: dict[str, Path],
    volume: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["medunet", "bundle", "export", bundles["padded"], "--to", "torchscript", "-o", tmp_path / "a.ts"]
    monkeypatch.setattr(sys, "argv", [*map(str, words), "--image", str(volume)])
    with pytest.raises(SystemExit) as info:
        main()
    assert not info.value.code
    shown = capsys.readouterr().out
    assert "standard deviations" in shown
    assert f"0 of {17 * 19 * 16} voxels differ" in shown


def test_the_command_knows_all_formats() -> None:
    assert [each.value for each in FileFormat] == list(FORMATS)


def test_what_is_no_number_differs_infinitely() -> None:
    expected = torch.randn(1, 2, 4, 4)
    assert difference(expected[..., :3], expected)[0] == np.inf
    assert difference(expected * torch.nan, expected)[0] == np.inf


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_that_were_kept_on_a_gpu_are_exported(bundles: dict[str, Path], tmp_path: Path) -> None:
    needs("onnx")
    run = tmp_path / "run"
    shutil.copytree(bundles["padded"], run)
    path = run / "models" / "model.pt"
    weights = torch.load(path, weights_only=True)["model"]
    torch.save({"model": {name: tensor.cuda() for name, tensor in weights.items()}}, path)
    done = export_bundle(run, tmp_path / "network.onnx", to="onnx")
    assert done.agreement.rms < MAX_RMS
