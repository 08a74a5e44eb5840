"""The result of one case."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medunet.errors import MedunetError

from .manifest import CaseFile
from .review import Review
from .source import Source
from .timing import StageSeconds

Status = Literal["written", "there already", "failed"]


@dataclass
class Prediction:
    """Result of one case.

    Args:
        source: the image, or its channels.
        path: the label map; None if the case failed.
        error: why it failed.
        stages: seconds of work per stage, without waiting for other cases.
        skipped: whether the result existed before.
        name: name of the result, or its pseudonym.
        warnings: what the reader found unusual.
        inputs: the image, or its channels; with digests if `PredictOptions.digests` requests them.
        measurements: of :func:`medunet.metrics.measure_labels`, if `PredictOptions.measure` requests them.
        review: how far the result can be trusted, if `PredictOptions.review` requests it.
        outputs: the label map, the class probabilities, and the tables and outlines of objects.
    """

    source: Source
    path: Path | None = None
    error: MedunetError | None = None
    stages: StageSeconds = field(default_factory=StageSeconds)
    skipped: bool = False
    name: str = ""
    warnings: list[str] = field(default_factory=list)
    inputs: list[CaseFile] = field(default_factory=list)
    outputs: list[CaseFile] = field(default_factory=list)
    measurements: list[dict[str, Any]] = field(default_factory=list)
    review: Review | None = None

    @property
    def status(self) -> Status:
        """Whether the result was written in this call."""
        return "failed" if self.path is None else "there already" if self.skipped else "written"

    @property
    def seconds(self) -> float:
        """Seconds of work on this case, from reading to the written file."""
        return self.stages.total
