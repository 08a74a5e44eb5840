"""Images are decoded in a child process: a crash, a hang or too much memory is an error of the file."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medunet.errors import DataError, GeometryError
from medunet.io import MedunetReader, read_header, read_volume, write_volume
from medunet.io.isolation import ReadingProcess, shared_process
from medunet.io.options import DEFAULTS, ReadOptions
from medunet.io.reader import read_one

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


@pytest.fixture(scope="module")
def process() -> Iterator[ReadingProcess]:
    made = ReadingProcess(memory=1 << 30)
    yield made
    made.close()


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    voxels = np.random.default_rng(3).normal(0, 500, (17, 19, 23)).astype(np.float32)
    affine = np.diag([0.7, 0.9, 2.5, 1.0])
    affine[:3, 3] = -3.25, 4.5, 1e-3
    return write_volume(voxels, tmp_path / "a.nii.gz", affine=affine)


def test_voxels_and_record_are_those_of_the_plain_reader(
    volume: Path, tmp_path: Path, make_series: Callable[..., Path]
) -> None:
    Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10)).save(tmp_path / "b.png")
    write_volume(np.ones((4, 5, 6), np.uint8), tmp_path / "c.nrrd")
    for path in (volume, tmp_path / "b.png", tmp_path / "c.nrrd", make_series(tmp_path / "ct")):
        plain, apart = read_volume(path, isolated=False), read_volume(path, isolated=True)
        assert np.array_equal(plain.image.numpy(), apart.image.numpy())
        assert np.array_equal(plain.image.affine, apart.image.affine)
        assert repr(plain.record) == repr(apart.record)
        assert repr(read_header(path, isolated=True)) == repr(read_header(path))
    voxels, meta = MedunetReader(isolated=True).get_data((volume,))
    assert voxels.flags.writeable
    assert meta["name"] == "a"
    both = read_volume([volume, volume], isolated=True)
    assert both.image.shape == (2, 17, 19, 23)


def test_one_child_reads_file_after_file_and_leaves_no_handle(process: ReadingProcess, volume: Path) -> None:
    process.call(read_one, volume, DEFAULTS)
    first, handles = process.pid, len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(20):
        process.call(read_one, volume, DEFAULTS)
    assert process.pid == first
    assert len(os.listdir("/proc/self/fd")) == handles  # noqa: PTH208


def test_errors_keep_their_type_and_words(process: ReadingProcess, volume: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(volume.read_bytes()[:-50])
    bare = tmp_path / "bare.nii"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), None), bare)
    for path, kind in ((cut, DataError), (bare, GeometryError), (tmp_path / "none.nii", DataError)):
        with pytest.raises(kind) as plain:
            read_volume(path, isolated=False)
        with pytest.raises(kind) as apart:
            process.call(read_one, path, DEFAULTS)
        assert str(apart.value) == str(plain.value)


def test_a_crash_is_an_error_of_the_file_and_the_next_file_is_read(process: ReadingProcess, volume: Path) -> None:
    process.call(read_one, volume, DEFAULTS)
    os.kill(process.pid or 0, signal.SIGSTOP)  # as if it were decoding
    os.kill(process.pid or 0, signal.SIGSEGV)
    os.kill(process.pid or 0, signal.SIGCONT)
    with pytest.raises(DataError, match=r"a\.nii\.gz: .*the reading process ended \(received SIGSEGV\)"):
        for _ in range(50):
            process.call(read_one, volume, DEFAULTS)
    assert process.call(read_one, volume, DEFAULTS)[0].shape == (17, 19, 23)


def test_a_file_that_takes_too_long_is_stopped(volume: Path) -> None:
    process = ReadingProcess(memory=1 << 30, seconds=1.0)
    try:
        begun = time.monotonic()
        process.call(read_one, volume, DEFAULTS)
        os.kill(process.pid or 0, signal.SIGSTOP)
        with pytest.raises(DataError, match=r"a\.nii\.gz: reading takes too long.*at most 1 s"):
            process.call(read_one, volume, DEFAULTS)
        assert time.monotonic() - begun < 120
        assert process.pid is None
        assert process.call(read_one, volume, DEFAULTS)[0].shape == (17, 19, 23)
    finally:
        process.close()


def test_what_needs_too_much_memory_is_refused(tmp_path: Path, volume: Path) -> None:
    process = ReadingProcess(memory=200 << 20)
    try:
        large = nib.Nifti1Image(np.zeros((512, 512, 400), np.uint8), np.eye(4))  # 400 MiB of float32
        nib.save(large, tmp_path / "large.nii.gz")
        with pytest.raises(
            DataError, match=r"large\.nii\.gz: (image is larger than the free|reading needs more) memory"
        ):
            process.call(read_one, tmp_path / "large.nii.gz", DEFAULTS)
        assert process.call(read_one, volume, ReadOptions(spatial_dims=3))[0].shape == (17, 19, 23)
    finally:
        process.close()


def test_a_fork_gets_a_child_of_its_own(volume: Path) -> None:
    shared_process().call(read_one, volume, DEFAULTS)
    ours = shared_process().pid
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            shared_process().call(read_one, volume, DEFAULTS)
            os.write(writer, str(shared_process().pid).encode())
            shared_process().close()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        theirs = answer.read()
    os.waitpid(child, 0)
    assert theirs.isdigit() and int(theirs) != ours
    assert shared_process().call(read_one, volume, DEFAULTS)[0].shape == (17, 19, 23)


def test_a_child_goes_with_its_parent(volume: Path) -> None:
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        process = ReadingProcess()
        process.call(read_one, volume, DEFAULTS)
        os.write(writer, str(process.pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    child = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    pytest.fail("the reading process outlives its parent")
