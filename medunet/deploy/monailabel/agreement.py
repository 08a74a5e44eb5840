"""Agreement of label maps: of a network with annotators (scores), and of a network with itself (uncertainty)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from medunet.inferers import SourceGridInferer
from medunet.io import read_label, read_volume
from medunet.metrics import dice
from medunet.prediction import Predictor
from medunet.runtime import EnsembleLogits, autocast
from medunet.transforms import paint_regions, plain


def score_labels(predicted: Path, reference: Path, labels: Mapping[str, int], *, image: Path) -> dict[str, float]:
    """Return Dice by label name of two label maps on an image's grid; NaN for a label that neither map has."""
    grid = read_volume(image).record.geometry
    one, other = (read_label(path, reference=grid, labels=labels).image for path in (predicted, reference))
    return {name: dice(one == value, other == value) for name, value in labels.items() if value}


def labels_agree(tables: Iterable[Mapping[str, int]]) -> bool:
    """Return whether no name has two values and no value two names in tables of labels.

    Examples:
        >>> labels_agree([{"liver": 1, "spleen": 2}, {"cell": 255}]), labels_agree([{"liver": 1}, {"tumour": 1}])
        (True, False)
        >>> labels_agree([{"liver": 1}, {"liver": 5}])
        False
    """
    pairs = {pair for labels in tables for pair in labels.items()}
    return len(pairs) == len({name for name, _ in pairs}) == len({value for _, value in pairs})


def uncertainty(predictor: Predictor, source: Path, *, by: str) -> float:
    """Return the disagreement of label maps of mirrored views (`mirror`) or of an ensemble's members (`folds`)."""
    return disagreement(label_maps(predictor, predictor.preprocessing({"image": str(source)})["image"], by))


def disagreement(maps: Sequence[npt.NDArray[np.integer]]) -> float:
    """Return one minus the mean Dice between label maps of one shape, over all pairs and the classes of a pair.

    Examples:
        >>> a, b = np.array([1, 1, 0, 2]), np.array([1, 0, 0, 2])
        >>> round(disagreement([a, b]), 4)  # Dice 2/3 and 1
        0.1667
        >>> disagreement([a * 0, a * 0])
        0.0
    """
    values = []
    for one, other in itertools.combinations(maps, 2):
        classes = sorted({*np.unique(one).tolist(), *np.unique(other).tolist()} - {0})
        values += [dice(one == label, other == label) for label in classes]
    return 1.0 - float(np.mean(values)) if values else 0.0


@torch.inference_mode()
def label_maps(predictor: Predictor, image: torch.Tensor, by: str) -> list[npt.NDArray[np.uint8]]:
    """Return label maps `(*spatial)` of a preprocessed image `(C, *spatial)`: per mirrored view, or per fold."""
    inferer, network = predictor.inferer, predictor.network
    if isinstance(inferer, SourceGridInferer):
        inferer = inferer.inferer
    views: list[tuple[torch.nn.Module, tuple[int, ...]]]
    if by == "folds":
        ensemble = next(part for part in network.modules() if isinstance(part, EnsembleLogits))
        views = [(member, ()) for member in ensemble.members]
    else:
        views = [(network, ()), *((network, (axis,)) for axis in range(1, image.ndim))]
    maps = []
    for module, flip in views:
        with autocast(predictor.device, predictor.autocast_dtype):
            logits = torch.as_tensor(inferer(plain(image).flip(flip)[None].to(predictor.device), module))[0].float()
        if predictor.region_order:
            labels = paint_regions(logits, predictor.region_order)
        else:
            labels = logits.argmax(dim=0) if len(logits) > 1 else (logits[0] > 0).long()
        maps.append(np.asarray(labels.flip([axis - 1 for axis in flip]).to(torch.uint8).cpu()))
    return maps
