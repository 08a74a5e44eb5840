"""Full disks, failing disks, read-only targets, killed processes: good files stay, the rest is a typed error."""

from __future__ import annotations

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
    atomic_path,
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
FORK = "fork" in multiprocessing.get_all_start_methods()
KILLS = int(os.environ.get("MEDUNET_TEST_KILLS", "12"))
needs_fork = pytest.mark.skipif(not FORK, reason="needs fork")


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A small file system of its own, where the tests may make one."""
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
    assert is_whole_zip(folder / "last.pt")


def test_a_full_disk_is_told_before_the_first_step(mount: Callable[..., Path]) -> None:
    folder = mount("2m")
    network = UNet(2, 1, 2, channels=(16, 32, 64))
    optimizer = torch.optim.AdamW(network.parameters())
    handler = CheckpointHandler(str(folder / "models"), network, optimizer=optimizer)
    with pytest.raises(DataError, match=r"not enough free space .*MiB free"):
        handler._check_room()
    with contextlib.suppress(OSError), (folder / "filler").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    with pytest.raises(DataError, match=NO_SPACE):
        check_target(folder / "out")


def test_a_read_only_target_is_told_at_once(mount: Callable[..., Path], tmp_path: Path) -> None:
    folder = mount("1m")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    for call in (lambda: check_target(folder / "out"), lambda: check_target(folder)):
        with pytest.raises(DataError, match=READ_ONLY):
            call()
    with pytest.raises(DataError, match=READ_ONLY), claim(folder / "out"):
        pass
    # in front of everything else: the data set does not even exist
    with pytest.raises(DataError, match=READ_ONLY):
        train_bundle(find_bundle("unet_2d"), tmp_path / "nothing", folder / "run", device="cpu")


def test_a_target_that_is_no_folder_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        check_target(tmp_path / "file" / "run")
    with pytest.raises(DataError, match="cannot be written"), claim(tmp_path / "file"):
        pass


def test_a_limit_of_file_sizes_keeps_the_old_file(tmp_path: Path) -> None:
    save_checkpoint(checkpoint(1, size=10), tmp_path / "last.pt")
    program = f"""
import resource
from medunet.runtime import save_checkpoint
import torch
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
save_checkpoint({{"model": torch.zeros(100_000)}}, {str(tmp_path / "last.pt")!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
    remove_remains(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_failing_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(checkpoint(1), tmp_path / "last.pt")

    def fail(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DataError, match=r"last\.pt: cannot be written: Input/output error"):
        save_checkpoint(checkpoint(2), tmp_path / "last.pt")
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_file_and_folder_are_on_the_disk_before_anybody_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def note(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").resolve().name)
        real(handle)

    monkeypatch.setattr(os, "fsync", note)
    with atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("x")
    if Path("/proc/self/fd").is_dir():
        assert synced == [temporary.name, tmp_path.name]


def damage(path: Path, *, how: str) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    path.write_bytes({"cut": content[:middle], "bit": content, "empty": b""}[how])


@pytest.mark.parametrize("how", ["cut", "bit", "empty"])
def test_resume_takes_the_newest_whole_checkpoint(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = UNet(2, 1, 2, channels=(4, 8))
    handler = CheckpointHandler(
        str(tmp_path), network, optimizer=torch.optim.SGD(network.parameters(), lr=0.1), resume=True
    )
    assert handler._load() is None
    for number in (1, 2):
        keep_as(tmp_path / LAST_NAME, tmp_path / PREVIOUS_NAME)
        save_checkpoint(checkpoint(number), tmp_path / LAST_NAME)
    assert handler._load()["epoch"] == 2
    assert load_checkpoint(tmp_path / PREVIOUS_NAME)["epoch"] == 1
    damage(tmp_path / LAST_NAME, how=how)
    assert handler._load()["epoch"] == 1
    assert f"{LAST_NAME} is damaged" in caplog.text
    damage(tmp_path / PREVIOUS_NAME, how=how)
    with pytest.raises(DataError, match="every checkpoint"):
        handler._load()


def write_for_ever(folder: Path) -> None:
    number = load_checkpoint(folder / "last.pt")["epoch"] if (folder / "last.pt").is_file() else 0
    while True:
        number += 1
        save_weights(checkpoint(number)["model"], folder / "model.pt")
        keep_as(folder / "last.pt", folder / "previous.pt")
        save_checkpoint(checkpoint(number), folder / "last.pt")


@needs_fork
def test_a_writer_killed_at_any_moment_leaves_whole_files(tmp_path: Path) -> None:
    chance = random.Random(8)
    newest, n_killed = 0, 0
    while newest < 6 or n_killed < 50:
        n_killed += 1
        process = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(tmp_path,))
        process.start()
        time.sleep(chance.uniform(0.01, 0.08))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        for name in ("last.pt", "previous.pt", "model.pt"):
            if (tmp_path / name).exists():
                assert is_whole_zip(tmp_path / name)
                weight = load_checkpoint(tmp_path / name)["model"]["weight"]
                assert weight.unique().numel() == 1
        if (tmp_path / "last.pt").exists():
            number = load_checkpoint(tmp_path / "last.pt")["epoch"]
            assert number >= newest
            newest = number
    remove_remains(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names <= {"last.pt", "previous.pt", "model.pt", "model.safetensors"}


@pytest.mark.skipif(not CAN_LOCK, reason="the system knows no such locks")
def test_a_second_process_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    program = f"""
import sys, time
from medunet.files import claim
with claim({str(tmp_path)!r}):
    print("held", flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(DataError, match=f"another process writes.*process {other.pid} on "), claim(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
        other.stdout.close() if other.stdout else None
    (tmp_path / ".0123abcd.last.pt").write_bytes(b"half")
    with claim(tmp_path):  # its lock went with it, and what it left
        assert [path.name for path in tmp_path.iterdir()] == [".medunet.lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_a_link_destroys_no_other_file(tmp_path: Path) -> None:
    victim, out = tmp_path / "thesis.txt", tmp_path / "out"
    victim.write_text("years of work")
    out.mkdir()
    (out / OWNER_NAME).symlink_to(victim)
    with pytest.raises(DataError, match="cannot be written"), claim(out):
        pass
    assert victim.read_text() == "years of work"
    (out / OWNER_NAME).unlink()
    (out / OWNER_NAME).symlink_to(tmp_path / "new")
    with pytest.raises(DataError, match="cannot be written"), claim(out):
        pass
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
        was_alive = process.is_alive()
        if was_alive:
            os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        check(index)
        if was_alive and process.exitcode:
            killed, here = killed + 1, here + 1
        if process.exitcode == 0 or here == 6:
            index, here = index + 1, 0
    return index + 1


def train(data: Path, output: Path) -> None:
    changes = {**SMALL_2D, "epochs": 4, "val_interval": 2, "folds": 2, "num_workers": 0}
    options: dict[str, Any] = {"changes": changes, "device": "cpu", "resume": True, "tracking_uri": ""}
    train_bundle(find_bundle("unet_2d"), data, output, **options)


@needs_fork
@pytest.mark.slow
def test_a_training_killed_again_and_again_ends_as_an_undisturbed_one(cells: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    train(cells, tmp_path / "calm")
    seconds = time.monotonic() - begun
    expected = load_checkpoint(tmp_path / "calm" / "models" / "model.pt")["model"]
    runs = kill_at_random(train, lambda index: (cells, tmp_path / f"run{index}"), kills=KILLS, seconds=seconds)
    for index in range(runs):
        run = tmp_path / f"run{index}"
        train(cells, run)
        found = load_checkpoint(run / "models" / "model.pt")["model"]
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert not [path for path in (run / "models").iterdir() if path.name.startswith(".")]


def predict(run: Path, images: list[Path], output: Path) -> None:
    predictor = Predictor(run, output_dir=output, device="cpu", skip_done=True)
    for result in predictor.predict(images):
        assert result.error is None


@needs_fork
@pytest.mark.slow
def test_a_prediction_killed_again_and_again_ends_as_an_undisturbed_one(volumes: Path, tmp_path: Path) -> None:
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
