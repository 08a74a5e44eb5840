"""Predicting many studies: by one resident predictor here, or by many on a Ray cluster; every case is accounted for."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medunet.bundle.read import read_own
from medunet.errors import ConfigError
from medunet.files import check_target, claim
from medunet.io import ResultFormat
from medunet.prediction import NamedSource
from medunet.trust import require_trust

from .ledger import Ledger, Outcome, bundle_digest
from .manifest import read_cohort
from .pool import CASE_SECONDS, IN_FLIGHT, RayPool, join_cluster
from .resident import Case, Resident, as_outcome, make_predictor

logger = logging.getLogger(__name__)

Where = Literal["here", "ray"]


@dataclass(frozen=True)
class CohortResult:
    """What a cohort came to.

    Args:
        output: the folder.
        outcomes: of every case, in the order of the cohort; those that Ctrl-C left out are missing.
        cases: how many there are.
        is_interrupted: by Ctrl-C.
    """

    output: Path
    outcomes: tuple[Outcome, ...]
    cases: int
    is_interrupted: bool = False

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Cases without a result."""
        return tuple(outcome for outcome in self.outcomes if not outcome.is_done)


def predict_cohort(
    bundle: Path,
    source: Path | Sequence[Case],
    output: Path,
    *,
    where: Where = "here",
    device: str = "auto",
    probabilities: bool = False,
    result_format: ResultFormat = "auto",
    overrides: Mapping[str, Any] | None = None,
    ensemble: Sequence[Path] = (),
    replace: bool = False,
    trust: bool = False,
    case_seconds: float = CASE_SECONDS,
    report: Callable[[Outcome], None] | None = None,
) -> CohortResult:
    """Predict the cases of a manifest or a folder, and keep a ledger beside the results.

    Called again with the same arguments it goes on: what has a result is left alone, what failed is tried again.
    Results are whole files or none, so a machine or process may die at any moment. All machines must see bundle, images
    and output under the same paths.

    Args:
        bundle: folder of a bundle or run with weights.
        source: a path, see :func:`read_cohort`; or cases, such as those of :class:`DicomWebStore`.
        output: folder of the results and of ``ledger.jsonl``.
        where: ``"ray"``: on the cluster of RAY_ADDRESS or of this machine, one predictor a GPU.
        device: as of :class:`medunet.prediction.Predictor`, as are the next four.
        probabilities: see device.
        result_format: see device.
        overrides: see device.
        ensemble: see device.
        replace: predict everything anew; called again without it, such a run goes on.
        trust: see device.
        case_seconds: on a cluster, a process that is at a case for longer hangs: it is ended, and the case tried again.
            Counted from when the cases that the process got before have come back.
        report: called with every new outcome.

    Raises:
        SecurityError: the bundle is not trusted.
        MedunetError: a manifest, bundle or device that cannot be used; results of another bundle; Ray is missing.
    """
    for one in (bundle, *ensemble):
        require_trust(one, trust=trust)
    check_target(output)
    channels = int(read_own(bundle, "inference")["in_channels"])
    cases: list[Case] = [*read_cohort(source, channels=channels)] if isinstance(source, Path) else list(source)
    options = {
        "bundle": str(bundle.resolve()),
        "output_dir": str(output.resolve()),
        "device": device,
        "probabilities": probabilities,
        "result_format": result_format,
        "overrides": dict(overrides or {}),
        "trust": trust,
        "ensemble": [str(one.resolve()) for one in ensemble],
    }
    asked = (probabilities, result_format, sorted((overrides or {}).items()), [bundle_digest(one) for one in ensemble])
    ray = join_cluster() if where == "ray" else None
    interrupted = False
    with claim(output), Ledger(output, digest=bundle_digest(bundle, *asked), replace=replace) as ledger:
        options |= {"overwrite": ledger.replaces, "skip_done": not ledger.replaces}
        missing = [case for case in cases if not ledger.is_done(case.name, sent=_is_sent_back(case))]
        logger.info("%d cases, %d have results", len(cases), len(cases) - len(missing))
        found = (
            RayPool(options, ray=ray, case_seconds=case_seconds).predict(missing)
            if ray is not None
            else _here(options, missing)
        )
        try:
            with contextlib.closing(found):
                for outcome in found:
                    ledger.add(outcome)
                    if report is not None:
                        report(outcome)
        except KeyboardInterrupt:
            interrupted = True
        outcomes = tuple(ledger.outcomes[case.name] for case in cases if case.name in ledger.outcomes)
    return CohortResult(output, outcomes, len(cases), interrupted)


def _is_sent_back(case: Case) -> bool:
    return not isinstance(case, NamedSource) and case.send_back


def _here(options: Mapping[str, Any], cases: Sequence[Case]) -> Generator[Outcome, None, None]:
    """By one predictor in this process."""
    files = [case for case in cases if isinstance(case, NamedSource)]
    remote = [case for case in cases if not isinstance(case, NamedSource)]
    if files:
        output = Path(options["output_dir"])
        yield from (as_outcome(result, output) for result in make_predictor(options).predict(files))
    if remote:
        resident = Resident(options)
        if (problem := resident.problem()) is not None:
            raise ConfigError(problem)
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            yield from threads.map(resident.predict, remote)
