"""One process of a training in several, started by `torch.distributed`: ``-m medunet.deploy.cluster.worker JOB``."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from medunet import log
from medunet.errors import MedunetError, find_cause
from medunet.runs import PreparedRun, prepare_run, train_run
from medunet.runtime import resolve_device
from medunet.training import from_first, join_processes, leave_processes, was_restarted

from .job import OVERLAY, TrainingJob

logger = logging.getLogger(__name__)

BAD_INPUT = 2
"""Exit code, as of the command line."""

LOST = 1
"""Exit code of a process that could not reach another one: started again, it goes on."""

PREPARATION = timedelta(hours=24)
"""How long processes wait while the first one prepares the run: with `skip_bad` it reads every voxel of the data. If it
dies meanwhile the launcher notices; only a host that is switched off is waited for as long."""


def run_job(job: TrainingJob) -> None:
    """Train as one of several processes; the first has the output folder to itself and writes the run.

    Raises:
        MedunetError: as :func:`medunet.runs.train_bundle`.
    """
    device = device_of_rank(job.device)
    join_processes(device)
    is_first = distributed.get_rank() == 0
    resume = job.resume or was_restarted()
    with ExitStack() as stack:
        # all processes hear of an error, so that none waits for the first
        run = from_first(lambda: prepare(job, stack, resume=resume), patience=PREPARATION)
        if isinstance(run, str):
            raise MedunetError(run)
        result = train_run(run, resume=resume, device=device, tracking_uri=job.tracking_uri, overlays=[OVERLAY])
        if is_first:
            job.finish(result)
    leave_processes()


def prepare(job: TrainingJob, stack: ExitStack, *, resume: bool) -> PreparedRun | str:
    """Claim the output folder until the stack closes, and write the run; return it, or what is wrong with the input."""
    options: dict[str, Any] = {"changes": job.changes, "presets": job.presets, "skip_bad": job.skip_bad}
    try:
        return stack.enter_context(
            prepare_run(Path(job.bundle), Path(job.data), Path(job.output), resume=resume, **options)
        )
    except Exception as error:
        cause = find_cause(error)
        if cause is None:
            raise
        return str(cause)


def device_of_rank(name: str) -> torch.device:
    """This process's device: of several GPUs the one that has its number."""
    device = resolve_device(name)
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device.type == "cuda" else device


def main(path: str) -> None:
    """Run the job of a file; an error with a type is noted there, so that nobody tries again in vain."""
    is_first = os.environ.get("RANK") == "0"
    log.set_up(level=logging.INFO if is_first else logging.WARNING)
    job = TrainingJob.load(Path(path))
    if job.failure() is not None:
        sys.exit(BAD_INPUT)
    try:
        run_job(job)
    except Exception as error:
        cause = find_cause(error)
        if cause is not None:
            job.fail(str(cause))
            sys.exit(BAD_INPUT)
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            logger.warning("process %s lost the others", os.environ.get("RANK"))
            sys.exit(LOST)
        raise


if __name__ == "__main__":
    main(sys.argv[1])
