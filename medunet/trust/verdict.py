"""May this bundle run? A verdict that a person understands."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medunet.errors import SecurityError
from medunet.files import damaged_checkpoint

from .records import is_made_here, is_remembered, mark_made_here, remember
from .scan import Finding, scan_bundle

logger = logging.getLogger(__name__)

TRUST_VARIABLE = "MEDUNET_TRUST"
"""Environment: SHA-256 of bundles that may run, with commas between.

For programs without a command line of ours, such as `mlflow models serve`, and containers whose files are not kept. It
is no switch: a word that holds for one content is none for what the same environment may load later.
"""

SHOWN_FINDINGS = 12
"""So many stand in the one line of an error; `medunet bundle verify` prints them all."""

Reason = Literal["known", "recorded", "given", "none"]

_REASONS = {
    "known": "everything in it that could run is medunet's own or on the list of reviewed targets",
    "recorded": "it is what you trusted before, unchanged",
    "given": f"you said so (--trust or {TRUST_VARIABLE})",
}


class UntrustedBundleError(SecurityError):
    """A bundle that could run code of its own; ``findings`` is the whole list."""

    def __init__(self, bundle: Path, findings: Sequence[Finding], digest: str) -> None:
        self.findings = tuple(findings)
        shown = "; ".join(map(str, findings[:SHOWN_FINDINGS]))
        more = f"; and {len(findings) - SHOWN_FINDINGS} more" if len(findings) > SHOWN_FINDINGS else ""
        super().__init__(
            "the bundle is not trusted, nothing of it was run",
            file=bundle,
            received=shown + more,
            remedy=(
                "read `medunet bundle verify`; if you know who made it and trust them, repeat with --trust, or with "
                f"{TRUST_VARIABLE}={digest} where there is no such option"
            ),
        )


@dataclass(frozen=True)
class Verdict:
    """Whether a bundle may run, and why.

    Args:
        bundle: its folder.
        findings: what speaks against it.
        reason: why it is trusted; 'none': it is not.
        digest: of everything in it that can run; what `--trust` records.
        weights: files of models/ whose recorded SHA-256 was confirmed.
        configs: content of the JSON files by name, as it was judged.
    """

    bundle: Path
    findings: tuple[Finding, ...]
    reason: Reason
    digest: str
    weights: tuple[str, ...] = ()
    configs: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_trusted(self) -> bool:
        """Whether it may run."""
        return self.reason != "none"

    def lines(self) -> list[str]:
        """The verdict in words, one sentence or finding a line."""
        confirmed = f" Weights are those that metadata.json records: {', '.join(self.weights)}." if self.weights else ""
        if self.is_trusted:
            return [
                f"Trusted: {_REASONS[self.reason]}.{confirmed}",
                *self._listed("For your information, it contains:"),
            ]
        return [
            "NOT TRUSTED. Running this bundle could run code that its author chose, with all your rights.",
            *self._listed("What medunet does not know:"),
            "Nothing of it was run. If you know who made it and have read these lines, --trust runs it and",
            f"remembers this exact content (SHA-256 {self.digest}); after any change you are asked again.",
        ]

    def _listed(self, head: str) -> list[str]:
        return [head, *(f"  {finding}" for finding in self.findings)] if self.findings else []


def judge(bundle: Path) -> Verdict:
    """Look at a bundle without running anything of it.

    Trusted is what holds only expressions that medunet renders, reviewed targets, plain values, and weights of the
    recorded hash; what was trusted before and is unchanged; or what ``MEDUNET_TRUST`` names by its hash. So any value
    may be edited, while a new expression or target asks. In a bundle that medunet made on this machine values may be
    paths and addresses outside of it.
    """
    scan = scan_bundle(bundle)
    own = bool(scan.findings) and is_made_here(bundle)
    against = tuple(finding for finding in scan.findings if not (own and finding.outside))
    reason: Reason = "none"
    if not against:
        reason = "known"
    elif is_remembered(scan.digest):
        reason = "recorded"
    elif scan.digest in os.environ.get(TRUST_VARIABLE, "").lower().replace(",", " ").split():
        reason = "given"
    return Verdict(bundle, against, reason, scan.digest, scan.weights, scan.configs)


def require_trust(bundle: Path, *, trust: bool = False) -> Verdict:
    """Refuse a bundle that is not trusted.

    Args:
        bundle: its folder.
        trust: run it all the same, and remember exactly this content.

    Raises:
        DataError: a file of weights is damaged.
        UntrustedBundleError: with the list.
    """
    verdict = judge(bundle)
    for finding in verdict.findings:
        if finding.damaged and (error := damaged_checkpoint(bundle / finding.file)) is not None:
            raise error
    if verdict.is_trusted:
        return verdict
    if not trust:
        raise UntrustedBundleError(bundle, verdict.findings, verdict.digest)
    remember(verdict.digest)
    logger.warning("trusted by your word: %s", "; ".join(map(str, verdict.findings[:SHOWN_FINDINGS])))
    return dataclasses.replace(verdict, reason="given")


def adopt(bundle: Path) -> None:
    """Note that medunet made a bundle of one that was trusted and of what the user asked for.

    So an expression that the user typed (``--set``) does not ask again; one that comes in later does.
    """
    mark_made_here(bundle)
    verdict = judge(bundle)
    if not verdict.is_trusted:
        remember(verdict.digest)
