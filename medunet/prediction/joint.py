"""The mean answer of bundles that see an image each in its own way: other spacing, other network, other patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor

from medunet.errors import ConfigError
from medunet.transforms import CleanComponentsd, CleanRegionsd, DecideLabelsd, DecodeLabelsd

from .predictor import Predictor, Source
from .rules import ClassRule, as_step

PROBABILITY_KEY = "prob"
"""Where a bundle's postprocessing leaves the class probabilities on the source grid."""


class JointPredictor:
    """Averages class probabilities of several bundles on the grid of the source image.

    Members of one plan are better joined by :class:`Predictor` (``ensemble``), which reads once and keeps no
    probabilities of the whole image; here each member reads and resamples for itself, one after the other.

    Args:
        bundles: at least one; they must agree in channels and labels.
        output_dir: where label maps are written.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        overwrite: replace results that exist.
        rules: how the label maps are cleaned, as chosen for these bundles together; those of the members do not count.

    Raises:
        ConfigError: no bundle, or bundles that differ in channels or labels.
    """

    def __init__(
        self,
        bundles: Sequence[Path],
        *,
        output_dir: Path,
        device: str = "auto",
        overwrite: bool = False,
        rules: Sequence[ClassRule] = (),
    ) -> None:
        if not bundles:
            raise ConfigError("an ensemble needs a bundle", received="none")
        # probabilities are computed and averaged, but only label maps are written
        overrides = {"post::save::prob_key": None}
        self.members = [
            Predictor(
                bundle,
                output_dir=output_dir,
                device=device,
                probabilities=True,
                overwrite=overwrite,
                overrides=overrides,
            )
            for bundle in bundles
        ]
        first, self.labels = self.members[0], _labels(self.members[0])
        for bundle, member in zip(bundles, self.members, strict=True):
            if (member.channels, _labels(member), member.region_order) != (
                first.channels,
                self.labels,
                first.region_order,
            ):
                raise ConfigError(
                    "members of an ensemble differ in channels or labels",
                    file=bundle,
                    received=(member.channels, _labels(member)),
                    expected=(first.channels, self.labels),
                )
        self.decide = DecideLabelsd("pred", order=first.region_order, prob_key=None)
        self.clean: CleanComponentsd | CleanRegionsd = CleanComponentsd("pred")
        if first.regions:
            step = as_step(rules, classes=len(first.regions))
            self.clean = CleanRegionsd("pred", first.regions, order=first.region_order, **step)
        elif rules:
            self.clean = CleanComponentsd("pred", **as_step(rules, classes=len(self.labels)))
        self.decode = DecodeLabelsd("pred", self.labels)

    def predict_case(self, source: Source) -> Path:
        """Predict one case and return the label map's path; raises as :meth:`Predictor.predict_case`."""
        first, *others = self.members
        item = first.decide(source)
        total = _probabilities(item)
        for member in others:
            total += _probabilities(member.decide(source))
        item["pred"] = MetaTensor(total / len(self.members)).copy_meta_from(item["pred"])
        return first.write(self.decode(self.clean(self.decide(item))))


def _probabilities(item: dict[Any, Any]) -> torch.Tensor:
    tensor = item[PROBABILITY_KEY]
    plain = tensor.as_tensor() if isinstance(tensor, MetaTensor) else torch.as_tensor(tensor)
    return plain.float().clone()


def _labels(predictor: Predictor) -> dict[str, int]:
    return dict(predictor.savers[0].labels or {}) if predictor.savers else {}
