"""Training in several processes equals training in one: `medunet train --nproc`, kills, two hosts."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import torch

from medunet.bundle import find_bundle
from medunet.datasets import write_phantom_dataset
from medunet.deploy.cluster import launch, train_processes
from medunet.errors import ConfigError

from .processes import PATIENCE, history, run, started, wait_for, weights, words, workers_of


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images: fold 1 trains on four and validates three, which two processes cannot share evenly."""
    root = tmp_path_factory.mktemp("cells")
    write_phantom_dataset(root, kind="cells", cases=7, size=(48, 48))
    return root


def train(data: Path, output: Path, *options: object, expected: int = 0, **changes: object) -> str:
    command = words("train", "unet_2d", "--data", data, "--output", output, "--fold", 1, *options, **changes)
    return run(command, expected=expected)


@pytest.fixture(scope="module")
def alone(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with batches of four."""
    output = tmp_path_factory.mktemp("alone") / "run"
    train(cells, output, "--epochs", 2, batch_size=4)
    return output


def assert_equal_trainings(one: Path, other: Path) -> None:
    first, second = history(one), history(other)
    assert len(first) == len(second)
    for expected, entry in zip(first, second, strict=True):
        assert entry["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert entry["val_dice"] == pytest.approx(expected["val_dice"], rel=1e-4)
    expected_weights, found = weights(one), weights(other)
    assert found.keys() == expected_weights.keys()
    for name, tensor in expected_weights.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])  # three cases to validate: fewer than four processes
def test_several_processes_train_like_one_with_the_total_batch(
    count: int, cells: Path, alone: Path, tmp_path: Path
) -> None:
    options = ("--nproc", count, "--epochs", 2)
    printed = train(cells, tmp_path / "run", *options, batch_size=4 // count)
    assert_equal_trainings(alone, tmp_path / "run")
    assert printed.count("epoch 2/2") == 1  # only the first process prints
    assert printed.count("SyncBatchNorm needs GPUs") == 1
    # an error in the input is one line, without a second try
    again = train(cells, tmp_path / "run", *options, expected=2, batch_size=4 // count)
    assert again.count("contains a trained run") == 1
    assert "Traceback" not in again


def test_impossible_arguments_are_rejected_before_anything_starts(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for cause, options in {
        "--rdzv-endpoint": {"processes": 1, "hosts": 2},
        "must be 1 or more": {"processes": 0},
        "more processes than GPUs": {"processes": 3},
        "one GPU each": {"processes": 2, "device": "cuda:1"},
    }.items():
        with pytest.raises(ConfigError, match=cause):
            train_processes(find_bundle("unet_2d"), cells, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["gpu-1:", ":29400", "gpu-1:port"])
def test_an_endpoint_is_a_host_and_a_port(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--rdzv-endpoint"):
        launch.launch_config(1, tmp_path, hosts=2, endpoint=text)


def resolve(monkeypatch: pytest.MonkeyPatch, **addresses: str) -> None:
    """Let names of hosts resolve to these addresses."""
    look_up = socket.getaddrinfo
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *args, **kw: look_up(addresses.get(host, host), *args, **kw))


def test_hosts_rendezvous_at_a_reachable_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (name, entry.address)
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET and not entry.address.startswith("127.")
    ]
    if not found:
        pytest.skip("the machine has a loopback only")
    interface, address = found[0]
    resolve(monkeypatch, gpu1="127.0.1.1", gpu2="192.0.2.7")
    monkeypatch.setattr(launch, "ELSEWHERE", address)  # an address outside, independent of the machine's routes
    config = launch.launch_config(2, tmp_path, hosts=2, endpoint="gpu1:29400")
    assert config.rdzv_configs["is_host"] is True
    assert config.local_addr == address
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    with launch._environment(config):
        assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == (interface, interface)
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    assert launch.launch_config(2, tmp_path, hosts=2, endpoint="gpu2").rdzv_configs["is_host"] is False


def test_a_host_with_a_loopback_only_is_rejected_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, gpu1="127.0.1.1")
    monkeypatch.setattr(launch, "ELSEWHERE", "127.0.0.2")
    with pytest.raises(ConfigError, match=r"loopback.*gpu1:29400.*IP address"):
        launch.launch_config(1, tmp_path, hosts=2, endpoint="gpu1")


LONG = {"steps_per_epoch": 4, "batch_size": 2}  # with 40 epochs some seconds, in which something can be killed


@pytest.fixture(scope="module")
def undisturbed(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    run(long_words(cells, output))
    return output


def long_words(cells: Path, output: Path) -> list[str]:
    parts = ("train", "unet_2d", "--data", cells, "--output", output, "--fold", 1, "--nproc", 2, "--epochs", 40)
    return words(*parts, **LONG)


def disturb(command: Sequence[str], output: Path, action: Callable[[subprocess.Popen[str]], object]) -> tuple[int, str]:
    """Run a command, do something after three epochs, and return the exit code and the output."""
    with started(command) as (launcher,):
        wait_for(lambda: epochs_of(output) >= 3, what="three epochs", process=launcher)
        action(launcher)
        printed, _ = launcher.communicate(timeout=PATIENCE)
    return launcher.returncode, printed


def assert_undisturbed(output: Path, undisturbed: Path) -> None:
    assert [entry["epoch"] for entry in history(output)] == list(range(1, 41))
    for name, tensor in weights(undisturbed).items():
        assert torch.equal(weights(output)[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_continues_from_the_last_complete_checkpoint(
    rank: int, cells: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    code, printed = disturb(
        long_words(cells, output), output, lambda launcher: workers_of(launcher.pid)[rank].send_signal(signal.SIGKILL)
    )
    assert code == 0, printed[-3000:]
    assert "resumed after epoch" in printed
    assert_undisturbed(output, undisturbed)


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_resume_continues(cells: Path, undisturbed: Path, tmp_path: Path) -> None:
    output, workers = tmp_path / "run", list[psutil.Process]()

    def interrupt(launcher: subprocess.Popen[str]) -> None:
        workers.extend(workers_of(launcher.pid))
        launcher.send_signal(signal.SIGINT)

    code, printed = disturb(long_words(cells, output), output, interrupt)
    assert code == 130 and "--resume" in printed, printed[-3000:]
    assert workers and not any(worker.is_running() for worker in workers)
    run([*long_words(cells, output), "--resume"])
    assert_undisturbed(output, undisturbed)


@pytest.mark.slow
def test_torchrun_with_monais_command_continues_after_a_kill(undisturbed: Path, tmp_path: Path) -> None:
    configs, output = undisturbed / "configs", tmp_path / "run"
    files = f"['{configs / 'train.json'}','{configs / 'multi_gpu_train.json'}']"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=2"]
    command += ["-m", "monai.bundle", "run", "training", "--config_file", files, "--bundle_root", str(output)]
    code, printed = disturb(
        command, output, lambda launcher: workers_of(launcher.pid, of="monai.bundle")[1].send_signal(signal.SIGKILL)
    )
    assert code == 0, printed[-3000:]
    assert_undisturbed(output, undisturbed)


def epochs_of(output: Path) -> int:
    try:
        return len(history(output))
    except (OSError, ValueError):
        return 0


def ip(*parts: str) -> None:
    done = subprocess.run(["ip", *parts], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"network namespaces cannot be made here: ip {' '.join(parts)}: {done.stderr.strip()}")


@pytest.fixture
def two_hosts() -> Iterator[dict[str, str]]:
    """Two network namespaces with one wire between them: address by name."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the program ip")
    hosts = {f"medunet-{side}-{os.getpid()}": f"10.77.0.{number}" for number, side in ((1, "a"), (2, "b"))}
    first, second = hosts
    try:
        for name in hosts:
            ip("netns", "add", name)
        ip("-n", first, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", second)
        for name, address in hosts.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            for link in ("wire", "lo"):
                ip("-n", name, "link", "set", link, "up")
        yield hosts
    finally:
        for name in hosts:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.mark.slow
def test_two_hosts_train_like_one_process(two_hosts: dict[str, str], cells: Path, alone: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    place = next(iter(two_hosts.values())) + ":29400"
    command = words(
        *("train", "unet_2d", "--data", cells, "--output", output, "--fold", 1, "--epochs", 2),
        *("--nproc", 1, "--nnodes", 2, "--rdzv-endpoint", place),
        batch_size=2,
    )
    with started(*(["ip", "netns", "exec", name, *command] for name in two_hosts)) as launchers:
        printed = [launcher.communicate(timeout=PATIENCE)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], "\n".join(printed)[-4000:]
    assert_equal_trainings(alone, output)
    assert sum("validation Dice" in text for text in printed) == 1  # one host wrote
