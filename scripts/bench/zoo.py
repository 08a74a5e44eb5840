"""Bundles of MONAI's model zoo: `medunet predict` beside MONAI's own command, with random weights.

    git clone --depth 1 https://github.com/Project-MONAI/model-zoo
    python -m scripts.bench.zoo model-zoo/models/spleen_ct_segmentation model-zoo/models/...

No weights are downloaded: random ones show whether a bundle's steps run and whether labels agree, voxel for voxel. The
image is noise of a few centimetres. Each bundle is copied first; the originals stay as they are. Results: a line per
bundle, and results/zoo.json.
"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from PIL import Image

from medunet.bundle import verify_bundle
from medunet.errors import MedunetError
from medunet.io import read_volume, write_volume
from medunet.prediction import Predictor

from .measure import RESULTS, machine, write_json

SHAPE, AFFINE = (70, 60, 33), np.diag([-1.5, -1.5, 2.0, 1.0])


def main() -> None:
    """Try every bundle that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    rows = []
    for bundle in parser.parse_args().bundles:
        with tempfile.TemporaryDirectory() as folder:
            row = {"bundle": bundle.name, **attempt(bundle, Path(folder))}
        print(json.dumps(row), flush=True)
        rows.append(row)
    write_json(RESULTS / "zoo.json", {"machine": machine(), "bundles": rows})


def attempt(source: Path, work: Path) -> dict[str, Any]:
    """Return the voxels that differ and the seconds of both, or the reason why a bundle does not run."""
    bundle = work / source.name
    shutil.copytree(source, bundle)
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser.update({"bundle_root": str(bundle), "device": "$torch.device('cpu')"})
    sys.path.insert(0, str(bundle))
    try:
        torch.manual_seed(1)
        (bundle / "models").mkdir(exist_ok=True)
        torch.save(parser.get_parsed_content("network_def").state_dict(), bundle / "models" / "model.pt")
    except Exception as error:  # the configs of others raise anything
        return {"network": str(error.__cause__ or error)[:200]}
    finally:
        sys.path.remove(str(bundle))
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    tensor = metadata["network_data_format"]["inputs"]["image"]
    images = write_images(work / "images", channels=tensor["num_channels"], picture=tensor.get("format") == "RGB")
    try:
        faults = [f"{name}: {fault}" for name, fault in verify_bundle(bundle, trust=True).items() if fault]
        predictor = Predictor(bundle, output_dir=work / "medunet", device="cpu", trust=True)
        begun = time.perf_counter()
        result = read_volume(predictor.predict_case(images[0] if len(images) == 1 else images)).image[0]
        seconds = time.perf_counter() - begun
    except MedunetError as error:
        return {"medunet": str(error)[:200]}
    begun = time.perf_counter()
    expected = run_monai(bundle, images)
    row = {"faults": faults, "voxels": int(expected.size), "seconds": round(seconds, 1)}
    row |= {"monai_seconds": round(time.perf_counter() - begun, 1), "labels": len(np.unique(result))}
    row["fractions"] = int((expected % 1 != 0).sum())  # of labels that the bundle itself interpolates
    return {**row, "different": int((np.asarray(result).squeeze() != np.rint(expected).squeeze()).sum())}


def write_images(folder: Path, *, channels: int, picture: bool) -> list[Path]:
    """Write one case of noise: a picture, or one volume per channel."""
    noise = np.random.default_rng(0)
    if picture:
        folder.mkdir()
        Image.fromarray(noise.integers(0, 255, (120, 160, 3), np.uint8)).save(folder / "case.png")
        return [folder / "case.png"]
    volumes = [noise.normal(0, 200, SHAPE).astype(np.float32) for _ in range(channels)]
    return [write_volume(volume, folder / f"case_{k:04}.nii.gz", affine=AFFINE) for k, volume in enumerate(volumes)]


def run_monai(bundle: Path, images: list[Path]) -> np.ndarray[Any, Any]:
    """Run the bundle's evaluator as MONAI's command does, and return the label map that it would save."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    case = str(images[0]) if len(images) == 1 else [str(path) for path in images]
    parser.update({"bundle_root": str(bundle), "device": "$torch.device('cpu')", "dataset::data": [{"image": case}]})
    steps = parser["postprocessing"]["transforms"]
    parser["postprocessing"]["transforms"] = [step for step in steps if step["_target_"] != "SaveImaged"]
    for name in ("imports", "initialize"):
        if name in parser:
            parser.get_parsed_content(name)
    evaluator = parser.get_parsed_content("evaluator")
    evaluator.run()
    return np.asarray(evaluator.state.output[0]["pred"])


if __name__ == "__main__":
    main()
