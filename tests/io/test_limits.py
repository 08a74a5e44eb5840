"""An untrusted file takes no voxels from other files and no more memory than is free."""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from medunet.errors import DataError, SecurityError
from medunet.io import limits, read_header, read_label, read_volume, write_volume
from medunet.io.dicom.references import read_dataset


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.mha", "{meta}ElementDataFile: {secret}\nElementDataFile = LOCAL\n"),
        ("a.mha", "{meta}elementdatafile = LOCAL\nElementDataFile = {secret}\n"),
        ("a.mha", "{meta}Junk\nElementDataFile = LOCAL\n" + "Comment = x\n" * 90_000 + "ElementDataFile = {secret}\n"),
        ("a.mha", "{meta}ElementDataFile\0 = {secret}\n"),
        ("a.mha", "NRRDx = 1\n{meta}ElementDataFile = {secret}\n"),
        ("a.mhd", "{meta}ElementDataFile = x%.0d/../../secret.raw 0 0 1\n"),
        ("a.mhd", "{meta}ElementDataFile = x%s%n.raw 0 0 1\n"),
        ("a.mhd", "{meta}ElementDataFile = {slashes}{secret}/../../in/x\n"),
        ("a.mhd", "{meta}ElementDataFile = list/../../secret.raw\n"),
        ("a.nrrd", "{nrrd}\rdata file: {secret}\n\n"),
        ("a.nhdr", "{nrrd}\ndata file:=x\ndata file: {secret}\n\n"),
        ("a.nhdr", "{nrrd}\ndata file: LIST 2\n\n{secret}\n"),
        ("a.nrrd", "{nrrd}\ndata file: /dev/zero\n\n"),
        ("a.mhd", "{meta}ElementDataFile = ../secret.raw\n"),
    ],
)
def test_headers_cannot_reference_files_outside_their_folder(name: str, text: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(bytes(range(64)))
    meta = "ObjectType = Image\nNDims = 2\nDimSize = 8 8\nElementType = MET_UCHAR\n"
    nrrd = "NRRD0004\ntype: uchar\ndimension: 2\nsizes: 8 8\nencoding: raw"
    path = tmp_path / "in" / name
    path.parent.mkdir()
    slashes = "/" * (499 - len(str(secret)))
    path.write_text(text.format(meta=meta, nrrd=nrrd, secret=secret, slashes=slashes), newline="")
    with pytest.raises(SecurityError, match="voxels from outside"):
        read_volume(path)


def test_headers_may_reference_files_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in (1, 2):
        (folder / f"slice{number}.raw").write_bytes(bytes([number] * 16))
    meta = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 2\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\n"
    meta += "ElementDataFile = {}\n"
    for name in ("LIST\nslice1.raw\nslice2.raw", "LIST 2D\nslice1.raw\nslice2.raw", "slice%d.raw 1 2 1"):
        (folder / "a.mhd").write_text(meta.format(name))
        assert read_volume(folder / "a.mhd").image[0, 0, 0].tolist() == [1, 2]


def test_a_tiff_does_not_read_pages_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "other.ome.tif", np.full((8, 8), 77, np.uint8), ome=True)
    plane = '<TiffData IFD="0" FirstZ="{}" PlaneCount="1"><UUID FileName="{}">urn:uuid:{}</UUID></TiffData>'
    text = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:a">'
        '<Image ID="Image:0"><Pixels DimensionOrder="XYZCT" ID="Pixels:0" SizeC="1" SizeT="1" SizeX="8" SizeY="8" '
        'SizeZ="2" Type="uint8"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        f"{plane.format(0, 'a.tif', 'a')}{plane.format(1, '../other.ome.tif', 'b')}</Pixels></Image></OME>"
    )
    tifffile.imwrite(tmp_path / "in" / "a.tif", np.zeros((8, 8), np.uint8), description=text, metadata=None)
    image = read_volume(tmp_path / "in" / "a.tif").image
    assert image.shape == (1, 8, 8)
    assert not image.any()


def test_too_large_images_are_rejected_before_memory_is_allocated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_series: Callable[..., Path]
) -> None:
    monkeypatch.setattr(limits, "available_memory", lambda: 1 << 20)
    voxels = np.zeros((128, 128, 32), np.uint8)
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.tif"):
        write_volume(voxels, tmp_path / name)
    Image.fromarray(np.zeros((1024, 1024), np.uint8)).save(tmp_path / "a.png")
    for path in [*sorted(tmp_path.iterdir()), make_series(tmp_path / "ct", columns=256, rows=256, slices=8)]:
        geometry = read_header(path).geometry
        with pytest.raises(DataError, match=r"larger than the free memory.*GiB"):
            read_volume(path)
    text = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 99999 99999 99999\nencoding: gzip\nSegment0_ID:=a\n\n"
    (tmp_path / "a.seg.nrrd").write_text(text)
    with pytest.raises(DataError, match="larger than the free memory"):
        read_label(tmp_path / "a.seg.nrrd", reference=geometry)


def deflated(source: Path, target: Path, *, padding: int) -> Path:
    """Write a file with its data set deflated, and so many zeros in a private element behind it."""
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


def test_a_deflated_dicom_bomb_is_rejected_before_it_is_unpacked(
    tmp_path: Path, make_series: Callable[..., Path]
) -> None:
    first = sorted(make_series(tmp_path / "ct").iterdir())[0]
    harmless = deflated(first, tmp_path / "b.dcm", padding=1 << 20)
    assert read_volume(harmless).image.shape == read_volume(first).image.shape
    bomb = deflated(first, tmp_path / "a.dcm", padding=300 << 20)
    assert bomb.stat().st_size < 1 << 20
    for read in (read_volume, read_header, read_dataset):
        with pytest.raises(SecurityError, match=r"a\.dcm: deflated DICOM file unpacks to an implausible size"):
            read(bomb)
