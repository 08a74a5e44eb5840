"""Predict many studies, by one predictor here or by many on a Ray cluster; every case is accounted for."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medunet.bundle.read import read_own
from medunet.errors import ConfigError
from medunet.files import check_target, claim
from medunet.prediction import NamedSource, PredictOptions, Predictor
from medunet.trust import require_trust

from .actor import Case, PredictorActor
from .ledger import Ledger, Outcome, bundle_digest
from .manifest import read_cohort
from .pool import CASE_SECONDS, IN_FLIGHT, RayPool, join_cluster

logger = logging.getLogger(__name__)

Where = Literal["here", "ray"]


@dataclass(frozen=True)
class CohortResult:
    """The result of a cohort."""

    output: Path
    outcomes: tuple[Outcome, ...]  # in the order of the cohort, without cases that Ctrl-C left out
    cases: int  # number of all cases
    is_interrupted: bool = False  # by Ctrl-C

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Cases without a result."""
        return tuple(outcome for outcome in self.outcomes if not outcome.is_done)


def predict_cohort(
    bundle: Path,
    source: Path | Sequence[Case],
    output: Path,
    options: PredictOptions | None = None,
    *,
    where: Where = "here",
    replace: bool = False,
    case_seconds: float = CASE_SECONDS,
    report: Callable[[Outcome], None] | None = None,
    **changes: Any,
) -> CohortResult:
    """Predict the cases of a manifest or a folder, and write a ledger beside the results.

    Another call with the same arguments continues: results are kept, failed cases are retried. Results are written
    atomically, so a machine or process may die at any moment. All machines must see bundle, images and output under the
    same paths.

    Args:
        bundle: folder of a bundle or run with weights.
        source: a manifest or folder for :func:`read_cohort`; or cases, such as those of :class:`DicomWebStore`.
        output: folder of the results and of ``ledger.jsonl``.
        options: how cases are predicted; `output_dir`, `overwrite` and `skip_done` are set here.
        where: ``"here"``, or ``"ray"``: on the cluster of RAY_ADDRESS or of this machine, one predictor per GPU.
        replace: replace all results; another call without it continues.
        case_seconds: timeout per case on a cluster, after which another process retries the case.
        report: called with every new outcome.
        changes: single options by name, such as ``device="cpu"``.

    Raises:
        SecurityError: the bundle is not trusted.
        MedunetError: a manifest, bundle or device that cannot be used; results of another bundle; Ray is missing.
    """
    options = dataclasses.replace(options or PredictOptions(), **changes)
    ensemble = [Path(one).resolve() for one in options.ensemble]
    for one in (bundle, *ensemble):
        require_trust(one, trust=options.trust)
    check_target(output)
    channels = int(read_own(bundle, "inference")["in_channels"])
    cases: list[Case] = [*read_cohort(source, channels=channels)] if isinstance(source, Path) else list(source)
    members = [bundle_digest(one) for one in ensemble]
    settings = (options.probabilities, options.result_format, sorted(options.changes.items()), members)
    ray = join_cluster() if where == "ray" else None
    interrupted = False
    with claim(output), Ledger(output, digest=bundle_digest(bundle, *settings), replace=replace) as ledger:
        options = dataclasses.replace(
            options,
            output_dir=output.resolve(),
            ensemble=ensemble,
            overwrite=ledger.replaces,
            skip_done=not ledger.replaces,
        )
        missing = [case for case in cases if not ledger.is_done(case.name, sent=getattr(case, "send_back", False))]
        logger.info("%d cases, %d have results", len(cases), len(cases) - len(missing))
        if ray is None:
            outcomes = _predict_here(bundle, options, missing)
        else:
            outcomes = RayPool(bundle.resolve(), options, ray=ray, case_seconds=case_seconds).predict(missing)
        try:
            with contextlib.closing(outcomes):
                for outcome in outcomes:
                    ledger.add(outcome)
                    if report is not None:
                        report(outcome)
        except KeyboardInterrupt:
            interrupted = True
        known = tuple(ledger.outcomes[case.name] for case in cases if case.name in ledger.outcomes)
    return CohortResult(output, known, len(cases), interrupted)


def _predict_here(bundle: Path, options: PredictOptions, cases: Sequence[Case]) -> Generator[Outcome, None, None]:
    files = [case for case in cases if isinstance(case, NamedSource)]
    remote = [case for case in cases if not isinstance(case, NamedSource)]
    if files:
        output = Path(options.output_dir or "")
        yield from (Outcome.of(result, output) for result in Predictor(bundle, options).predict(files))
    if remote:
        actor = PredictorActor(bundle, options)
        if (problem := actor.start()) is not None:
            raise ConfigError(problem)
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            yield from threads.map(actor.predict, remote)
