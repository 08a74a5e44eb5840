"""How unsure a network is about an image: by how much its answers to mirrored views, or those of its folds, differ."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from medunet.errors import ConfigError
from medunet.inferers import SourceGridInferer
from medunet.metrics import dice
from medunet.prediction import Predictor
from medunet.runtime import EnsembleLogits, autocast
from medunet.transforms import paint_regions, plain


def disagreement(maps: Sequence[npt.NDArray[np.integer]]) -> float:
    """One minus the mean Dice between label maps, over all pairs and classes; 0 where all agree, 1 where none do.

    A class that neither of a pair has says nothing; maps that are all background agree.

    Args:
        maps: two or more, of one shape, 0 is background.

    Raises:
        ConfigError: fewer than two.

    Example:
        >>> a, b = np.array([1, 1, 0, 2]), np.array([1, 0, 0, 2])
        >>> round(disagreement([a, b]), 4)  # Dice 2/3 and 1
        0.1667
        >>> disagreement([a, a, a])
        0.0
    """
    if len(maps) < 2:
        raise ConfigError("disagreement takes two answers", received=len(maps))
    values = []
    for one, other in itertools.combinations(maps, 2):
        for label in sorted({*np.unique(one).tolist(), *np.unique(other).tolist()} - {0}):
            values.append(dice(one == label, other == label))
    found = [value for value in values if not math.isnan(value)]
    return 1.0 - sum(found) / len(found) if found else 0.0


def mirrored_answers(predictor: Predictor, image: torch.Tensor) -> list[npt.NDArray[np.uint8]]:
    """Label maps of an image and of its mirror image along each axis, all put back in place.

    Args:
        predictor: of the bundle.
        image: preprocessed, ``(C, *spatial)``.

    Returns:
        One more than there are spatial axes, each ``(*spatial)`` on the network's grid.
    """
    axes = range(1, image.ndim)
    return [_labels(predictor, image, predictor.network, flip) for flip in ((), *((axis,) for axis in axes))]


def fold_answers(predictor: Predictor, image: torch.Tensor) -> list[npt.NDArray[np.uint8]]:
    """Label maps of the members of an ensemble.

    Raises:
        ConfigError: the bundle is no ensemble.
    """
    ensembles = [module for module in predictor.network.modules() if isinstance(module, EnsembleLogits)]
    if not ensembles:
        raise ConfigError("the bundle is no ensemble of folds", remedy="choose the strategy of mirrored views")
    return [_labels(predictor, image, member, ()) for member in ensembles[0].members]


def uncertainty(predictor: Predictor, source: Path, *, by: str) -> float:
    """How much answers differ, 0 to 1.

    Args:
        predictor: of the bundle.
        source: an image.
        by: `mirror` or `folds`.

    Raises:
        ConfigError: another `by`, or folds of a bundle that has none.
        MedunetError: the image cannot be read.
    """
    ways = {"mirror": mirrored_answers, "folds": fold_answers}
    if by not in ways:
        raise ConfigError("unknown measure of uncertainty", received=by, expected=", ".join(ways))
    image = predictor.preprocessing({"image": str(source)})["image"]
    return disagreement(ways[by](predictor, image))


@torch.inference_mode()
def _labels(
    predictor: Predictor, image: torch.Tensor, network: torch.nn.Module, flip: tuple[int, ...]
) -> npt.NDArray[np.uint8]:
    inferer = predictor.inferer
    inferer = inferer.inferer if isinstance(inferer, SourceGridInferer) else inferer
    with autocast(predictor.device, predictor.autocast_dtype):
        logits = torch.as_tensor(inferer(plain(image).flip(flip)[None].to(predictor.device), network))[0].float()
    if predictor.region_order:
        labels = paint_regions(logits, predictor.region_order)
    else:
        labels = logits.argmax(dim=0) if len(logits) > 1 else (logits[0] > 0).long()
    return np.asarray(labels.flip([axis - 1 for axis in flip]).to(torch.uint8).cpu())
