"""Damaged and malicious files of every format: read correctly or rejected with a typed error.

MEDUNET_FUZZ_MINUTES sets the minutes per format (scripts/fuzz.sh); the default is some dozen files.
"""

import bz2
import gzip
import json
import os
import resource
import runpy
import shutil
import signal
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tifffile
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLSLossless, RLELossless

from medunet.errors import MedunetError
from medunet.io import limits, read_header, read_label, read_volume, write_volume
from medunet.io.dicom.references import read_planes, save_dataset
from medunet.io.dicom.rtstruct import make_rtstruct
from medunet.io.dicom.seg import make_dicom_seg
from medunet.io.segments import as_segments
from medunet.trust import judge

pytestmark = pytest.mark.filterwarnings("ignore")
MINUTES = float(os.environ.get("MEDUNET_FUZZ_MINUTES", "0"))
EXAMPLES = int(os.environ.get("MEDUNET_FUZZ_EXAMPLES", "50"))
LARGEST = 1 << 28  # bytes of an image; larger ones are rejected, so that the fuzzer does not fill the machine
MOST_SECONDS = 5  # of processor time that a file of some kilobytes may take
MOST_BYTES = 2 << 30  # of memory that it may take
WORDS = [0, 1, 2, 3, 7, 8, 9, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 1 << 24, (1 << 31) - 1, 1 << 31]
NUMBERS = [word.to_bytes(4, order) for word in WORDS for order in ("little", "big")]
FLOATS = [np.array(x, "<f4").tobytes() for x in (np.nan, np.inf, -np.inf, 0.0, -1.0, 1e38, 1e-38)]
TEXTS = [b"-1", b"0", b"nan", b"1e999", b"99999999999999999999", b"\n", b"\0", b"\\", b"%s", b"raw", b"gzip", b"LIST"]
Changes = list[tuple[float, bytes, str, bool]]  # place (a part of the file, or of its first 512 bytes), bytes, kind
CHANGES = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([*NUMBERS, *FLOATS, *TEXTS])),
        st.sampled_from(["replace", "replace", "replace", "insert", "delete", "cut", "repeat"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


def changed(content: bytes, changes: Changes) -> bytes:
    data = bytearray(content)
    for part, new, kind, is_head in changes:
        place = int(part * min(len(data), 512 if is_head else len(data)))
        if kind == "replace":
            data[place : place + len(new)] = new
        elif kind == "insert":
            data[place:place] = new
        elif kind == "delete":
            del data[place : place + len(new)]
        elif kind == "cut" and not is_head:
            del data[place:]
        elif kind == "repeat":
            data[place:place] = data[place : place + 64]
    return bytes(data)


@contextmanager
def within_limits() -> Iterator[None]:
    """Fail if the block takes more than `MOST_SECONDS` of processor time, or makes the process grow by `MOST_BYTES`.

    A signal interrupts an endless loop; a reader may report it as any other error, so the time is compared afterwards.
    """

    def stop(*_: object) -> None:
        raise TimeoutError("too long")

    def peak_bytes() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    before, begun = peak_bytes(), time.process_time()
    handler = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, 2 * MOST_SECONDS, MOST_SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
    assert time.process_time() - begun < MOST_SECONDS
    assert peak_bytes() - before < MOST_BYTES


def attempt(read: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return the result, or None for a typed error of one line."""
    try:
        return read(*args, **options)
    except MedunetError as error:
        assert "\n" not in str(error)
        return None


def read_all(path: Path, **options: Any) -> None:
    """Call both readers, and compare the image with its record."""
    with within_limits():
        record = attempt(read_header, path, **options)
        assert record is None or 2 <= len(record.geometry.shape) <= 3
        volume = attempt(read_volume, path, **options)
    if volume is not None:
        assert volume.image.shape == (volume.record.channels, *volume.record.geometry.shape)
        assert np.isfinite(np.asarray(volume.image)).all()
        assert np.isfinite(np.asarray(volume.image.affine)).all()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write small whole files of every format."""
    folder = tmp_path_factory.mktemp("seeds")
    voxels = np.random.default_rng(0).integers(0, 3, (7, 6, 5)).astype(np.uint8)
    affine = np.array([[0.7, 0.1, 0, 5], [-0.1, 0.9, 0, 7], [0, 0, 2.5, -3], [0, 0, 0, 1]])
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.seg.nrrd"):
        write_volume(voxels, folder / name, affine=affine, labels=as_segments({"kidney": 1, "liver": 2}))
    for name in ("a.png", "a.jpg", "a.bmp"):
        Image.fromarray(np.repeat(voxels[:, :, 0, None], 3, -1) if name == "a.jpg" else voxels[:, :, 0]).save(
            folder / name
        )
    tifffile.imwrite(folder / "a.tif", voxels.astype(np.uint16))
    tifffile.imwrite(folder / "b.tif", voxels, compression="zlib")
    tifffile.imwrite(folder / "c.tif", voxels, photometric="miniswhite", metadata=None)
    hyperstack = voxels[:6].reshape(3, 2, 6, 5).astype(np.uint16)
    tifffile.imwrite(folder / "d.tif", hyperstack, imagej=True, metadata={"axes": "ZCYX", "spacing": 2, "unit": "um"})
    tifffile.imwrite(folder / "e.tif", hyperstack, ome=True, metadata={"axes": "ZCYX"})
    Image.fromarray(voxels[:, :, 0]).convert("P").save(folder / "b.png", bits=2)
    nib.save(nib.Nifti1Pair(voxels, affine), folder / "a.hdr")
    nib.save(nib.Spm2AnalyzeImage(voxels, np.diag([1, 2, 3, 1])), folder / "b.hdr")
    nib.save(nib.MGHImage(voxels, affine), folder / "a.mgh")
    (folder / "a.mgz").write_bytes(gzip.compress((folder / "a.mgh").read_bytes()))
    (folder / "a.nii.bz2").write_bytes(bz2.compress((folder / "a.nii").read_bytes()))
    for name in ("a.mhd", "a.nhdr"):
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(folder / name), useCompression=True)
    return folder


@pytest.fixture
def dicom(tmp_path: Path, make_series: Callable[..., Path]) -> Path:
    series = make_series(tmp_path / "ct", columns=8, rows=7, slices=3)
    first = sorted(series.iterdir())[0]
    folder = tmp_path / "seeds"
    folder.mkdir()
    made = runpy.run_path(str(Path(__file__).parent / "io" / "conftest.py"))
    made["write_mosaic"](folder / "mosaic.dcm")
    made["write_nm"](folder / "nm.dcm")
    made["write_picture"](folder / "picture.dcm", pixels=np.zeros((5, 7, 3), np.uint8))
    shutil.make_archive(str(folder / "a"), "zip", series)
    (folder / "a.dcm").write_bytes(first.read_bytes())
    header = pydicom.dcmread(first)
    header.compress(RLELossless)
    header.save_as(folder / "rle.dcm")
    header = pydicom.dcmread(first)
    header.PixelData = encapsulate([b"\xff\xd8" + bytes(40) + b"\xff\xd9"])
    header["PixelData"].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = JPEGLSLossless
    header.save_as(folder / "jls.dcm")
    geometry = read_header(series).geometry
    planes = read_planes(read_header(series).frames, geometry)
    voxels = np.zeros(geometry.shape, np.uint8)
    voxels[2:5, 2:5, 1] = 1
    named, algorithm = as_segments({"kidney": 1}), {"name": "one", "version": "1"}
    save_dataset(make_rtstruct(voxels, named, planes, algorithm=algorithm), folder / "rtstruct.dcm")
    save_dataset(make_dicom_seg(voxels, named, planes, algorithm=algorithm), folder / "seg.dcm")
    return folder


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "available_memory", lambda: LARGEST)


def fuzz(check: Callable[[Changes], None]) -> None:
    """Call `check` with some dozen changes, or for `MINUTES`."""
    begun, n_tried, n_rounds = time.monotonic(), 0, 0

    def counted(changes: Changes) -> None:
        nonlocal n_tried
        n_tried += 1
        check(changes)

    # function-scoped fixtures do not change from example to example
    quiet = {"suppress_health_check": list(HealthCheck), "deadline": None, "database": None}
    while not n_rounds or time.monotonic() - begun < 60 * MINUTES:
        number = int(time.time()) if MINUTES else 8
        test = given(changes=CHANGES)(counted)
        seed(number + n_rounds)(settings(max_examples=EXAMPLES, **quiet)(test))()  # type: ignore[arg-type]
        n_rounds += 1
    print(json.dumps({"tried": n_tried, "minutes": round((time.monotonic() - begun) / 60, 1)}))  # noqa: T201 (shown by -s)
    assert n_tried


FILES = [
    *("a.nii", "a.nii.gz", "a.nii.bz2", "a.mgh", "a.mgz", "a.nrrd", "a.mha", "a.png", "b.png", "a.jpg", "a.bmp"),
    *("a.tif", "b.tif", "c.tif", "d.tif", "e.tif"),
]
PAIRS = {"a.hdr": "a.img", "b.hdr": "b.img", "a.mhd": "a.zraw", "a.nhdr": "a.raw.gz"}  # header and voxels
DICOM = ["a.dcm", "rle.dcm", "jls.dcm", "mosaic.dcm", "picture.dcm", "nm.dcm", "a.zip"]


@pytest.mark.parametrize("name", [*FILES, *PAIRS, *PAIRS.values(), *DICOM])
def test_a_changed_file_is_read_or_rejected(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue("dicom" if name in DICOM else "seeds")
    content, path = (folder / name).read_bytes(), tmp_path / name
    header = next((key for key, value in PAIRS.items() if name in (key, value)), name)
    for other in (header, PAIRS.get(header, header)):
        shutil.copy(folder / other, tmp_path)

    def check(changes: Changes) -> None:
        path.write_bytes(changed(content, changes))
        read_all(tmp_path / header)
        if header == "b.hdr":
            read_all(tmp_path / header, form="pixdim")

    fuzz(check)


def test_any_content_of_a_png_with_right_checksums_is_read_or_rejected(seeds: Path, tmp_path: Path) -> None:
    content, chunks, place = (seeds / "a.png").read_bytes(), [], 8
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length

    def check(changes: Changes) -> None:
        data = content[:8]
        for number, (kind, inner) in enumerate(chunks):
            body = changed(inner, changes) if number == len(changes) % 2 else inner
            data += len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        (tmp_path / "changed.png").write_bytes(data)
        read_all(tmp_path / "changed.png")

    fuzz(check)


def test_any_content_of_a_gzip_file_is_read_or_rejected(seeds: Path, tmp_path: Path) -> None:
    content = (seeds / "a.nii").read_bytes()

    def check(changes: Changes) -> None:
        (tmp_path / "changed.nii.gz").write_bytes(gzip.compress(changed(content, changes), 1))
        read_all(tmp_path / "changed.nii.gz")

    fuzz(check)


@pytest.mark.parametrize("name", ["rtstruct.dcm", "seg.dcm", "a.seg.nrrd"])
def test_changed_structures_are_read_or_rejected(name: str, dicom: Path, seeds: Path) -> None:
    is_dicom = name.endswith(".dcm")
    geometry = read_header(dicom.parent / "ct" if is_dicom else seeds / "a.nii").geometry
    content = ((dicom if is_dicom else seeds) / name).read_bytes()
    path = dicom / f"changed{name[name.index('.') :]}"

    def check(changes: Changes) -> None:
        path.write_bytes(changed(content, changes))
        with within_limits():
            labels = {"background": 0, "kidney": 1, "liver": 2}
            volume = attempt(read_label, path, reference=geometry, labels=labels)
        assert volume is None or volume.image.shape[1:] == volume.record.geometry.shape

    fuzz(check)


def test_a_changed_bundle_is_scanned_without_an_untyped_error(tmp_path: Path) -> None:
    configs = tmp_path / "bundle" / "configs"
    configs.mkdir(parents=True)
    good = {"device": "cpu", "steps": {"load": {"_target_": "LoadImaged", "keys": ["image"]}}, "x": ["$@device", 1.5]}
    content = json.dumps(good).encode()
    log = b"[loggers]\nkeys=root\n[handlers]\nkeys=a\n[handler_a]\nclass=StreamHandler\nargs=(sys.stdout,)\n"
    (configs / "metadata.json").write_text('{"weights": {"model.pt": "00"}}')

    def check(changes: Changes) -> None:
        (configs / "inference.json").write_bytes(changed(content, changes))
        (configs / "logging.conf").write_bytes(changed(log, changes))
        assert all(line.isprintable() for line in judge(tmp_path / "bundle").lines())

    fuzz(check)


def test_a_damaged_segmentation_is_rejected_and_its_header_not_quoted(
    dicom: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """pydicom raises an error of its own for a wrong length in group 2, and logs the whole header."""
    geometry = read_header(dicom.parent / "ct").geometry
    content, path = (dicom / "seg.dcm").read_bytes(), dicom / "changed.dcm"
    for place in range(132, 400, 3):
        path.write_bytes(content[:place] + b"\0\0\0" + content[place + 3 :])
        try:
            read_label(path, reference=geometry)
        except MedunetError as error:
            assert "Secret" not in str(error)
    shown = capfd.readouterr()
    text = caplog.text + shown.out + shown.err
    assert "unusual value" in caplog.text
    assert not [word for word in ("Secret", "ller", "4711", "19500101") if word in text]
