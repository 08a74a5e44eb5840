"""A trained bundle that stays resident and predicts case after case."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from medunet.errors import ConfigError, MedunetError, find_cause
from medunet.io import ResultFormat, SavePredictiond
from medunet.networks import autocast, load_weights, resolve_device

logger = logging.getLogger(__name__)

Source = Path | Sequence[Path]

_DEFAULTS = {"result_format": "auto", "overwrite": False}
"""What a config says that nobody has changed; bundles made before these keys lack them."""


@dataclass(frozen=True)
class Prediction:
    """What became of one case.

    Args:
        source: the image, or its channels.
        path: the label map that was written; ``None`` when the case failed.
        error: why it failed.
        seconds: from reading to the written file.
    """

    source: Source
    path: Path | None
    error: MedunetError | None
    seconds: float


class Predictor:
    """Runs a bundle's ``inference.json`` without MONAI's engine around it.

    Pre- and postprocessing, network and inferer are the bundle's own, so the result is that of
    ``python -m monai.bundle run inference``. The network is loaded when the predictor is made.

    Args:
        bundle: folder of a bundle or run with weights in ``models/model.pt``.
        output_dir: where label maps are written.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        probabilities: also write class probabilities.
        result_format: of the label maps, see :class:`medunet.io.SavePredictiond`.
        overwrite: replace results that exist; otherwise such a case is refused before the network runs.
        overrides: values by config id.

    Raises:
        ConfigError: a config that cannot be used, or a device that is not there.
        DataError: no weights, or weights of another network.
    """

    def __init__(
        self,
        bundle: Path,
        *,
        output_dir: Path,
        device: str = "auto",
        probabilities: bool = False,
        result_format: ResultFormat = "auto",
        overwrite: bool = False,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.device = resolve_device(device)
        config = bundle / "configs" / "inference.json"
        if not config.is_file():
            raise ConfigError("the bundle lacks inference.json", file=bundle, remedy="give a bundle or a run")
        parser = ConfigParser()
        parser.read_config(str(config))
        if unknown := [key for key in overrides or {} if key not in parser]:
            raise ConfigError("unknown config key", file=config, received=", ".join(unknown))
        options = {"result_format": result_format, "overwrite": overwrite}
        asked = {key: value for key, value in options.items() if value != _DEFAULTS[key]}
        if unknown := [key for key in asked if key not in parser]:
            raise ConfigError(
                "the bundle is too old for this option",
                file=config,
                received=", ".join(unknown),
                remedy="render it again by `medunet bundle render`, or train anew",
            )
        parser.update(
            {
                "bundle_root": str(bundle),
                "device": self.device,
                "prediction_dir": str(output_dir),
                "save_probabilities": probabilities,
                **asked,
                **(overrides or {}),
            }
        )
        self.channels: int = parser.get_parsed_content("in_channels")
        network = parser.get_parsed_content("network_def")
        load_weights(network, parser.get_parsed_content("ckpt_path"))
        self.network = parser.get_parsed_content("network").eval()
        self.inferer = parser.get_parsed_content("inferer")
        self.preprocessing = parser.get_parsed_content("preprocessing")
        self.postprocessing = parser.get_parsed_content("postprocessing")
        steps = getattr(self.postprocessing, "transforms", ())
        self.savers = tuple(step for step in steps if isinstance(step, SavePredictiond))
        self.autocast_dtype: str = parser.get_parsed_content("autocast_dtype")

    def predict(self, sources: Iterable[Source]) -> Iterator[Prediction]:
        """Predict one case after the other; a case that fails is reported and the rest goes on."""
        for source in sources:
            begun = time.perf_counter()
            try:
                path = self.predict_case(source)
            except Exception as failure:
                error = find_cause(failure)
                if error is None:
                    raise
                yield Prediction(source, None, error, time.perf_counter() - begun)
            else:
                yield Prediction(source, path, None, time.perf_counter() - begun)

    def predict_case(self, source: Source) -> Path:
        """Predict one case and return the label map's path.

        Args:
            source: an image, or one image a channel.

        Raises:
            DataError: the image cannot be read, or the result exists and may not be replaced.
            GeometryError: the image's headers are wrong, or the result cannot lie on its grid in this format.
        """
        image = str(source) if isinstance(source, Path) else [str(path) for path in source]
        item = self.preprocessing({"image": image})
        for saver in self.savers:
            saver.check(item)
        item["pred"] = self.infer(item["image"])
        return Path(self.postprocessing(item)["pred_path"])

    @torch.inference_mode()
    def infer(self, image: torch.Tensor) -> torch.Tensor:
        """What the bundle's inferer answers for a preprocessed image ``(C, *spatial)``, on the CPU.

        Classes ``(1, *source)`` on the grid of the file as a rule; logits ``(classes, *spatial)`` where probabilities
        were asked for, or where the bundle was made before its inferer returned labels.
        """
        batch = image[None].to(self.device)
        with autocast(self.device, self.autocast_dtype):
            output = self.inferer(batch, self.network)[0].cpu()
        output = output.float() if output.is_floating_point() else output
        if isinstance(image, MetaTensor) and not isinstance(output, MetaTensor):
            output = MetaTensor(output).copy_meta_from(image)
        return output
