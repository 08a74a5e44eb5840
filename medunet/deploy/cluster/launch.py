"""Training in several processes, on one host or on several, by PyTorch's elastic launcher (torchrun's)."""

import contextlib
import hashlib
import ipaddress
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
from torch.distributed.launcher import LaunchConfig, elastic_launch

from medunet import log
from medunet.errors import ConfigError, MedunetError, find_cause
from medunet.files import write_atomically
from medunet.runs import PreparedRun, TrainingResult, prepare_run, train_run
from medunet.runtime import resolve_device
from medunet.tracking.server import default_variables
from medunet.training import from_first, join_processes, leave_processes, was_restarted
from medunet.trust import require_trust

logger = logging.getLogger(__name__)

OVERLAY = "multi_gpu_train"  # a bundle's config for several processes
MAX_RESTARTS = 3
JOIN_SECONDS = 600  # how long hosts wait for each other
DEFAULT_PORT = 29400
ELSEWHERE = "192.0.2.1"  # an address that no host has (RFC 5737): its route leads out of this host
BAD_INPUT, LOST = 2, 1  # exit codes of a process with a typed error, and of one that could not reach another one

# how long processes wait while the first one prepares the run: with `skip_bad` it reads every voxel of the data; if it
# dies, the launcher notices
PREPARATION = timedelta(hours=24)


def train_processes(
    bundle: Path,
    data: Path,
    output: Path,
    *,
    processes: int,
    hosts: int = 1,
    endpoint: str | None = None,
    device: str = "auto",
    tracking_uri: str | None = None,
    trust: bool = False,
    **options: Any,
) -> TrainingResult | None:
    """Train like :func:`medunet.runs.train_bundle`, in several processes; call it on every host, with equal arguments.

    Every process trains `batch_size` patches per step and shares gradients, statistics of batch norm and metrics with
    the others; on CPUs they share the cores. If a process is killed, all are started again and continue from the last
    complete checkpoint. Errors in the input are not retried. Processes are spawned, so a script that calls this needs
    ``if __name__ == "__main__":``.

    Args:
        bundle: folder of the bundle to start from; all hosts see bundle, data and output under the same paths.
        data: data set in a layout that :func:`medunet.datasets.open_dataset` knows.
        output: folder of the run.
        processes: number of processes on this host, one per GPU.
        hosts: number of hosts that call this.
        endpoint: rendezvous ``HOST:PORT`` on one of the hosts, required if there are several.
        device: ``auto``, ``cpu`` or ``cuda``.
        tracking_uri: MLflow's tracking URI for this call; ``""`` disables tracking, None uses the bundle's.
        trust: train a bundle that could run its own code.
        **options: `changes`, `presets`, `resume` and `skip_bad` of :func:`medunet.runs.train_bundle`.

    Returns:
        The result, on the host with the first process; None on the others.

    Raises:
        SecurityError: the bundle is not trusted.
        MedunetError: an error of train_bundle; more processes than GPUs; an unusable endpoint; processes that died
            too often.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the processes have ended.
    """
    check_request(processes, hosts=hosts, endpoint=endpoint, device=device)
    require_trust(bundle, trust=trust)
    if not (bundle / "configs" / f"{OVERLAY}.json").is_file():
        raise ConfigError("the bundle has no config for several processes", file=bundle, expected=f"{OVERLAY}.json")
    config = launch_config(processes, output, hosts=hosts, endpoint=endpoint)
    paths = (bundle.resolve(), data.resolve(), output.resolve())
    with tempfile.TemporaryDirectory(prefix="medunet-") as folder, _environment(config):
        failure = Path(folder) / "failure"
        try:
            results = elastic_launch(config, _train)(failure, paths, {**options, "trust": trust}, device, tracking_uri)
        except SignalException as signal:
            raise KeyboardInterrupt from signal
        except ChildFailedError as error:
            if failure.is_file():
                raise MedunetError(failure.read_text(encoding="utf-8")) from error
            rank, first = error.get_first_failure()
            received, remedy = f"process {rank}, exit code {first.exitcode}", "lower batch_size, and add --resume"
            cause = "a process of the training run died repeatedly, often because memory ran out"
            raise MedunetError(cause, received=received, remedy=remedy) from error
        except RendezvousError as error:
            remedy = "make --rdzv-endpoint an address of one of the hosts that the others reach, then --resume"
            raise ConfigError("not all hosts reached the endpoint", received=endpoint, remedy=remedy) from error
    result = next((result for result in results.values() if result is not None), None)
    return None if result is None else replace(result, run=output)


def check_request(processes: int, *, hosts: int, endpoint: str | None, device: str) -> None:
    """Reject arguments that cannot work, before anything starts."""
    if processes < 1 or hosts < 1:
        raise ConfigError("the numbers of processes and hosts must be 1 or more", received=f"{processes}, {hosts}")
    if hosts > 1 and not endpoint:
        raise ConfigError("several hosts need --rdzv-endpoint", expected=f"HOST:{DEFAULT_PORT} on one of them")
    selected, count = resolve_device(device), torch.cuda.device_count()
    if selected.type == "cuda" and selected.index is not None:
        raise ConfigError("several processes need one GPU each", received=device, expected="cuda")
    if selected.type == "cuda" and processes > count:
        remedy = "lower --nproc, or pass --device cpu"
        raise ConfigError("more processes than GPUs", received=processes, expected=f"at most {count}", remedy=remedy)


def launch_config(processes: int, output: Path, *, hosts: int, endpoint: str | None) -> LaunchConfig:
    """Return how the elastic launcher starts the processes of this host, and where it meets the other hosts."""
    try:
        host, port = parse_rendezvous_endpoint(endpoint, DEFAULT_PORT) if hosts > 1 else ("localhost", 0)
    except ValueError as error:
        raise ConfigError("--rdzv-endpoint must be HOST:PORT", received=endpoint) from error
    return LaunchConfig(
        min_nodes=hosts,
        max_nodes=hosts,
        nproc_per_node=processes,
        # separates runs with one endpoint; all hosts see the output under the same path
        run_id=f"medunet-{hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:16]}",
        rdzv_backend="c10d",
        rdzv_endpoint=f"{host}:{port}",
        # by addresses: the names of hosts in clusters and containers often resolve to something else
        rdzv_configs={"timeout": JOIN_SECONDS, "is_host": hosts == 1 or _is_here(host)},
        max_restarts=MAX_RESTARTS,
        monitor_interval=1.0,
        local_addr="127.0.0.1" if hosts == 1 else _own_address(host, port),
    )


def _train(
    failure: Path, paths: Sequence[Path], options: Mapping[str, Any], device: str, tracking_uri: str | None
) -> TrainingResult | None:
    """Train in one of the processes, and write a typed error to a file: it is not retried."""
    rank = os.environ["RANK"]
    log.set_up(level=logging.INFO if rank == "0" else logging.WARNING)
    if failure.is_file():
        sys.exit(BAD_INPUT)
    try:
        return _train_together(paths, options, device, tracking_uri)
    except Exception as error:
        if (cause := find_cause(error)) is not None:
            write_atomically(failure, str(cause))
            sys.exit(BAD_INPUT)
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            logger.warning("process %s lost contact with the others", rank)
            sys.exit(LOST)
        logger.exception("process %s failed", rank)
        raise


def _train_together(
    paths: Sequence[Path], options: Mapping[str, Any], device: str, tracking_uri: str | None
) -> TrainingResult | None:
    own = resolve_device(device)
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    join_processes(own)
    resume = options.get("resume", False) or was_restarted()
    with ExitStack() as stack:  # the first process owns the output folder until the run is trained

        def prepare() -> PreparedRun | MedunetError:
            try:
                return stack.enter_context(prepare_run(*paths, **{**options, "resume": resume}))
            except Exception as error:
                if (cause := find_cause(error)) is None:
                    raise
                return cause

        # every process gets the error, so that none waits for the first
        run = from_first(prepare, patience=PREPARATION)
        if isinstance(run, MedunetError):
            raise run
        result = train_run(run, resume=resume, device=own, tracking_uri=tracking_uri, overlays=[OVERLAY])
    leave_processes()
    return result if os.environ["RANK"] == "0" else None


@contextmanager
def _environment(config: LaunchConfig) -> Iterator[None]:
    """Set variables that the processes inherit, unless the user has set them, and silence the launcher."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    values = {"OMP_NUM_THREADS": str(max(1, cores // config.nproc_per_node))}
    values["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else restarted processes find addresses of killed ones
    for name, addresses in psutil.net_if_addrs().items() if config.max_nodes > 1 else ():
        if any(entry.address == config.local_addr for entry in addresses):
            values |= {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    elastic = logging.getLogger("torch.distributed.elastic")
    level = elastic.level
    elastic.setLevel(logging.CRITICAL)  # our error says the same in one line
    try:
        with default_variables(values):
            yield
    finally:
        elastic.setLevel(level)


def _is_here(host: str) -> bool:
    """Return whether a name or an address is this host's; torch's own check misses addresses behind 127.0.1.1."""
    if host.lower() in {socket.gethostname().lower(), socket.getfqdn().lower()}:
        return True
    own = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    with contextlib.suppress(OSError):
        addresses = [str(address[0]) for *_, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)]
        return any(address in own or ipaddress.ip_address(address).is_loopback for address in addresses)
    return False


def _own_address(host: str, port: int) -> str:
    """Return this host's address for the others: that of the interface towards the endpoint, or of the default route.

    Debian and Ubuntu give a host's own name the address 127.0.1.1, which the other hosts would resolve to themselves.
    """
    for target in (host, ELSEWHERE):
        with contextlib.suppress(OSError):
            family, kind, protocol, _, address = socket.getaddrinfo(target, port, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)  # sends nothing
                own = str(probe.getsockname()[0])
            if not ipaddress.ip_address(own.partition("%")[0]).is_loopback:
                return own
    cause = "--rdzv-endpoint cannot be reached from this host, or is a loopback address"
    raise ConfigError(cause, received=f"{host}:{port}", remedy="use the IP address of one of the hosts")
