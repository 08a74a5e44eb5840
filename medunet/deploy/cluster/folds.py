"""Folds trained in parallel, on the machines of a Ray cluster."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from medunet.errors import MedunetError
from medunet.files import claim
from medunet.runs import FoldOutcome, PreparedRun, train_fold

from .pool import join_cluster

logger = logging.getLogger(__name__)

MAX_RETRIES = 3  # machines or processes that a fold may lose


def folds_on_ray(runs: Mapping[int, PreparedRun], device: str, tracking_uri: str | None) -> Iterator[FoldOutcome]:
    """Train folds as tasks of a Ray cluster.

    A fold gets one GPU or, if the cluster has none, its share of the cores. A fold whose machine dies continues on
    another one after its last completed epoch. All machines must see the runs and the data under the same paths.

    Args:
        runs: prepared runs by fold.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, on each machine.
        tracking_uri: tracking URI of MLflow; that of a server, if there are several machines.

    Raises:
        ConfigError: Ray is not installed.
    """
    ray = join_cluster()
    task = ray.remote(_train).options(max_retries=MAX_RETRIES, **share_of_fold(ray, len(runs)))
    folders = {fold: run.folder for fold, run in runs.items()}
    runs = {fold: replace(run, folder=run.folder.resolve()) for fold, run in runs.items()}
    refs = {task.remote(fold, run, device, tracking_uri): fold for fold, run in runs.items()}
    logger.info("%d folds on %d machines", len(refs), len(ray.nodes()))
    try:
        while refs:
            (done, *_), _ = ray.wait(list(refs), num_returns=1)
            fold = refs.pop(done)
            try:
                outcome = ray.get(done)
            except ray.exceptions.RayError as error:
                text = f"its process was lost {MAX_RETRIES + 1} times: {' '.join(str(error).split())[:200]}"
                outcome = FoldOutcome(fold, folders[fold], "failed", error=text)
            logger.info("fold %d: %s", fold, outcome.status)
            yield replace(outcome, run=folders[fold])
    except KeyboardInterrupt:
        for ref, fold in refs.items():
            ray.cancel(ref, force=True)
            yield FoldOutcome(fold, folders[fold], "stopped")


def share_of_fold(ray: Any, folds: int) -> dict[str, float]:
    """Return the resources of a fold: a GPU, or cores so that all folds run in parallel if the machines allow."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(resources.get("GPU", 0) >= 1 for resources in nodes):
        return {"num_gpus": 1, "num_cpus": 1}
    cores = [int(resources.get("CPU", 0)) for resources in nodes]
    return {"num_cpus": max(1, min(max(cores, default=1), sum(cores) // max(folds, 1)))}


def _train(fold: int, run: PreparedRun, device: str, tracking_uri: str | None) -> FoldOutcome:
    """Train on a machine of the cluster; the claim keeps out a process that Ray believes dead."""
    try:
        with claim(run.folder):
            return train_fold(fold, run, device, tracking_uri)
    except MedunetError as error:
        return FoldOutcome(fold, run.folder, "failed", error=str(error))
