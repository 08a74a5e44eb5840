"""Images are decoded in a child process: a crash, a hang or too much memory is an error of the file."""

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
from medunet.io.decode import read_one
from medunet.io.isolation import ReadingProcess, shared_process
from medunet.io.options import DEFAULTS

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


@pytest.fixture(scope="module")
def process() -> Iterator[ReadingProcess]:
    process = ReadingProcess(memory=200 << 20)
    yield process
    process.close()


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    voxels = np.random.default_rng(3).normal(0, 500, (17, 19, 23)).astype(np.float32)
    affine = np.diag([0.7, 0.9, 2.5, 1.0])
    affine[:3, 3] = -3.25, 4.5, 1e-3
    return write_volume(voxels, tmp_path / "a.nii.gz", affine=affine)


def test_isolated_reading_returns_the_same_voxels_and_record(
    volume: Path, tmp_path: Path, make_series: Callable[..., Path]
) -> None:
    Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10)).save(tmp_path / "b.png")
    write_volume(np.ones((4, 5, 6), np.uint8), tmp_path / "c.nrrd")
    for path in (volume, tmp_path / "b.png", tmp_path / "c.nrrd", make_series(tmp_path / "ct")):
        plain, apart = read_volume(path, isolated=False), read_volume(path, isolated=True)
        assert np.array_equal(plain.image.numpy(), apart.image.numpy())
        assert np.array_equal(plain.image.affine, apart.image.affine)
        assert repr(plain.record) == repr(apart.record) == repr(read_header(path, isolated=True))
    voxels, meta = MedunetReader(isolated=True).get_data((volume,))
    assert voxels.flags.writeable
    assert meta["name"] == "a"


def test_one_child_reads_file_after_file_and_leaks_no_handle(process: ReadingProcess, volume: Path) -> None:
    process.call(read_one, volume, DEFAULTS)
    first, handles = process.pid, len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(20):
        process.call(read_one, volume, DEFAULTS)
    assert process.pid == first
    assert len(os.listdir("/proc/self/fd")) == handles  # noqa: PTH208
    # it starts in a second, because it imports neither
    assert process.call(eval, "{'torch', 'monai'} & {*__import__('sys').modules}") == set()  # type: ignore[arg-type]


def test_errors_keep_their_type_and_message(process: ReadingProcess, volume: Path, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("program", "cause"),
    [
        ("import os; os.kill(os.getpid(), 11)", r"the reading process ended \(received SIGSEGV\)"),
        ("while True: pass", "reading takes too long.*at most 2 s"),
        ("bytearray(1 << 30)", "reading needs more memory than allowed"),
    ],
)
def test_a_crash_a_hang_and_too_much_memory_are_errors_of_the_file_and_the_next_file_is_read(
    process: ReadingProcess, volume: Path, program: str, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.call(read_one, volume, DEFAULTS)
    with monkeypatch.context() as patch, pytest.raises(DataError, match=cause):
        patch.setattr(process, "seconds", 2.0)
        process.call(exec, program)  # type: ignore[arg-type]
    assert process.call(read_one, volume, DEFAULTS)[0].shape == (17, 19, 23)


def test_a_fork_starts_its_own_child_which_ends_with_it(volume: Path) -> None:
    shared_process().call(read_one, volume, DEFAULTS)
    reader, writer = os.pipe()
    fork = os.fork()
    if fork == 0:
        shared_process().call(read_one, volume, DEFAULTS)
        os.write(writer, str(shared_process().pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(writer)
    os.waitpid(fork, 0)
    with os.fdopen(reader) as answer:
        child = int(answer.read())
    assert child != shared_process().pid
    assert shared_process().call(read_one, volume, DEFAULTS)[0].shape == (17, 19, 23)
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    pytest.fail("the reading process outlives its parent")
