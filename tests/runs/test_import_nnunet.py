"""Models of nnU-Net become bundles that give the same labels."""

import json
import pickle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunet_model import predict, write_model
from PIL import Image

from medunet.bundle import verify_bundle
from medunet.datasets import open_dataset
from medunet.errors import MedunetError
from medunet.io import read_volume
from medunet.prediction import Predictor
from medunet.resources import find_bundle
from medunet.runs.imports import import_nnunet
from medunet.runs.nnunet_raw import write_nnunet_raw

EXACT: dict[str, Any] = {"device": "cpu", "overrides": {"autocast_dtype": "float32"}}
MOST_DIFFERENT = 1e-4  # share of voxels: the reference and medunet add numbers in different orders, so ties may differ


def scan(size: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return an image `(z, y, x)` of smooth noise in a frame of zeros, with a hole."""
    noise = np.random.default_rng(seed).normal(100, 40, [-(-n // 3) for n in size]).clip(1)
    image = np.kron(noise, np.ones([3] * len(size)))[tuple(slice(0, n) for n in size)].round()
    image[:, :4] = 0
    image[:, -3:] = 0
    image[tuple(slice(n // 2, n // 2 + 2) for n in size)] = 0
    return image.astype(np.int16)


def write_scan(path: Path, image: np.ndarray, spacing: tuple[float, ...]) -> None:
    nib.save(nib.Nifti1Image(image.transpose(2, 1, 0), np.diag([*spacing[::-1], 1.0])), path)


CASES: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "cubic resampling in 3D": ({"spacing": (1.5, 1.2, 0.9)}, (1.2, 1.0, 1.0)),
    "thick slices": ({"spacing": (5.0, 1.2, 0.9), "transpose": (0, 2, 1)}, (4.0, 1.0, 1.0)),
    "transposed, small image, two folds": (
        {"spacing": (0.8, 0.9, 1.0), "transpose": (2, 0, 1), "patch": (32, 16, 24), "folds": (0, 1)},
        (1.0, 1.0, 1.0),
    ),
    "residual encoder, two channels": (
        {
            "residual": True,
            "normalisation": ("CTNormalization", "ZScoreNormalization"),
            "masks": (False, True),
            "spacing": (1.0, 1.1, 1.1),
        },
        (1.0, 1.0, 1.0),
    ),
    "regions and ignore label": (
        {
            "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
            "order": [1, 2],
            "normalisation": ("RescaleTo01Normalization",),
        },
        (1.0, 0.9, 1.0),
    ),
    "slice by slice": ({"dims": 2, "patch": (16, 32), "spacing": (0.8, 1.1), "transpose": (1, 0, 2)}, (1.0, 3.5, 1.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_labels_equal_those_of_nnunet(name: str, tmp_path: Path) -> None:
    options, spacing = CASES[name]
    model = write_model(tmp_path, **options)
    channels = len(options.get("normalisation", ["one"]))
    images = [scan((22, 30, 26), seed) for seed in range(channels)]
    files = [tmp_path / f"case_{index:04}.nii.gz" for index in range(channels)]
    for file, image in zip(files, images, strict=True):
        write_scan(file, image, spacing)
    import_nnunet(model, output=tmp_path / "bundle")
    for tta in (None, "mirror"):
        predictor = Predictor(tmp_path / "bundle", output_dir=tmp_path / str(tta), tta=tta, **EXACT)
        path = predictor.predict_case([str(file) for file in files] if channels > 1 else files[0])
        labels = np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)
        expected = predict(model, np.stack(images), spacing, mirror=tta is not None)
        assert len(np.unique(expected)) > 1
        assert (labels != expected).mean() <= MOST_DIFFERENT


@pytest.mark.slow
def test_the_copy_in_the_tests_gives_the_labels_of_nnunet_itself(tmp_path: Path) -> None:
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    options, spacing = CASES["cubic resampling in 3D"]
    model, image = write_model(tmp_path, **options), scan((22, 30, 26))
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    labels = predictor.predict_single_npy_array(image[None].astype(np.float32), {"spacing": list(spacing)})
    assert (labels != predict(model, image[None], spacing)).mean() <= MOST_DIFFERENT


def test_pictures_in_colour_give_the_same_labels(tmp_path: Path) -> None:
    model = write_model(
        tmp_path,
        dims=2,
        picture=True,
        patch=(32, 16),
        spacing=(1.0, 1.0),
        normalisation=("RGBTo01Normalization",) * 3,
        masks=(False,) * 3,
    )
    colours = np.random.default_rng(0).integers(0, 256, (50, 37, 3)).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "case.png")
    import_nnunet(model, output=tmp_path / "bundle")
    predictor = Predictor(tmp_path / "bundle", output_dir=tmp_path / "out", **EXACT)
    labels = np.asarray(Image.open(predictor.predict_case(tmp_path / "case.png")))
    expected = predict(model, colours.transpose(2, 0, 1)[:, None], (999.0, 1.0, 1.0))[0]
    assert (labels != expected).mean() <= MOST_DIFFERENT


def test_an_imported_bundle_passes_the_checks_of_bundles(tmp_path: Path) -> None:
    done = import_nnunet(write_model(tmp_path, folds=(0, 1)), output=tmp_path / "bundle")
    assert done.folds == ("0", "1")
    assert set(verify_bundle(tmp_path / "bundle").values()) == {None}


def _parts(folder: Path, **options: Any) -> list[Path]:
    """Write two models that divide the classes, with intensities of their own, as TotalSegmentator's."""
    ct: dict[str, Any] = {"normalisation": ("CTNormalization",), "trainer": "nnUNetTrainerNoMirroring", "mirror": ()}
    names = ({"background": 0, "liver": 1, "spleen": 2}, {"background": 0, "aorta": 1})
    parts = [write_model(folder / f"Dataset29{i}", labels=names[i], **ct, **options) for i in range(2)]
    numbers = {"mean": 110.0, "std": 20.0, "percentile_00_5": 30.0, "percentile_99_5": 150.0}
    _edit(parts[1] / "plans.json", foreground_intensity_properties_per_channel={"0": numbers})
    for file in parts[0].glob("fold_*/checkpoint_final.pth"):
        content = torch.load(file, weights_only=False)
        content["network_weights"]["decoder.seg_layers.1.bias"] += torch.tensor([0.5, 1.0, -0.5])  # all classes occur
        torch.save(content, file)
    return parts


def test_models_that_divide_the_classes_become_one_bundle(tmp_path: Path) -> None:
    parts, image = _parts(tmp_path / "results"), scan((22, 30, 26))
    write_scan(tmp_path / "case.nii.gz", image, (1.0, 1.0, 1.0))
    done = import_nnunet(*parts, output=tmp_path / "bundle")
    assert done.labels == ("background", "liver", "spleen", "aorta")
    assert set(verify_bundle(tmp_path / "bundle").values()) == {None}
    predictor = Predictor(tmp_path / "bundle", output_dir=tmp_path / "out", **EXACT)
    labels = np.asarray(nib.load(predictor.predict_case(tmp_path / "case.nii.gz")).dataobj).transpose(2, 1, 0)
    first, second = (predict(part, image[None], (1.0, 1.0, 1.0), mirror=False) for part in parts)
    allowed = np.stack([np.where((first > 0) & (second > 0), first, first + 3 * second), first + 3 * second])
    allowed[1][(first > 0) & (second > 0)] = 3
    assert {*np.unique(labels)} == {0, 1, 2, 3}
    # sums of logits are rounded to float16, and these are sums of differences: random networks have 0.2 % of ties
    assert (labels != allowed).all(axis=0).mean() <= 4e-3


def test_models_that_do_not_belong_together_are_rejected(tmp_path: Path) -> None:
    parts = _parts(tmp_path / "results", folds=(0, 1))
    _edit(parts[1] / "dataset.json", labels={"background": 0, "spleen": 1})
    with pytest.raises(MedunetError, match=r"two models have the same class .*spleen"):
        import_nnunet(*parts, output=tmp_path / "bundle")
    _edit(parts[1] / "dataset.json", labels={"background": 0, "aorta": 1})
    (parts[1] / "fold_1" / "checkpoint_final.pth").unlink()
    with pytest.raises(MedunetError, match="another folds cannot become one bundle"):
        import_nnunet(*parts, output=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


class _Runs:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("was_run"),)


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _resave(path: Path, **changes: Any) -> None:
    torch.save(torch.load(path, weights_only=False) | changes, path)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda model, file: (model / "plans.json").rename(model / "plans.pkl"), "nnU-Net v1"),
        (lambda model, file: (model / "dataset.json").unlink(), "not the folder of an nnU-Net model"),
        (lambda model, file: file.unlink(), "no such checkpoint"),
        (lambda model, file: file.write_bytes(pickle.dumps(_Runs())), "SecurityError|damaged|not a|could run code"),
        (lambda model, file: _resave(file, extra=_Runs()), "could run code"),
        (lambda model, file: _resave(file, trainer_name="myTrainer"), "unknown trainer"),
        (lambda model, file: _edit(model / "plans.json", image_reader_writer="MyReader"), "unknown image reader"),
        (lambda model, file: _edit(model / "dataset.json", labels={"background": 0, "one": 1}), "do not fit the plan"),
        (lambda model, file: _edit(model / "dataset.json", channel_names={"0": "a", "1": "b"}), "contradicts dataset"),
    ],
)
def test_a_model_that_cannot_be_imported_writes_nothing(break_it: Any, message: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    break_it(model, model / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(MedunetError, match=message):
        import_nnunet(model, output=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    assert not Path("was_run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"previous_stage": "3d_lowres"}, "second stage of a cascade"),
        ({"resampling_fn_data": "resample_torch_simple"}, "unknown resampling"),
        ({"normalization_schemes": ["MyNormalization"]}, "unknown normalisation"),
        ({"architecture": {"network_class_name": "my.Primus", "arch_kwargs": {}}}, "unknown network"),
    ],
)
def test_an_unknown_part_of_a_plan_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["base"] |= changes
    _edit(model / "plans.json", **plans)
    with pytest.raises(MedunetError, match=message):
        import_nnunet(model, output=tmp_path / "bundle")


def test_folds_that_were_not_trained_are_named(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    with pytest.raises(MedunetError, match=r"no such fold.*3"):
        import_nnunet(model, output=tmp_path / "bundle", folds="0,3")


def test_training_data_become_a_raw_folder_of_nnunet(cells: Path, tmp_path: Path) -> None:
    output = tmp_path / "Dataset101_Cells"
    dataset = write_nnunet_raw(find_bundle("unet_2d"), output, data=cells)
    again = open_dataset(output)
    assert [case.name for case in again.cases] == [case.name for case in dataset.cases]
    assert list(again.labels) == list(dataset.labels)
    assert list(again.labels.values()) == list(range(len(dataset.labels)))
    for old, new in zip(dataset.cases, again.cases, strict=True):
        before, after = (read_volume(case.label).image.numpy().squeeze() for case in (old, new))
        assert np.array_equal(np.unique(before, return_inverse=True)[1], np.unique(after, return_inverse=True)[1])
        images = [read_volume(case.images[0]).image.numpy().squeeze() for case in (old, new)]
        assert np.array_equal(*images)
    held_out = [name for fold in json.loads((output / "splits_final.json").read_text()) for name in fold["val"]]
    assert sorted(held_out) == [case.name for case in dataset.cases]
