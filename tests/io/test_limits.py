"""Sizes are compared with what there is before memory is taken; nothing small unfolds to something huge."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from medunet.errors import DataError, SecurityError
from medunet.io import limits, read_header, read_volume, write_volume
from medunet.io.dicom.references import read_dataset
from medunet.io.limits import available_memory


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "available_memory", lambda: 1 << 20)


def test_every_format_is_refused_before_memory_is_taken(
    little_memory: None, tmp_path: Path, make_series: Callable[..., Path]
) -> None:
    voxels = np.zeros((128, 128, 32), np.uint8)
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha"):
        write_volume(voxels, tmp_path / name)
    Image.fromarray(np.zeros((1024, 1024), np.uint8)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((1024, 1024), np.uint8))
    paths = [*sorted(tmp_path.iterdir()), make_series(tmp_path / "ct", columns=256, rows=256, slices=8)]
    for path in paths:
        assert read_header(path).geometry.shape
        with pytest.raises(DataError, match=r"larger than the free memory.*GiB"):
            read_volume(path)
    assert len(paths) == 7


def test_the_limit_of_the_process_counts() -> None:
    assert 0 < available_memory() < 1 << 50


def deflated(source: Path, target: Path, *, padding: int) -> Path:
    """The file with its data set deflated, and so many zeros in a private element behind it."""
    content = source.read_bytes()
    length = int.from_bytes(content[140:144], "little")
    start = 144 + length
    meta = content[144:start].replace(b"UI\x14\x001.2.840.10008.1.2.1\x00", b"UI\x16\x001.2.840.10008.1.2.1.99")
    assert len(meta) == length + 2
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = packer.compress(content[start:])
    body += packer.compress(b"\xfc\xff\xfc\xffOB\0\0" + padding.to_bytes(4, "little"))
    for _ in range(padding >> 20):
        body += packer.compress(bytes(1 << 20))
    target.write_bytes(content[:140] + len(meta).to_bytes(4, "little") + meta + body + packer.flush())
    return target


def test_a_deflated_dicom_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, make_series: Callable[..., Path]
) -> None:
    first = sorted(make_series(tmp_path / "ct").iterdir())[0]
    harmless = deflated(first, tmp_path / "b.dcm", padding=1 << 20)
    assert read_volume(harmless).image.shape == read_volume(first).image.shape
    bomb = deflated(first, tmp_path / "a.dcm", padding=300 << 20)
    assert bomb.stat().st_size < 1 << 20
    for read in (read_volume, read_header, read_dataset):
        with pytest.raises(SecurityError, match=r"a\.dcm: deflated DICOM file unpacks to far more"):
            read(bomb)


def test_content_of_another_kind_is_not_parsed_by_its_own_parser(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    for name in ("a.nrrd", "a.mha"):
        (tmp_path / "a.png").rename(tmp_path / name)
        with pytest.raises(DataError):
            read_volume(tmp_path / name)
        (tmp_path / name).rename(tmp_path / "a.png")
