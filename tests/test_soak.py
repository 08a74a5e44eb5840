"""Many predictions in one process: memory and file handles stay constant after the first ones.

MEDUNET_SOAK_CASES is their number; scripts/test_reliability.sh takes 1,000.
"""

import gc
import json
import os
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from small import untrained_run

from medunet.io import write_volume
from medunet.io.isolation import shared_process
from medunet.prediction import Predictor

CASES = int(os.environ.get("MEDUNET_SOAK_CASES", "40"))
GROWTH = 1.05  # largest ratio of the memory at the end to that after warm-up
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux"),
]


@pytest.mark.parametrize("isolated", [pytest.param(False, marks=pytest.mark.slow, id="plain"), True])
def test_memory_and_handles_stay_constant(isolated: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = []
    for index, size in enumerate([(40, 40, 32), (33, 45, 28), (48, 30, 35), (21, 34, 55)]):
        voxels = rng.normal(size=size).astype(np.float32)
        images.append(write_volume(voxels, tmp_path / f"in_{index}.nii.gz", affine=np.diag([-1.0, -1.0, 1.0, 1.0])))
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(images[0].read_bytes()[:500])
    sources = [(images[n % 4] if n % 25 else broken) for n in range(CASES)]
    options = {"output_dir": tmp_path / "out", "device": "cpu", "overwrite": True, "isolated": isolated}
    predictor = Predictor(untrained_run(tmp_path / "run"), **options)
    own, warm = psutil.Process(), max(CASES // 5, 20)
    threads, failures = torch.get_num_threads(), 0
    figures: list[tuple[int, int, int]] = []
    for number, result in enumerate(predictor.predict(sources), start=1):
        failures += result.error is not None
        if number in (warm, CASES):
            gc.collect()
            child = psutil.Process(shared_process().pid).memory_info().rss if isolated else 0
            figures.append((own.memory_info().rss, own.num_fds(), child))
    (before, handles_before, child_before), (after, handles_after, child_after) = figures
    line = {"cases": CASES, "isolated": isolated, "MiB_warm": before >> 20, "MiB_end": after >> 20}
    print(json.dumps({**line, "handles": [handles_before, handles_after], "child_MiB": child_after >> 20}))  # noqa: T201 (figures, shown by -s)
    assert failures == len([source for source in sources if source == broken])
    assert after <= before * GROWTH
    assert child_after <= child_before * GROWTH
    assert abs(handles_after - handles_before) <= 2  # of the files that are open at this moment
    assert torch.get_num_threads() == threads
    assert {path.name for path in (tmp_path / "out").iterdir()} == {image.name for image in images}
