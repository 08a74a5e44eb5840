"""A data set without the cases that cannot be used."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from medunet.datasets.layouts.dataset import SegmentationDataset
from medunet.errors import DataError, MedunetError
from medunet.io import output_name

from .check import check_dataset
from .finding import raise_on_error, shown

logger = logging.getLogger(__name__)


def usable(dataset: SegmentationDataset, problems: Sequence[MedunetError]) -> tuple[SegmentationDataset, list[str]]:
    """What is left of a data set without the cases that cannot be used, and the names of those.

    Args:
        dataset: what :func:`open_dataset` gives.
        problems: what it has collected.

    Raises:
        DataError: nothing is left, or what is wrong is no single case's fault: a list with files that are missing, or
            images without labels, must be mended, for folds follow from the list.
    """
    findings = [finding for finding in check_dataset(dataset, level="voxels") if finding.severity == "error"]
    raise_on_error([finding for finding in findings if not finding.case])
    reasons = {finding.case: finding.cause for finding in reversed(findings)}
    names = {case.name for case in dataset.cases}
    for problem in problems:
        if (name := output_name(problem.file or "unknown")) not in names:
            raise problem
        reasons.setdefault(name, problem.cause)
    if reasons:
        listed = shown([f"{name}: {cause}" for name, cause in reasons.items()], separator="; ")
        logger.warning("%d cases are left out: %s", len(reasons), listed)
    cases = tuple(case for case in dataset.cases if case.name not in reasons)
    if not cases:
        raise_on_error(findings)
        raise DataError("no case can be used", file=dataset.root)
    return dataclasses.replace(dataset, cases=cases), sorted(reasons)
