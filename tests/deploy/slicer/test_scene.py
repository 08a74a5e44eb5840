"""Slicer's real scene (slicer-core): volumes keep their grid; segments have names, colours, positions and voxels."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medunet.datasets import make_phantom
from medunet.io import read_volume, write_volume
from medunet.io.segments import as_segments, object_segments

pytestmark = [pytest.mark.slow, pytest.mark.label]
LIBRARY = Path(__file__).parents[3] / "medunet" / "deploy" / "slicer" / "MedUNet"
OBLIQUE = np.array([[0.0, -0.8, 0.6, 5], [1.5, 0, 0, -7], [0, 0.6, 0.8, 11], [0, 0, 0, 1]]) @ np.diag([1, 2, 2, 1])


@pytest.fixture(params=["axial", "oblique"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, dict[str, int]]:
    phantom = make_phantom("ct", seed=3)
    affine = phantom.affine if request.param == "axial" else OBLIQUE
    image = write_volume(phantom.image.astype(np.int16), tmp_path / "ct.nrrd", affine=affine)
    label = write_volume(phantom.label, tmp_path / "ct.seg.nrrd", affine=affine, labels=phantom.labels)
    return image, label, phantom.labels


def test_volumes_and_segmentations_keep_grid_names_and_colours(case: tuple[Path, Path, dict[str, int]]) -> None:
    image, label, labels = case
    python = Path(os.environ.get("MEDUNET_SLICER_ENV", "")) / "bin" / "python"
    if not python.is_file():
        pytest.skip("slicer-core is not set up: run bash scripts/test_label.sh")
    numbers = np.arange(300, dtype=np.uint16).reshape(10, 6, 5)
    objects = [image.with_name("few.seg.nrrd"), image.with_name("many.seg.nrrd")]
    for path, voxels in zip(objects, (numbers % 10, numbers), strict=True):
        write_volume(voxels, path, labels=object_segments(voxels, {"cell": 1}, codes=None))
    command = [python, Path(__file__).with_name("scene_check.py"), LIBRARY, image, label, *objects]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Tests passed" in done.stdout  # the module's self-test
    result: dict[str, Any] = json.loads(done.stdout.split("RESULT")[1])
    before, after = read_volume(image).image, read_volume(image.with_name("exported.nrrd")).image
    assert np.array_equal(before.numpy(), after.numpy())
    assert np.allclose(before.affine, after.affine, atol=1e-6)
    volume = read_volume(label).image
    affine = np.asarray(volume.affine)
    assert result["has_transform"]
    assert result["few"] == ["vtkMRMLSegmentationNode", 9]
    assert result["many"] == ["vtkMRMLLabelMapVolumeNode", numbers.ravel("F").tolist(), "object 299", 300]
    assert result["nodes"] == 1  # none of the unreadable file
    assert "unreadable.seg.nrrd is not a readable segmentation" in result["error"]
    assert list(result["segments"]) == [name for name in labels if name != "background"]
    for segment in as_segments(labels):
        loaded = result["segments"][segment.name]
        mask = volume[0].numpy() == segment.value
        assert np.allclose(loaded["color"], np.array(segment.color) / 255, atol=1e-5)
        assert np.allclose(loaded["matrix"], affine, atol=1e-9)
        assert loaded["voxels"] == mask.sum()
        assert loaded["box"] == [[axis.min(), axis.max()] for axis in np.nonzero(mask)]
