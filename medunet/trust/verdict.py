"""Whether a bundle may run, with reasons for the user."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medunet.errors import DataError, SecurityError
from medunet.files import config_folder, damaged_checkpoint, write_atomically

from .scan import Finding, scan_bundle

logger = logging.getLogger(__name__)

_unwritten: set[Path] = set()  # records that hold for this process only, because they could not be written

# Environment variable: SHA-256 of bundles that may run, separated by commas. It serves programs without a command line
# of medunet, such as `mlflow models serve`, and approves single contents, not everything that they may load later.
TRUST_VARIABLE = "MEDUNET_TRUST"

SHOWN_FINDINGS = 12  # in the one line of an error; `medunet bundle verify` prints them all

Reason = Literal["known", "recorded", "given", "none"]

_REASONS = {
    "known": "everything in it that could run is medunet's own or on the list of reviewed targets",
    "recorded": "you approved it before, and it is unchanged",
    "given": f"you approved it (--trust or {TRUST_VARIABLE})",
}


class UntrustedBundleError(SecurityError):
    """A bundle that could run code of its own; ``findings`` is the whole list."""

    def __init__(self, bundle: Path, findings: Sequence[Finding], digest: str) -> None:
        self.findings = tuple(findings)
        more = f"; and {len(findings) - SHOWN_FINDINGS} more" if len(findings) > SHOWN_FINDINGS else ""
        super().__init__(
            "the bundle is not trusted, nothing of it was run",
            file=bundle,
            received="; ".join(map(str, findings[:SHOWN_FINDINGS])) + more,
            remedy="read `medunet bundle verify`; if you trust its author, repeat with --trust, or with "
            f"{TRUST_VARIABLE}={digest} where there is no such option",
        )


@dataclass(frozen=True)
class Verdict:
    """Whether a bundle may run, and why."""

    bundle: Path
    findings: tuple[Finding, ...]  # reasons not to trust it
    reason: Reason  # why it is trusted; 'none' if it is not
    digest: str  # SHA-256 of everything in it that can run; `--trust` records it
    weights: tuple[str, ...]  # files of `models/` whose recorded SHA-256 was confirmed
    configs: Mapping[str, Any] = field(repr=False)  # content of the JSON files by name, as judged

    @property
    def is_trusted(self) -> bool:
        """Whether it may run."""
        return self.reason != "none"

    def lines(self) -> list[str]:
        """Return the verdict as text, one sentence or finding per line."""
        listed = [f"  {finding}" for finding in self.findings]
        if self.is_trusted:
            confirmed = f" Weights are those that metadata.json records: {', '.join(self.weights)}."
            head = ["For your information, it contains:"] if listed else []
            return [f"Trusted: {_REASONS[self.reason]}.{confirmed if self.weights else ''}", *head, *listed]
        return [
            "NOT TRUSTED. Running this bundle could run code that its author chose, with all your rights.",
            "Unknown to medunet:",
            *listed,
            "Nothing of it was run. If you trust its author and have read these lines, --trust runs it and remembers",
            f"this exact content (SHA-256 {self.digest}); after any change you must approve it again.",
        ]


def judge(bundle: Path) -> Verdict:
    """Judge a bundle without running any part of it.

    A bundle is trusted if it contains only expressions that medunet renders, reviewed targets, plain values, and
    weights of the recorded hash; if the user approved exactly this content before; or if ``MEDUNET_TRUST`` has its
    hash. In a bundle that medunet created on this machine, values may be paths and addresses outside of it.
    """
    scan = scan_bundle(bundle)
    is_own = bool(scan.findings) and _is_recorded(_created(bundle))
    findings = tuple(finding for finding in scan.findings if not (is_own and finding.outside))
    reason: Reason = "none"
    if not findings:
        reason = "known"
    elif _is_recorded(_approved(scan.digest)):
        reason = "recorded"
    elif scan.digest in os.environ.get(TRUST_VARIABLE, "").lower().replace(",", " ").split():
        reason = "given"
    return Verdict(bundle, findings, reason, scan.digest, scan.weights, scan.configs)


def require_trust(bundle: Path, *, trust: bool = False) -> Verdict:
    """Reject a bundle that is not trusted.

    Args:
        bundle: its folder.
        trust: approve it, and remember exactly this content.

    Raises:
        DataError: a file of weights is damaged.
        UntrustedBundleError: with the findings.
    """
    verdict = judge(bundle)
    for finding in verdict.findings:
        if finding.damaged and (error := damaged_checkpoint(bundle / finding.file)) is not None:
            raise error
    if verdict.is_trusted:
        return verdict
    if not trust:
        raise UntrustedBundleError(bundle, verdict.findings, verdict.digest)
    _record(_approved(verdict.digest))
    logger.warning("approved by you: %s", "; ".join(map(str, verdict.findings[:SHOWN_FINDINGS])))
    return dataclasses.replace(verdict, reason="given")


def adopt(bundle: Path) -> None:
    """Record that medunet created a bundle from a trusted one, so that the user's own options need no approval."""
    _record(_created(bundle))
    if not (verdict := judge(bundle)).is_trusted:
        _record(_approved(verdict.digest))


def _approved(digest: str) -> Path:
    return config_folder() / "trusted" / f"{digest}.json"


def _created(bundle: Path) -> Path:
    key = hashlib.sha256(str(bundle.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    return config_folder() / "made" / f"{key}.json"


def _is_recorded(path: Path) -> bool:
    return path in _unwritten or path.is_file()


def _record(path: Path) -> None:
    if not _is_recorded(path):
        try:
            write_atomically(path, json.dumps({"version": 1}) + "\n")
        except DataError as error:
            _unwritten.add(path)
            logger.debug("not recorded: %s", error)
