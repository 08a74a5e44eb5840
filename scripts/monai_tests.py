"""Run MONAI's own tests with medunet's parts in the place of MONAI's, and list every difference with its reason.

    git clone --depth 1 --branch 1.5.0 https://github.com/Project-MONAI/MONAI
    pip install parameterized
    python scripts/monai_tests.py MONAI

It replaces sliding-window inference, the U-Net, the Dice and cross entropy loss, Dice, surface distances and readers.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import monai.apps
import monai.data
import monai.inferers
import monai.losses
import monai.metrics
import monai.networks.nets
import numpy as np
import pytest
import torch
from monai.transforms.io import array as image_io

import medunet.losses
from medunet.inferers import OverlapTileInferer
from medunet.io import MedunetReader
from medunet.metrics import dice, surface_distances
from medunet.networks import UNet

FILES = (
    "inferers/test_sliding_window_inference.py",
    "networks/nets/test_unet.py",
    "losses/test_dice_ce_loss.py",
    "metrics/test_compute_meandice.py",
    "metrics/test_surface_distance.py",
    "metrics/test_hausdorff_distance.py",
    "transforms/test_load_image.py",
)

REASONS = {  # pattern of a failed test's id: why medunet differs on purpose
    r"window_default_0[01]": "images with one or four spatial axes: medunet has networks for two and three",
    r"test_sigma|test_cval": "expects blending and constant padding: exact tiles are not blended, borders are mirrored",
    r"test_multioutput": "expects several outputs of different sizes",
    r"ill_input_shape": "the input is padded instead of rejected",
    r"without_running_stats": "batch norm without running statistics depends on the window",
    r"TestDiceCELoss.*result": "the test gives one input to Dice as probabilities and to the cross entropy as logits",
    r"TestDiceCELoss.*ill_shape$": "a wrong shape is a ConfigError, which is a ValueError, not an AssertionError",
    r"test_script_save": "MONAI's helper, collected as a test",
    r"hyper_params_3": "an up-convolution has no kernel size of its own",
    r"channel_dim|itk_reader_3|load_nifti_multichannel": "a fourth axis must be declared with its number of channels",
    r"TestLoadImage.*(single|reader_gpu_cpu_consistency_single)": "one slice is a 2D image, not a volume",
    r"TestLoadImage.*(dicom|itk_meta|no_files)": "161 slices of the series in MONAI's tests are missing: rejected",
    r"itk_reader_multichannel": "asks for reversed axes: medunet has one order of axes, that of MONAI",
    r"TestUNET.*shape_6": "an activation is given by its name",
}


def sliding_window(
    inputs: torch.Tensor,
    roi_size: Sequence[int] | int,
    batch: int,
    network: Callable[..., Any],
    *options: Any,
    **kwargs: Any,
) -> Any:
    """`monai.inferers.sliding_window_inference`: overlap and blending have no counterpart."""
    names = (
        "overlap",
        "mode",
        "sigma_scale",
        "padding_mode",
        "cval",
        "sw_device",
        "device",
        "progress",
        "roi_weight_map",
    )
    names += ("process_fn", "buffer_steps", "buffer_dim", "with_coord")
    own = {**dict(zip(names, options, strict=False)), **{key: kwargs.pop(key) for key in names if key in kwargs}}
    inferer = OverlapTileInferer(
        roi_size, batch_size=batch, halo=0, tile_stride=1, sw_device=own.get("sw_device"), device=own.get("device")
    )
    return inferer(inputs, network, *options[len(names) :], **kwargs)


class SlidingWindow(OverlapTileInferer):
    """`monai.inferers.SlidingWindowInferer`."""

    def __init__(self, roi_size: Any, sw_batch_size: int = 1, *_: Any, **__: Any) -> None:
        super().__init__(roi_size, batch_size=sw_batch_size, halo=0, tile_stride=1)


def unet(*, num_res_units: int = 2, norm: Any = "instance", act: Any = "prelu", **options: Any) -> UNet:
    """`monai.networks.nets.UNet`, with as many convolutions per level as MONAI's has residual units."""
    for name in ("adn_ordering", "dropout", "bias"):
        options.pop(name, None)
    if "kernel_size" in options:
        options["kernel_sizes"] = [options.pop("kernel_size")] * len(options["channels"])
    block = "residual" if num_res_units > 0 else "plain"
    return UNet(**options, convs_per_level=max(1, num_res_units), block=block, norm=norm, act=act)


class DiceCE(medunet.losses.DiceCELoss):
    """`monai.losses.DiceCELoss`; medunet's always takes class indices or one-hot targets of logits."""

    def __init__(self, *, to_onehot_y: bool = False, weight: Any = None, sigmoid: bool = False, **options: Any) -> None:
        weights = None if weight is None else weight.tolist()
        super().__init__(**{"include_background": True, "batch": False, **options}, class_weights=weights)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss."""
        return super().forward(input, target)


def per_class(score: Callable[[np.ndarray, np.ndarray], float], pred: Any, ref: Any, first: int) -> torch.Tensor:
    """Return a score per case and class."""
    rows = [
        [score(p.cpu().numpy() > 0, r.cpu().numpy() > 0) for p, r in zip(ps[first:], rs[first:], strict=True)]
        for ps, rs in zip(pred, ref, strict=True)
    ]
    return torch.tensor(rows)


def compute_dice(y_pred: Any, y: Any, include_background: bool = True, ignore_empty: bool = True) -> torch.Tensor:
    """`monai.metrics.compute_dice`: NaN for a class that the reference lacks, unless `ignore_empty` is off."""

    def score(pred: np.ndarray, ref: np.ndarray) -> float:
        if ref.any():
            return dice(pred, ref)
        return float("nan") if ignore_empty else float(not pred.any())

    return per_class(score, y_pred, y, 0 if include_background else 1)


class Distance:
    """`SurfaceDistanceMetric` and `HausdorffDistanceMetric`, by medunet's surface distances."""

    def __init__(
        self,
        *,
        distance_metric: str = "euclidean",
        percentile: float | None = None,
        directed: bool = False,
        symmetric: bool = False,
        **_: Any,
    ) -> None:
        if distance_metric != "euclidean":
            pytest.skip("distances are Euclidean")
        self.percentile, self.directed, self.symmetric = percentile, directed, symmetric

    def __call__(self, y_pred: Any, y: Any, spacing: Any = None) -> None:
        """Compute the distance of each case and class."""
        first = int(len(y_pred[0]) > 1)
        if not all(mask.any() for masks in (*y_pred, *y) for mask in masks[first:]):
            pytest.skip("a class that is missing has no distance: NaN instead of infinity or 0")
        self.rows = per_class(lambda pred, ref: self.distance(pred, ref, spacing), y_pred, y, first)

    def distance(self, pred: np.ndarray, ref: np.ndarray, spacing: Any) -> float:
        """Return one distance."""
        raise NotImplementedError

    def aggregate(self, reduction: str = "mean") -> torch.Tensor:
        """Return the mean over cases and classes."""
        return self.rows.mean()


class Surface(Distance):
    """Average surface distance."""

    def distance(self, pred: np.ndarray, ref: np.ndarray, spacing: Any) -> float:
        """Return the mean distance."""
        result = surface_distances(pred, ref, spacing_mm=spacing or (1.0,) * pred.ndim)
        return result.mean() if self.symmetric else float(np.mean(result.pred_to_ref))


class Hausdorff(Distance):
    """Hausdorff distance, or a percentile of it."""

    def distance(self, pred: np.ndarray, ref: np.ndarray, spacing: Any) -> float:
        """Return the distance."""
        result = surface_distances(pred, ref, spacing_mm=spacing or (1.0,) * pred.ndim)
        sides = [result.pred_to_ref] if self.directed else [result.pred_to_ref, result.ref_to_pred]
        return max(float(np.percentile(side, self.percentile or 100)) for side in sides)


class Reader(MedunetReader):
    """A reader of MONAI; its options have no counterpart but the channels."""

    def __init__(self, *, channel_dim: int | None = None, **_: Any) -> None:
        super().__init__(channels=None if channel_dim is None else channel_dim)


def single_slice(url: str, output_dir: str, **_: Any) -> None:
    """Take one file of the DICOM series in MONAI's tests in place of the one that its tests download."""
    series = sorted((Path(sys.argv[1]) / "tests" / "testing_data" / "CT_DICOM").iterdir())
    folder = Path(output_dir) / "CT_DICOM_SINGLE"
    folder.mkdir()
    shutil.copy(series[0], folder)


class Plugin:
    """Count the results per file, and keep the ids of the failures."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.failures: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the result of one test."""
        if report.when == "call" or report.outcome != "passed":
            self.counts[Path(report.fspath).name][report.outcome] += (
                report.when == "call" or report.outcome == "skipped"
            )
            if report.failed:
                self.failures.append((report.nodeid, str(report.longrepr).strip().splitlines()[-1]))


def main() -> None:
    """Replace MONAI's parts, run its tests and print the tables."""
    tests = Path(sys.argv[1]) / "tests"
    sys.path.insert(0, sys.argv[1])
    monai.inferers.sliding_window_inference, monai.inferers.SlidingWindowInferer = sliding_window, SlidingWindow
    monai.networks.nets.UNet = unet
    monai.losses.DiceCELoss = DiceCE
    monai.metrics.compute_dice = compute_dice
    monai.metrics.SurfaceDistanceMetric, monai.metrics.HausdorffDistanceMetric = Surface, Hausdorff
    for name in ("NibabelReader", "ITKReader", "PydicomReader"):
        setattr(monai.data, name, Reader)
    image_io.SUPPORTED_READERS.update(dict.fromkeys(image_io.SUPPORTED_READERS, Reader))
    monai.apps.download_and_extract = single_slice
    plugin = Plugin()
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "--rootdir", sys.argv[1], "-W", "ignore", "--tb", "line"]
    pytest.main([*options, *(str(tests / file) for file in FILES)], plugins=[plugin])
    for file, counts in plugin.counts.items():
        print(f"{file}: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    for test, error in plugin.failures:
        reason = next(
            (reason for pattern, reason in REASONS.items() if re.search(pattern, test)), f"UNEXPLAINED {error}"
        )
        print(f"{test.split('::', 1)[1]}: {reason}")


if __name__ == "__main__":
    main()
