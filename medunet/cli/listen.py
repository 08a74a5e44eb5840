"""`medunet listen`."""

import contextlib
import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from medunet.cli import options as opt
from medunet.cli.registry import examples
from medunet.config import parse_settings
from medunet.errors import ConfigError
from medunet.files import check_target, require_path
from medunet.resources import find_bundle

STORE_HELP = "Folder in which DICOM files arrive; it is searched with its subfolders, and not changed."
SEND_HELP = "DICOM node that gets the results, which are then deleted here. Default: they stay in the folder."
SETTLE = opt.duration("A study is complete when nothing arrived for so long.", default="30s")


def parse_node(text: str) -> tuple[str, str, int]:
    """Return title, host and port of a DICOM node; raise `ConfigError` for another text."""
    match = re.fullmatch(r"([^@\s\\]{1,16})@([^@\s]+):(\d{1,5})", text)
    if match is None or not 0 < int(match[3]) < 1 << 16:
        raise ConfigError("invalid DICOM node", received=text, expected="TITLE@HOST:PORT")
    return match[1], match[2], int(match[3])


NODE = typer.Option(metavar="TITLE@HOST:PORT", help=SEND_HELP, parser=opt.parsed_by(parse_node))


@examples(
    "medunet listen runs/mine --dicom-port 11112 --output service --send-to ORTHANC@127.0.0.1:4242",
    "medunet listen runs/mine --store EXPORTS --output service --modality CT --settle 2min",
)
def listen(
    bundle: opt.Trained,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for waiting studies, results and the ledger.")],
    store: Annotated[Path | None, typer.Option(help=STORE_HELP)] = None,
    dicom_port: Annotated[int | None, typer.Option(min=1, max=65535, help="TCP port to receive studies on.")] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to bind; others need --allow.")] = "127.0.0.1",
    allow: Annotated[
        list[str] | None, typer.Option(metavar="TITLE", help="AE title that may send; repeatable.")
    ] = None,
    send_to: Annotated[Any, NODE] = None,
    modality: Annotated[
        str | None, typer.Option(help="Modality of the series to segment. Default: all images.")
    ] = None,
    settle: Annotated[float, SETTLE] = 30.0,
    device: opt.Device = "auto",
    settings: opt.Set = None,
    trust: opt.Trust = False,
) -> None:
    """Segment and measure every study that arrives, until Ctrl-C; results are DICOM SEG and SR.

    Each study is one line, without identity. A series is segmented once; rerunning the command continues.
    """
    if (store is None) == (dicom_port is None):
        raise ConfigError("listen needs either --store DIR or --dicom-port N")
    overrides, folder = parse_settings(settings), find_bundle(bundle)
    require_path(store)
    if store is not None and output.resolve().is_relative_to(store.resolve()):
        raise ConfigError("--output must not be in the folder that is watched", received=output)
    if host not in ("127.0.0.1", "::1", "localhost") and not allow:
        raise ConfigError("an address that other machines can reach needs --allow TITLE", received=host)
    check_target(output)
    from medunet.deploy.listen import Listener
    from medunet.prediction import PredictOptions

    options = PredictOptions(device=device, overrides=overrides, trust=trust)
    address = None if dicom_port is None else (host, dicom_port)
    listener = Listener(folder, output, options, store, address, allow or (), send_to, modality, settle)
    with contextlib.closing(listener):
        place = f"in {store}" if store else f"on {host}:{dicom_port}"
        opt.plain_console(stderr=True).print(f"waiting for studies {place}")
        while True:
            if (line := listener.step()) is None:
                time.sleep(1)
            else:
                typer.echo(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")
