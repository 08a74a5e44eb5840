"""Time RandDeformd against MONAI's Rand3DElasticd, and BorderWeightMapd on 300 cells.

    python -m scripts.bench.transforms [--runs 9] [--threads 1]

The transforms of one row run alternately in one process, so that a busy machine slows both; the median is shown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import monai.transforms
import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage

from medunet.transforms import BorderWeightMapd, RandDeformd

KEYS = ["image", "label"]
ROTATION = 0.35  # radians, about 20 degrees
SCALES = (0.85, 1.15)


def medians(functions: list[Callable[[], object]], runs: int) -> list[float]:
    """Median milliseconds of each function, run in turns; the first round warms up and does not count."""
    times: list[list[float]] = [[] for _ in functions]
    for run in range(runs + 1):
        for function, own in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if run:
                own.append(1000 * (time.perf_counter() - start))
    return [statistics.median(own) for own in times]


def pair(shape: tuple[int, ...]) -> dict[str, MetaTensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, *shape, generator=generator)
    label = torch.randint(0, 3, (1, *shape), generator=generator, dtype=torch.uint8)
    return {"image": MetaTensor(image), "label": MetaTensor(label)}


def cells(size: int, count: int) -> MetaTensor:
    """Discs around random points, cut where two meet, with a membrane of background between them."""
    points = np.random.default_rng(0).choice(size * size, count, replace=False)
    seeds = np.zeros((size, size), dtype=np.int32)
    seeds.flat[points] = np.arange(1, count + 1)
    distance, nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    instances = seeds[tuple(nearest)]
    membrane = ndimage.maximum_filter(instances, 3) != ndimage.minimum_filter(instances, 3)
    instances[membrane | (distance > 18)] = 0
    return MetaTensor(torch.from_numpy(instances)[None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of PyTorch; 1 as in a data loader's worker")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    deform = {"rotate_range": ROTATION, "scale_range": SCALES, "control_points": 7, "elastic_sigma": 3.0}
    ours = RandDeformd(KEYS, **deform)
    theirs = monai.transforms.Rand3DElasticd(
        KEYS,
        prob=1.0,
        sigma_range=(5, 7),
        magnitude_range=(50, 150),
        rotate_range=(ROTATION,) * 3,
        scale_range=(0.15,) * 3,
        mode=["bilinear", "nearest"],
        padding_mode="reflection",
    )
    cube, hippocampus, slice_2d = pair((96, 96, 96)), pair((36, 50, 36)), pair((512, 512))
    patch = RandDeformd(KEYS, spatial_size=(40, 56, 40), **(deform | {"control_points": 4, "elastic_sigma": 2.0}))
    tile = RandDeformd(KEYS, spatial_size=(256, 256), **(deform | {"control_points": 3, "elastic_sigma": 10.0}))
    instances = cells(512, 300)
    weigh = BorderWeightMapd()

    ours_ms, theirs_ms = medians([lambda: ours(cube), lambda: theirs(cube)], options.runs)
    patch_ms, tile_ms = medians([lambda: patch(hippocampus), lambda: tile(slice_2d)], 5 * options.runs)
    (weigh_ms,) = medians([lambda: weigh({"label": instances})], options.runs)

    rows = [
        ("Rand3DElasticd (MONAI), 96^3 image and label", theirs_ms, ""),
        ("RandDeformd, 96^3 image and label, 7^3 control points", ours_ms, f"{theirs_ms / ours_ms:.1f} times faster"),
        ("RandDeformd, patch 40x56x40 image and label", patch_ms, ""),
        ("RandDeformd, patch 256x256 of 512x512 image and label", tile_ms, ""),
        (f"BorderWeightMapd, 512x512, {len(instances.unique()) - 1} cells", weigh_ms, ""),
    ]
    print(f"torch {torch.__version__}, monai {monai.__version__}, {options.threads} thread(s), {options.runs} runs")
    for name, milliseconds, note in rows:
        print(f"{name:<56} {milliseconds:9.1f} ms  {note}".rstrip())


if __name__ == "__main__":
    main()
