"""Predict many studies, by one predictor here or by many on a Ray cluster; every case is accounted for."""

import contextlib
import csv
import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from medunet.bundle.read import read_own
from medunet.datasets import list_inputs, shown
from medunet.errors import ConfigError, DataError, SecurityError
from medunet.files import check_target, claim
from medunet.io import output_name, split_suffix
from medunet.prediction import NamedSource, PredictOptions, Predictor
from medunet.trust import require_trust

from .ledger import Ledger, Outcome, bundle_digest
from .pool import CASE_SECONDS, IN_FLIGHT, Case, PredictorActor, RayPool, join_cluster

logger = logging.getLogger(__name__)

Where = Literal["here", "ray"]

IMAGE_COLUMN, NAME_COLUMNS = "image", ("name", "output")
SEPARATOR = ";"  # between the channels of one case


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
    """Predict the cases of a cohort file or a folder, and write a ledger beside the results.

    Another call with the same arguments continues: results are kept, failed cases are retried. Results are written
    atomically, so a machine or process may die at any moment. All machines must see bundle, images and output under the
    same paths.

    Args:
        bundle: folder of a bundle or run with weights.
        source: a cohort file or folder for :func:`read_cohort`; or cases, such as those of :class:`DicomWebStore`.
        output: folder of the results and of ``ledger.jsonl``.
        options: how cases are predicted; `output_dir`, `overwrite` and `skip_done` are set here.
        where: ``"here"``, or ``"ray"``: on the cluster of RAY_ADDRESS or of this machine, one predictor per GPU.
        replace: replace all results; another call without it continues.
        case_seconds: timeout per case on a cluster, after which another process retries the case.
        report: called with every new outcome.
        changes: single options by name, such as ``device="cpu"``.

    Raises:
        SecurityError: the bundle is not trusted.
        MedunetError: a cohort file, bundle or device that cannot be used; results of another bundle or of other
            options; Ray is missing.
    """
    options = dataclasses.replace(options or PredictOptions(), **changes)
    ensemble = [Path(one).resolve() for one in options.ensemble]
    for one in (bundle, *ensemble):
        require_trust(one, trust=options.trust)
    check_target(output)
    channels = int(read_own(bundle, "inference")["in_channels"])
    cases: list[Case] = [*read_cohort(source, channels=channels)] if isinstance(source, Path) else list(source)
    members = [bundle_digest(one) for one in ensemble]
    wanted = (options.probabilities, options.measure, options.review)
    settings = (wanted, options.tta, options.result_format, sorted(options.changes.items()), members)
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
        with contextlib.closing(actor), ThreadPoolExecutor(IN_FLIGHT) as threads:
            yield from threads.map(actor.predict, remote)


def read_cohort(source: Path, *, channels: int = 1) -> list[NamedSource]:
    """Return the cases of a cohort file or a folder, each with a unique name.

    A cohort file is a CSV file with a column `image`: a path, or one per channel with `;` between them, absolute or
    relative to its folder. A column `name` (or `output`) names the result without its suffix, possibly with
    folders; otherwise the result is named after the first image.

    Args:
        source: the CSV file, or a folder of images.
        channels: number of channels of the network.

    Raises:
        DataError: the cohort file cannot be read, lacks the column, has other channels or a repeated name.
        SecurityError: a name that leaves the output folder.
    """
    if source.is_dir():
        inputs = list_inputs(source, channels=channels)
        given = [(item,) if isinstance(item, Path) else tuple(item) for item in inputs]
        return [NamedSource(images, output_name(list(images) if len(images) > 1 else images[0])) for images in given]
    cases = list(_rows(source, channels=channels))
    if not cases:
        raise DataError("the cohort file has no case", file=source)
    if duplicates := [name for name, count in Counter(case.name for case in cases).items() if count > 1]:
        cause, remedy = "the names of cases must be unique", f"add a column `{NAME_COLUMNS[0]}`"
        raise DataError(cause, file=source, received=shown(duplicates), remedy=remedy)
    return cases


def _rows(file: Path, *, channels: int) -> Iterator[NamedSource]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the cohort file cannot be read: {error}", file=file) from error
    rows = csv.DictReader(text.splitlines())
    if IMAGE_COLUMN not in (rows.fieldnames or ()):
        cause = "the cohort file has no column of images"
        raise DataError(cause, file=file, received=rows.fieldnames, expected=IMAGE_COLUMN)
    for row in rows:
        words = [word.strip() for word in (row[IMAGE_COLUMN] or "").split(SEPARATOR) if word.strip()]
        name = next((text for key in NAME_COLUMNS if (text := (row.get(key) or "").strip())), None)
        if not words and name is None:
            continue
        if len(words) != channels:
            cause = f"line {rows.line_num}: the number of images must be the network's number of channels"
            raise DataError(cause, file=file, received=len(words), expected=channels)
        if name is not None:
            name = _checked_name(name, file)
        else:  # by text: an image that does not exist is a failed case
            name = output_name(words) if len(words) > 1 else split_suffix(Path(words[0]).name)[0]
        yield NamedSource(tuple(file.parent / word for word in words), name)


def _checked_name(text: str, file: Path) -> str:
    """Return a name without its suffix; raise a SecurityError if it leaves the output folder."""
    path = PurePosixPath(text.replace("\\", "/"))
    stem = split_suffix(path.name)[0]
    if path.is_absolute() or ".." in path.parts or ":" in text or not stem or stem.startswith("."):
        raise SecurityError("names must stay in the output folder", file=file, received=text, expected="patient_7/ct")
    return (path.parent / stem).as_posix()
