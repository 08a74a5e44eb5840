"""Training in several processes, on one host or on several, started by PyTorch's elastic launcher (torchrun's)."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher import LaunchConfig, elastic_launch

from medunet.errors import ConfigError, MedunetError
from medunet.runs import TrainingResult
from medunet.runtime import resolve_device
from medunet.trust import require_trust

from .job import OVERLAY, TrainingJob

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""How often killed processes are started again."""

JOIN_SECONDS = 600
"""How long hosts wait for each other."""

WORKER = "medunet.deploy.cluster.worker"
DEFAULT_PORT = 29400

ELSEWHERE = "192.0.2.1"
"""An address that no host has (RFC 5737): the way to it is the way out of this host."""


def train_processes(
    bundle: Path,
    data: Path,
    output: Path,
    *,
    processes: int,
    hosts: int = 1,
    endpoint: str | None = None,
    changes: Mapping[str, Any] | None = None,
    presets: Sequence[str] = (),
    device: str = "auto",
    resume: bool = False,
    tracking_uri: str | None = None,
    trust: bool = False,
    skip_bad: bool = False,
    max_restarts: int = MAX_RESTARTS,
) -> TrainingResult | None:
    """As :func:`medunet.runs.train_bundle` in several processes; called once on every host, with equal arguments.

    Every process trains `batch_size` patches a step and shares gradients, statistics of batch norm and metrics with the
    others; on CPUs they share out the cores. A process that is killed, or loses the others, is started again with them
    and goes on from the last whole checkpoint. Errors in the input are not tried again.

    Args:
        bundle: as in train_bundle, as are data, output, changes, presets, device, resume, tracking_uri, trust and
            skip_bad; all hosts see the folders under the same paths.
        data: see bundle.
        output: see bundle.
        processes: on this host, one a GPU.
        hosts: how many call this.
        endpoint: ``HOST:PORT`` on one of the hosts, where they meet.
        changes: see bundle.
        presets: see bundle.
        device: ``auto``, ``cpu`` or ``cuda``.
        resume: see bundle.
        tracking_uri: see bundle.
        trust: see bundle.
        skip_bad: see bundle.
        max_restarts: how often killed processes are started again.

    Returns:
        What came of it, on the host with the first process; None on the others.

    Raises:
        SecurityError: the bundle is not trusted.
        MedunetError: as train_bundle; more processes than GPUs, no way to meet, processes that died too often.
        KeyboardInterrupt: by Ctrl-C or SIGTERM, after the processes have ended.
    """
    check_request(processes, hosts=hosts, endpoint=endpoint, device=device)
    require_trust(bundle, trust=trust)
    if not (bundle / "configs" / f"{OVERLAY}.json").is_file():
        raise ConfigError(
            "the bundle has no config for several processes",
            file=bundle,
            expected=f"configs/{OVERLAY}.json",
            remedy="render or plan it again",
        )
    with tempfile.TemporaryDirectory(prefix="medunet-") as folder, _environment(processes, hosts, endpoint):
        job = TrainingJob(
            folder=folder,
            bundle=str(bundle.resolve()),
            data=str(data.resolve()),
            output=str(output.resolve()),
            changes=dict(changes or {}),
            presets=tuple(presets),
            device=device,
            resume=resume,
            tracking_uri=tracking_uri,
            skip_bad=skip_bad,
        )
        run_id = _run_id(output) if hosts > 1 else Path(folder).name
        config = launch_config(processes, hosts=hosts, endpoint=endpoint, max_restarts=max_restarts, run_id=run_id)
        try:
            elastic_launch(config, entrypoint=sys.executable)("-m", WORKER, str(job.save()))
        except SignalException as signal:
            raise KeyboardInterrupt from signal
        except ChildFailedError as error:
            raise _failure(job, error) from error
        except RendezvousError as error:
            raise ConfigError(
                "the hosts did not find each other, or one of them has given up",
                received=f"{endpoint}, {type(error).__name__}",
                expected=f"{hosts} hosts that call with equal arguments",
                remedy="make --rdzv-endpoint an address of one of the hosts that the others reach, then --resume",
            ) from error
        result = job.result()
        return None if result is None else replace(result, run=output)


def check_request(processes: int, *, hosts: int, endpoint: str | None, device: str) -> None:
    """Refuse what cannot work, before anything starts.

    Raises:
        ConfigError: impossible numbers, no endpoint for several hosts, one GPU for several processes.
    """
    if processes < 1 or hosts < 1:
        raise ConfigError(
            "impossible number of processes or hosts", received=f"{processes}, {hosts}", expected="1 or more"
        )
    if hosts > 1 and not endpoint:
        raise ConfigError(
            "several hosts need a place to meet", remedy=f"give --rdzv-endpoint HOST:{DEFAULT_PORT} on one of them"
        )
    chosen = resolve_device(device)
    if chosen.type != "cuda":
        return
    if chosen.index is not None:
        raise ConfigError("one GPU for several processes", received=device, expected="cuda: each takes its own")
    if processes > torch.cuda.device_count():
        raise ConfigError(
            "more processes than GPUs",
            received=processes,
            expected=f"at most {torch.cuda.device_count()}",
            remedy="lower --nproc, or give --device cpu",
        )


def launch_config(processes: int, *, hosts: int, endpoint: str | None, max_restarts: int, run_id: str) -> LaunchConfig:
    """How the elastic launcher starts the processes of this host, and where it meets the other hosts."""
    host, port = split_endpoint(endpoint) if endpoint and hosts > 1 else ("localhost", 0)
    own = _reachable_address(host, port) if hosts > 1 else None
    return LaunchConfig(
        min_nodes=hosts,
        max_nodes=hosts,
        nproc_per_node=processes,
        run_id=run_id,
        rdzv_backend="c10d",
        rdzv_endpoint=f"{host}:{port}",
        # by addresses, not by names: those of hosts in clusters and containers often resolve to something else
        rdzv_configs={"timeout": JOIN_SECONDS, "is_host": hosts == 1 or _is_own_address(host)},
        max_restarts=max_restarts,
        monitor_interval=1.0,
        local_addr=own or "127.0.0.1",
    )


def _run_id(output: Path) -> str:
    """Return what keeps two training runs with one endpoint apart; all hosts see the output under the same path."""
    return f"medunet-{hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:16]}"


def split_endpoint(text: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        ConfigError: something else.

    Example:
        >>> split_endpoint("10.0.0.1:29500"), split_endpoint("gpu-1")
        (('10.0.0.1', 29500), ('gpu-1', 29400))
    """
    host, _, port = text.rpartition(":") if ":" in text else (text, "", str(DEFAULT_PORT))
    if not host or not port.isdecimal():
        raise ConfigError("no endpoint", received=text, expected="HOST:PORT")
    return host, int(port)


def _failure(job: TrainingJob, error: ChildFailedError) -> MedunetError:
    if (text := job.failure()) is not None:
        return MedunetError(text)
    rank, first = error.get_first_failure()
    return MedunetError(
        "a process of the training has died, and again after it was restarted",
        received=f"process {rank}, exit code {first.exitcode}",
        remedy="often memory ran out: lower batch_size; the same command with --resume goes on",
    )


@contextmanager
def _environment(processes: int, hosts: int, endpoint: str | None) -> Iterator[None]:
    """Variables that the processes inherit; what the user has set stays."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = {"OMP_NUM_THREADS": str(max(1, cores // processes))}
    wanted["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # restarted processes would meet the dead there
    if hosts > 1 and endpoint:
        interface = _interface_of(_reachable_address(*split_endpoint(endpoint)))
        wanted |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    chatty = logging.getLogger("torch.distributed.elastic")
    level = chatty.level
    os.environ.update(added)
    chatty.setLevel(logging.CRITICAL)  # our error says the same in one line
    try:
        yield
    finally:
        chatty.setLevel(level)
        for name in added:
            os.environ.pop(name, None)


def _reachable_address(host: str, port: int) -> str:
    """This host's address for the others.

    Debian and Ubuntu give a host's own name the address 127.0.1.1 (`/etc/hosts`), so the way from the endpoint's host
    to the endpoint is a loopback, where the others would find themselves.
    """
    address = _address_towards(host, port)
    if not _is_loopback(address):
        return address
    outward = None
    with contextlib.suppress(ConfigError):  # a cluster without a way out
        outward = _address_towards(ELSEWHERE, port)
    found = sorted(_outer_addresses(), key=lambda each: (each != outward, ":" in each))
    if not found:
        raise ConfigError(
            "the endpoint's name is a loopback address here, and this host has no other address",
            received=f"{host}:{port}, {address}",
            expected="an address that the other hosts reach",
            remedy="connect the network, and give --rdzv-endpoint the IP address of this host",
        )
    return found[0]


def _address_towards(host: str, port: int) -> str:
    """This host's address as the other one sees it; nothing is sent."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with contextlib.closing(socket.socket(family, kind, protocol)) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(f"no way to the endpoint: {error.strerror or error}", received=f"{host}:{port}") from error


def _outer_addresses() -> Iterator[str]:
    """Of the interfaces that are up, without loopbacks and those that are valid on one wire only."""
    running = psutil.net_if_stats()
    for name, entries in psutil.net_if_addrs().items():
        if name not in running or not running[name].isup:
            continue
        for entry in entries:
            if entry.family in (socket.AF_INET, socket.AF_INET6):
                address = ipaddress.ip_address(entry.address.partition("%")[0])
                if not address.is_loopback and not address.is_link_local:
                    yield entry.address


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _is_own_address(host: str) -> bool:
    wanted = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    if wanted & own or any(map(_is_loopback, wanted)):
        return True
    return host.lower() in {socket.gethostname().lower(), socket.getfqdn().lower()}


def _interface_of(address: str) -> str | None:
    found = (name for name, entries in psutil.net_if_addrs().items() if any(e.address == address for e in entries))
    return next(found, None)
