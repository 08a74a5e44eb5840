"""What Slicer's module writes medunet reads, and the way back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from MedUNetLib.nrrd import NrrdError, NrrdVolume, read_nrrd, write_nrrd

from medunet.io import read_volume, write_volume
from medunet.io.segments import as_segments

AFFINE = np.array([[0.0, -2.0, 0.3, 5], [1.5, 0, 0, -7], [0, 0.1, 3, 11], [0, 0, 0, 1]])


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", "int64"])
def test_medunet_reads_the_volume_of_slicer_on_its_grid(tmp_path: Path, dtype: str) -> None:
    voxels = np.arange(60).reshape(3, 4, 5).astype(dtype)
    path = write_nrrd(tmp_path / "image.nrrd", NrrdVolume(voxels, np.diag([0.7, 0.8, 2.5, 1])))
    volume = read_volume(path)
    assert np.array_equal(volume.image[0].numpy(), voxels.transpose())
    assert np.allclose(volume.image.affine, np.diag([0.7, 0.8, 2.5, 1]))


def test_slicer_reads_names_colours_and_grid_of_medunets_segmentation(tmp_path: Path) -> None:
    labels = np.zeros((5, 4, 3), np.uint8)
    labels[1:3, 2, 1] = 2
    segments = as_segments({"background": 0, "liver": 1, "spleen": 2}, colors={"spleen": [255, 0, 51]})
    write_volume(labels, tmp_path / "a.seg.nrrd", affine=AFFINE, labels=segments)
    found = read_nrrd(tmp_path / "a.seg.nrrd")
    assert np.array_equal(found.array, labels.transpose())
    assert np.allclose(found.ijk_to_ras, AFFINE)
    assert [(s.name, s.value) for s in found.segments] == [("liver", 1), ("spleen", 2)]
    assert np.allclose(found.segments[1].color, (1, 0, 0.2))


@pytest.mark.parametrize("content", [b"", b"NRRD0004\ntype: short\n\n", b"PNG", b"NRRD0004\nsizes: 1\n\nxx"])
def test_a_broken_file_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.nrrd").write_bytes(content)
    with pytest.raises(NrrdError, match=r"broken\.nrrd"):
        read_nrrd(tmp_path / "broken.nrrd")
