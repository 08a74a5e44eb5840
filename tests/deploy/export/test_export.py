"""An exported file computes what PyTorch computes, describes its use, and contains no path of its origin."""

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from commands import run_medunet
from monai.bundle import ConfigParser

from medunet.bundle import find_bundle
from medunet.cli.export import FileFormat
from medunet.deploy.export import FORMATS, export_bundle, load_tile_network
from medunet.deploy.export.exporting import MAX_RMS, compare, difference
from medunet.deploy.export.formats import Runner
from medunet.deploy.export.network import TileSizes, largest_tile
from medunet.errors import ConfigError, DataError
from medunet.files import sha256_of
from medunet.inferers import OverlapTileInferer
from medunet.io import write_volume
from medunet.runs.ensemble import write_ensemble
from medunet.trust import UntrustedBundleError

from .conftest import needs

HERE = ("onnx", "torchscript", "torch-export", "openvino")
# each format and each kind of network once; the other pairs take seconds each
SHORT = {("onnx", "padded"), ("torchscript", "unpadded"), ("torch-export", "odd"), ("openvino", "padded")}
PAIRS = [
    pytest.param(name, kind, marks=() if (name, kind) in SHORT else pytest.mark.slow)
    for name in HERE
    for kind in ("padded", "unpadded", "odd")
]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_an_exported_file_matches_pytorch_and_contains_no_path_or_source_code(
    name: str, kind: str, bundles: dict[str, Path], volume: Path, tmp_path: Path
) -> None:
    needs(name)
    output = tmp_path / f"out/network{FORMATS[name].suffix}"
    done = export_bundle(bundles[kind], output, to=name, image=volume if kind == "padded" else None)
    assert done.paths[0] == output
    assert done.agreement.rms < MAX_RMS
    if kind == "padded":
        assert (done.agreement.case_unlike, done.agreement.case_voxels) == (0, 17 * 19 * 16)
    assert set(output.parent.iterdir()) == set(done.paths)
    network, run = load_tile_network(bundles[kind]), FORMATS[name].open(output)
    for grow in (3, 17):  # other sizes than those of the comparison
        image = torch.randn(1, 1, *network.sizes.fit(tuple(n + grow for n in network.patch)))
        with torch.inference_mode():
            expected = network.reference(image)
        assert difference(run(image), expected)[0] < MAX_RMS
    assert FORMATS[name].describe(output) == network.description
    contents = [path.read_bytes() for path in done.paths]
    if zipfile.is_zipfile(output):
        archive = zipfile.ZipFile(output)
        contents = [archive.read(entry) for entry in archive.namelist()]
    for secret in (str(tmp_path), str(Path(__file__).parents[3]), "site-packages", "in forward"):
        assert not any(secret.encode() in content for content in contents), secret


def test_the_description_has_all_that_another_program_needs(bundles: dict[str, Path]) -> None:
    description = load_tile_network(bundles["padded"]).description
    labels = [(label["name"], label["value"]) for label in description["labels"]]
    assert labels == [("background", 0), ("anterior", 1), ("posterior", 2)]
    assert description["spacing_mm"] == [1.0, 1.0, 1.0]
    assert description["orientation"] == "RAS"
    assert (description["mirror_axes"], description["mirror_swaps"], description["view_scales"]) == ([], [], [])
    steps = [step["_target_"] for step in description["preprocessing"]]
    assert steps == ["Orientationd", "Spacingd", "NormalizeIntensityd"]
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
        output = tmp_path / f"network{FORMATS[name].suffix}"
        done = export_bundle(tmp_path / "joined", output, to=name, image=volume)
        assert done.agreement.case_unlike == 0
    assert FORMATS[name].describe(output)["weights_sha256"].keys() == {"fold_0.pt", "fold_1.pt"}


def replace_runner(monkeypatch: pytest.MonkeyPatch, change: Callable[[Runner], Runner], **options: object) -> None:
    """Change how TorchScript files are run."""
    original = FORMATS["torchscript"]
    changed = replace(original, open=lambda path: change(original.open(path)), **options)  # type: ignore[arg-type]
    monkeypatch.setitem(FORMATS, "torchscript", changed)


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "noise": lambda logits: logits + 0.01 * torch.randn_like(logits),
    "shifted": lambda logits: logits.roll(1, dims=2),
    "cropped": lambda logits: logits[..., :-1],
    "not a number": lambda logits: logits.clone().index_fill_(2, torch.tensor([0]), torch.nan),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_disagrees_is_rejected_and_removed(
    name: str, bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = CHANGES[name]
    replace_runner(monkeypatch, lambda run: lambda image: change(run(image)))
    with pytest.raises(DataError, match=r"disagrees with PyTorch and was removed"):
        export_bundle(bundles["padded"], tmp_path / "out" / "network.ts", to="torchscript")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_wrong_label_in_a_case_is_detected(bundles: dict[str, Path], volume: Path) -> None:
    network = load_tile_network(bundles["padded"])

    def run(image: torch.Tensor) -> torch.Tensor:
        logits = network.reference(image)
        noise = tuple(image.shape[2:]) in {network.patch, network.sizes.example()}
        return logits if noise else logits.flip(1)

    agreement = compare(network, run, image=volume)
    assert agreement.rms == 0
    assert agreement.fault is not None
    assert "of the case" in agreement.fault


@pytest.mark.parametrize("shipped", ["unet_3d", "unet_2d", "unet_2015"])
def test_tiles_never_exceed_the_largest_size(shipped: str) -> None:
    parser = ConfigParser()
    parser.read_config(str(find_bundle(shipped) / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def")
    axes = network.shapes.spatial_dims
    largest = largest_tile(network.shapes, tuple(parser["patch_size"]))
    for size in (largest, (512, 512, 301)[:axes], (1001, 153, 170)[:axes]):
        for extend in (0, 1):
            plan = OverlapTileInferer(largest).plan(size, network, extend=extend)
            assert all(n <= most for tile in plan.tiles for n, most in zip(tile.window_size, largest, strict=True))
    assert all(n <= most for n, most in zip(TileSizes.of(network.shapes).example(), largest, strict=True))


def test_a_case_larger_than_the_largest_tile_is_compared_tile_by_tile(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = load_tile_network(bundles["padded"])
    largest = largest_tile(network.shapes, network.patch)
    assert FORMATS["tensorrt"].largest(network) == largest
    assert FORMATS["onnx"].largest(network) is None
    assert network.description["tile"]["largest"] is None
    sizes: set[tuple[int, ...]] = set()

    def limit(run: Runner) -> Runner:
        def limited(image: torch.Tensor) -> torch.Tensor:
            sizes.add(tuple(image.shape[2:]))
            assert all(n <= most for n, most in zip(image.shape[2:], largest, strict=True))
            return run(image)

        return limited

    replace_runner(monkeypatch, limit, largest=lambda network: largest)
    voxels = np.random.default_rng(0).normal(size=(90, 40, 33)).astype(np.float32)
    image = write_volume(voxels, tmp_path / "case.nii.gz", affine=np.eye(4))
    agreement = export_bundle(bundles["padded"], tmp_path / "a.ts", to="torchscript", image=image).agreement
    assert (agreement.case_unlike, agreement.case_voxels) == (0, 90 * 40 * 33)
    assert (90, 40, 33) not in sizes
    assert FORMATS["torchscript"].describe(tmp_path / "a.ts") == network.limited(largest).description


def test_a_missing_package_names_the_extra(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnx", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"medunet\[export\]"):
        export_bundle(bundles["padded"], tmp_path / "a.onnx", to="onnx")
    with pytest.raises(ConfigError, match=r"medunet\[openvino\]"):
        export_bundle(bundles["padded"], tmp_path / "a.xml", to="openvino")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_tensorrt_without_a_gpu_has_a_remedy(bundles: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"torch sees no GPU.*remedy.*--to onnx"):
        export_bundle(bundles["padded"], tmp_path / "a.engine", to="tensorrt")


def test_untrusted_and_untrained_bundles_and_existing_files_are_rejected(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "a.ts"
    foreign = shutil.copytree(bundles["padded"], tmp_path / "foreign")
    path = foreign / "configs" / "inference.json"
    path.write_text(path.read_text().replace('"$import os"', '"$print(1)"'))
    with pytest.raises(UntrustedBundleError):
        export_bundle(foreign, output, to="torchscript")
    assert export_bundle(foreign, output, to="torchscript", trust=True).paths
    content = output.read_bytes()
    with pytest.raises(DataError, match="already exists"):
        export_bundle(bundles["padded"], output, to="torchscript")
    with pytest.raises(ConfigError, match=r"must be \.ts"):
        export_bundle(bundles["padded"], tmp_path / "a.onnx", to="torchscript")
    assert output.read_bytes() == content
    bare = shutil.copytree(bundles["padded"], tmp_path / "bare", ignore=shutil.ignore_patterns("models"))
    with pytest.raises(DataError, match="checkpoint is missing"):
        export_bundle(bare, tmp_path / "b.ts", to="torchscript")


def test_an_onnx_file_has_dynamic_batch_and_axes(onnx_files: Callable[[str], Path]) -> None:
    path = onnx_files("unpadded")
    import onnx

    graph = onnx.load(path).graph
    shown = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (graph.input[0], graph.output[0])
    ]
    assert shown == [["batch", 1, "x", "y"], ["batch", 2, "x - 40", "y - 40"]]
    assert not any(node.op_type == "BatchNormalization" for node in graph.node)


@pytest.mark.filterwarnings("ignore")
def test_the_command_accepts_all_formats_and_prints_the_comparison(
    bundles: dict[str, Path], volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ("-o", tmp_path / "a.ts")
    assert run_medunet("bundle", "export", bundles["padded"], "--to", "torchscript", *output, "--image", volume) == 0
    shown = capsys.readouterr().out
    assert "standard deviations" in shown
    assert f"0 of {17 * 19 * 16} voxels differ" in shown
    assert list(get_args(FileFormat)) == list(FORMATS)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_saved_on_a_gpu_are_exported(bundles: dict[str, Path], tmp_path: Path) -> None:
    needs("onnx")
    run = shutil.copytree(bundles["padded"], tmp_path / "run")
    path = run / "models" / "model.pt"
    weights = torch.load(path, weights_only=True)["model"]
    torch.save({"model": {name: tensor.cuda() for name, tensor in weights.items()}}, path)
    done = export_bundle(run, tmp_path / "network.onnx", to="onnx")
    assert done.agreement.rms < MAX_RMS
