"""What a prediction would write, without weights and without reading images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from medunet.io.reader import PathLike

from .configuration import content, parse_inference
from .foreign import saved_by_medunet, savers_of
from .options import PredictOptions
from .source import Source, existing_result, expected_result, parts
from .steps import as_compose

Action = Literal["write", "replace", "skip", "fail"]


@dataclass(frozen=True)
class PredictionPreview:
    """A case that is not predicted.

    Args:
        images: the image, or its channels.
        path: the label map.
        action: `write`; `replace` or `skip`, as the options say, or else `fail`, if the result exists.
    """

    images: list[str]
    path: Path
    action: Action


def preview_predictions(
    bundle: PathLike, list_sources: Callable[[int], Sequence[Source]], options: PredictOptions
) -> list[PredictionPreview]:
    """Return what :class:`Predictor` would write for each case.

    Args:
        bundle: folder of a bundle or run.
        list_sources: returns the cases for a network of so many channels.
        options: options of the prediction, with an `output_dir`.

    Raises:
        MedunetError: a bundle, an option or an input that cannot be used.
    """
    values, overrides = options.config_values, options.changes
    device = torch.device("cpu")
    parser = parse_inference(Path(bundle), device=device, values=values, overrides=overrides, trust=options.trust)
    savers = savers_of(saved_by_medunet(as_compose(content(parser, "postprocessing")), parser))
    dims = content(parser, "spatial_dims")
    cases: list[PredictionPreview] = []
    for saver in savers:
        saver.pseudonyms = options.pseudonyms
    for source in list_sources(content(parser, "in_channels")):
        results = [existing_result(source, saver) for saver in savers]
        path = expected_result(source, savers[0], spatial_dims=dims)
        action: Action = "write"
        if options.skip_done and all(results):
            path, action = results[0] or path, "skip"
        elif any(results) or path.is_file():
            action = "replace" if options.overwrite or options.skip_done else "fail"
        images = parts(source)[0]
        cases.append(PredictionPreview([images] if isinstance(images, str) else images, path, action))
    return cases
