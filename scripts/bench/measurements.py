"""`medunet measure` beside PyRadiomics and SimpleITK: the largest relative difference of each shared feature.

    python -m scripts.bench.measurements --data DATA/Task04_Hippocampus --cases 20 [--python OTHER/bin/python]

PyRadiomics needs an environment of its own (`pip install pyradiomics SimpleITK`), which --python names.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FEATURES = {
    "volume_mm3": "shape_VoxelVolume",
    "surface_mm2": "shape_SurfaceArea",
    "diameter_mm": "shape_Maximum3DDiameter",
    "intensity_mean": "firstorder_Mean",
    "intensity_p10": "firstorder_10Percentile",
    "intensity_median": "firstorder_Median",
    "intensity_p90": "firstorder_90Percentile",
    "intensity_min": "firstorder_Minimum",
    "intensity_max": "firstorder_Maximum",
}


def worker(pairs: list[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """Return PyRadiomics' features by mask and value."""
    import SimpleITK as sitk  # noqa: PLC0415
    from radiomics import featureextractor  # noqa: PLC0415

    extractor = featureextractor.RadiomicsFeatureExtractor()
    extractor.disableAllFeatures()
    extractor.enableFeatureClassByName("shape")
    extractor.enableFeatureClassByName("firstorder")
    found = {}
    for image_file, mask_file in pairs:
        image, mask = sitk.ReadImage(image_file), sitk.Cast(sitk.ReadImage(mask_file), sitk.sitkUInt8)
        mask.CopyInformation(image)
        statistics = sitk.LabelShapeStatisticsImageFilter()
        statistics.Execute(mask)
        for value in statistics.GetLabels():
            features = extractor.execute(image, mask, label=int(value))
            found[f"{mask_file}#{value}"] = {
                key.removeprefix("original_"): float(number)
                for key, number in features.items()
                if key.startswith("original_")
            }
    return found


def main() -> None:
    """Measure what the command line asks for."""
    if sys.argv[1:2] == ["worker"]:
        print(json.dumps(worker(json.loads(sys.stdin.read()))))
        return
    from medunet import measure  # noqa: PLC0415 # the other environment has no medunet

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--python", default=sys.executable, help="interpreter with PyRadiomics")
    options = parser.parse_args()
    masks = sorted((options.data / "labelsTr").glob("[!.]*"))[: options.cases]
    pairs = [(str(options.data / "imagesTr" / mask.name), str(mask)) for mask in masks]
    command, environment = [options.python, __file__, "worker"], {**os.environ, "PYTHONPATH": ""}
    text = json.dumps(pairs)
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    theirs: dict[str, dict[str, float]] = json.loads(done.stdout.strip().splitlines()[-1])
    worst: dict[str, float] = dict.fromkeys(FEATURES, 0.0)
    count = 0
    for image, mask in pairs:
        with tempfile.TemporaryDirectory() as folder:
            rows: list[dict[str, Any]] = measure(mask, images=image, output=Path(folder) / "out")["measurements"]
        others = [features for key, features in theirs.items() if key.startswith(f"{mask}#")]  # in the order of values
        for row, other in zip(rows, others, strict=True):
            count += 1
            for key, name in FEATURES.items():
                worst[key] = max(worst[key], abs(row[key] - other[name]) / max(abs(other[name]), 1e-9))
    print(f"{count} structures of {len(pairs)} images; largest relative differences")
    for key, difference in worst.items():
        print(f"{key:18} {difference:.1e}")


if __name__ == "__main__":
    main()
