"""A whole training run and predictions from files: what waits for what."""

import statistics
import tempfile
import time
from pathlib import Path

from medunet.bundle import find_bundle
from medunet.datasets import write_phantom_dataset
from medunet.prediction import Predictor
from medunet.runs import train_bundle
from scripts.gpu.measure import Job

WARM_EPOCHS = 2  # kernels are chosen, cases are prepared
STAGES = ("read", "preprocess", "network", "stitch", "restore", "write")


def pipeline(job: Job) -> None:
    """Train `unet_3d` on synthetic CTs and predict them."""
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "data", Path(folder) / "run"
        begun = time.perf_counter()
        write_phantom_dataset(data, kind="ct", cases=job.size(6, 3), size=job.size((160, 160, 160), (24, 24, 24)))
        job.emit("synthetic CTs written", time.perf_counter() - begun, "s")
        changes = {"store_dir": str(Path(folder) / "store"), "val_interval": 100, "folds": 3}
        changes |= job.size(
            {"patch_size": [96, 96, 96], "steps_per_epoch": 40, "epochs": 6},
            {"patch_size": [16, 16, 16], "steps_per_epoch": 1, "epochs": 3, "num_workers": 0, "batch_size": 1},
        )
        changes |= job.size({}, {"network_def::channels": [4, 8]})
        done = train_bundle(find_bundle("unet_3d"), data, run, changes=changes, device=str(job.device), tracking_uri="")
        later = done.history[WARM_EPOCHS:]
        job.emit("steps", statistics.median(entry["steps_per_second"] for entry in later), "1/s")
        job.emit("waiting for data", statistics.median(entry["data_wait"] for entry in later), "of the time")
        images = sorted((data / "imagesTr").glob("*.nii.gz"))
        predictor = Predictor(run, output_dir=Path(folder) / "out", device=str(job.device))
        list(predictor.predict(images[:1]))
        begun = time.perf_counter()
        results = list(predictor.predict(images[1:]))
        job.emit("case, from file to file", (time.perf_counter() - begun) / len(results), "s")
        for stage in STAGES:
            seconds = statistics.median(getattr(result.stages, stage) for result in results)
            job.emit(f"stage {stage}", seconds, "s")
        if errors := [str(result.error) for result in results if result.error is not None]:
            job.failed = True
            job.emit("failed case", errors[0])
