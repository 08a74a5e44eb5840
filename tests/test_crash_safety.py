"""Good files survive full, failing and read-only disks and killed processes; the rest is a typed error."""

import contextlib
import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small import SMALL_2D, untrained_run

from medunet.bundle import find_bundle
from medunet.errors import DataError
from medunet.files import (
    CAN_LOCK,
    OWNER_NAME,
    check_target,
    claim,
    is_whole_zip,
    keep_as,
    remove_remains,
    write_atomically,
)
from medunet.networks import UNet
from medunet.prediction import Predictor
from medunet.runs import train_bundle
from medunet.runtime import load_checkpoint, save_checkpoint, save_weights
from medunet.training import LAST_NAME, PREVIOUS_NAME, CheckpointHandler

NO_SPACE, READ_ONLY = os.strerror(errno.ENOSPC), os.strerror(errno.EROFS)
KILLS = int(os.environ.get("MEDUNET_TEST_KILLS", "12"))
needs_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a small file system, if the tests may do so."""
    mounted: list[Path] = []

    def make(size: str) -> Path:
        folder = tmp_path / f"mount{len(mounted)}"
        folder.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
            pytest.skip("may not mount a file system")
        mounted.append(folder)
        return folder

    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def checkpoint(number: int, size: int = 20_000) -> dict[str, Any]:
    return {"model": {"weight": torch.full((size,), float(number))}, "epoch": number}


def handler_of(folder: Path, *channels: int, **options: Any) -> CheckpointHandler:
    network = UNet(2, 1, 2, channels=channels)
    return CheckpointHandler(str(folder), network, optimizer=torch.optim.AdamW(network.parameters()), **options)


def test_a_full_disk_keeps_the_last_good_checkpoint(mount: Callable[..., Path]) -> None:
    folder = mount("200k")
    save_checkpoint(checkpoint(1), folder / "last.pt")
    for _ in range(3):
        keep_as(folder / "last.pt", folder / "previous.pt")
        with pytest.raises(DataError, match=r"last\.pt: cannot be written.*0\.\d MiB are free"):
            save_checkpoint(checkpoint(2, size=50_000), folder / "last.pt")
    assert load_checkpoint(folder / "last.pt")["epoch"] == 1
    assert sorted(path.name for path in folder.iterdir()) == ["last.pt", "previous.pt"]
    with pytest.raises(DataError, match=NO_SPACE):
        write_atomically(folder / "report.html", bytes(300_000))
    with pytest.raises(DataError, match="cannot be written"):
        save_weights({"w": torch.zeros(100_000)}, folder / "model.pt")


def test_a_full_disk_is_an_error_before_the_first_step(mount: Callable[..., Path]) -> None:
    folder = mount("2m")
    with pytest.raises(DataError, match=r"not enough free space .*MiB free"):
        handler_of(folder / "models", 16, 32, 64)._check_room()
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(DataError, match=NO_SPACE):
        check_target(folder / "out")


def test_an_unwritable_target_is_rejected_first(mount: Callable[..., Path], tmp_path: Path) -> None:
    folder = mount("1m")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    for call in (lambda: check_target(folder / "out"), lambda: check_target(folder)):
        with pytest.raises(DataError, match=READ_ONLY):
            call()
    with pytest.raises(DataError, match=READ_ONLY), claim(folder / "out"):
        pass
    with pytest.raises(DataError, match=READ_ONLY):  # the data set does not even exist
        train_bundle(find_bundle("unet_2d"), tmp_path / "nothing", folder / "run", device="cpu")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        check_target(tmp_path / "file" / "run")
    with pytest.raises(DataError, match="cannot be written"), claim(tmp_path / "file"):
        pass


def test_files_and_folders_are_flushed_and_a_failing_disk_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def note(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").resolve().name)
        real(handle)

    def fail(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", note)
    save_checkpoint(checkpoint(1), tmp_path / "last.pt")
    if Path("/proc/self/fd").is_dir():
        assert synced[0].endswith(".last.pt")
        assert synced[1:] == [tmp_path.name]
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DataError, match=r"last\.pt: cannot be written: Input/output error"):
        save_checkpoint(checkpoint(2), tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("how", ["cut", "bit", "empty"])
def test_resume_uses_the_newest_intact_checkpoint(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle] ^= 1
        path.write_bytes({"cut": content[:middle], "bit": content, "empty": b""}[how])

    handler = handler_of(tmp_path, 4, 8, resume=True)
    assert handler._load() is None
    for number in (1, 2):
        keep_as(tmp_path / LAST_NAME, tmp_path / PREVIOUS_NAME)
        save_checkpoint(checkpoint(number), tmp_path / LAST_NAME)
    times = {LAST_NAME: 1e8, PREVIOUS_NAME: 4e9}  # the clock ran backwards
    for name, seconds in times.items():
        os.utime(tmp_path / name, (seconds, seconds))
    assert handler._load()["epoch"] == 2
    damage(tmp_path / LAST_NAME)
    assert handler._load()["epoch"] == 1
    assert f"{LAST_NAME} is damaged" in caplog.text
    damage(tmp_path / PREVIOUS_NAME)
    with pytest.raises(DataError, match="every checkpoint"):
        handler._load()


@pytest.mark.skipif(not CAN_LOCK, reason="the system knows no such locks")
def test_a_second_process_is_rejected_and_the_first_is_named(tmp_path: Path) -> None:
    program = "import sys; from medunet.files import claim\nwith claim(sys.argv[1]): print(1, flush=True); input()"
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"1\n"
        with pytest.raises(DataError, match=f"another process writes.*process {other.pid} on "), claim(tmp_path):
            pass
        other.kill()
    (tmp_path / ".0123abcd.last.pt").write_bytes(b"half")
    with claim(tmp_path):  # the lock and the remains of the killed process are gone
        assert [path.name for path in tmp_path.iterdir()] == [OWNER_NAME]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_is_a_link_does_not_overwrite_its_target(tmp_path: Path) -> None:
    victim, out = tmp_path / "thesis.txt", tmp_path / "out"
    victim.write_text("years of work")
    out.mkdir()
    for target in (victim, tmp_path / "new"):
        (out / OWNER_NAME).symlink_to(target)
        with pytest.raises(DataError, match="cannot be written"), claim(out):
            pass
        (out / OWNER_NAME).unlink()
    assert victim.read_text() == "years of work"
    assert not (tmp_path / "new").exists()


def kill_at_random(
    work: Callable[..., None],
    arguments: Callable[[int], tuple[Any, ...]],
    *,
    kills: int,
    seconds: float,
    check: Callable[[int], None] = lambda index: None,
) -> int:
    """Do some work in processes that are killed at random moments, and return how many arguments were used.

    The argument is a number that rises when the work is done or after six kills; `check` is called after each process.
    """
    chance, index, killed, here = random.Random(8), 0, 0, 0
    while killed < kills:
        process = multiprocessing.get_context("fork").Process(target=work, args=arguments(index))
        process.start()
        process.join(chance.uniform(0, seconds))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        check(index)
        if process.exitcode:
            killed, here = killed + 1, here + 1
        if process.exitcode == 0 or here == 6:
            index, here = index + 1, 0
    return index + 1


def write_for_ever(folder: Path) -> None:
    number = load_checkpoint(folder / "last.pt")["epoch"] if (folder / "last.pt").is_file() else 0
    while True:
        number += 1
        save_weights(checkpoint(number)["model"], folder / "model.pt")
        keep_as(folder / "last.pt", folder / "previous.pt")
        save_checkpoint(checkpoint(number), folder / "last.pt")


@needs_fork
def test_a_writer_killed_at_any_moment_leaves_intact_files(tmp_path: Path) -> None:
    epochs = [0]

    def check(index: int) -> None:
        for path in tmp_path.glob("[!.]*.pt"):
            assert is_whole_zip(path)
            assert load_checkpoint(path)["model"]["weight"].unique().numel() == 1
        if (tmp_path / "last.pt").exists():
            epochs.append(load_checkpoint(tmp_path / "last.pt")["epoch"])

    while epochs[-1] < 6:
        kill_at_random(write_for_ever, lambda index: (tmp_path,), kills=25, seconds=0.15, check=check)
    assert epochs == sorted(epochs)
    remove_remains(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names <= {"last.pt", "previous.pt", "model.pt", "model.safetensors"}


def train(data: Path, output: Path) -> None:
    changes = {**SMALL_2D, "epochs": 4, "val_interval": 2, "folds": 2, "num_workers": 0}
    options: dict[str, Any] = {"changes": changes, "device": "cpu", "resume": True, "tracking_uri": ""}
    train_bundle(find_bundle("unet_2d"), data, output, **options)


@needs_fork
@pytest.mark.slow
def test_a_repeatedly_killed_training_run_equals_an_uninterrupted_one(cells: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    train(cells, tmp_path / "calm")
    seconds = time.monotonic() - begun
    expected = load_checkpoint(tmp_path / "calm" / "models" / "model.pt")["model"]
    runs = kill_at_random(train, lambda index: (cells, tmp_path / f"run{index}"), kills=KILLS, seconds=seconds)
    for index in range(runs):
        run = tmp_path / f"run{index}"
        train(cells, run)
        weights = load_checkpoint(run / "models" / "model.pt")["model"]
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
        assert not [path for path in (run / "models").iterdir() if path.name.startswith(".")]


def predict(run: Path, images: list[Path], output: Path) -> None:
    predictor = Predictor(run, output_dir=output, device="cpu", skip_done=True)
    for result in predictor.predict(images):
        assert result.error is None


@needs_fork
@pytest.mark.slow
def test_a_repeatedly_killed_prediction_equals_an_uninterrupted_one(volumes: Path, tmp_path: Path) -> None:
    images = sorted((volumes / "imagesTr").iterdir())[:3]
    run = untrained_run(tmp_path / "run")
    begun = time.monotonic()
    predict(run, images, tmp_path / "calm")
    seconds = time.monotonic() - begun
    expected = {path.name: path.read_bytes() for path in (tmp_path / "calm").iterdir()}
    assert len(expected) == 3

    def complete_or_missing(index: int) -> None:
        for path in (tmp_path / f"out{index}").glob("[!.]*.nii.gz"):
            assert path.read_bytes() == expected[path.name]

    arguments = lambda index: (run, images, tmp_path / f"out{index}")  # noqa: E731
    runs = kill_at_random(predict, arguments, kills=KILLS, seconds=seconds, check=complete_or_missing)
    for index in range(runs):
        output = tmp_path / f"out{index}"
        predict(run, images, output)
        remove_remains(output)
        assert {path.name: path.read_bytes() for path in output.iterdir()} == expected
