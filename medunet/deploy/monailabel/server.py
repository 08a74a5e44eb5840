"""Starting a MONAI Label server with medunet bundles, in its own environment."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medunet.errors import ConfigError, DataError
from medunet.files import write_atomically
from medunet.trust import require_trust

from .environment import LabelEnvironment
from .guard import is_loopback
from .limits import limit_variables
from .served import ServedBundle

TOKEN_VARIABLE = "MEDUNET_LABEL_TOKEN"
"""By the environment, not by the command line, which every user of the machine can read."""

SETTINGS_VARIABLE = "MEDUNET_LABEL_SETTINGS"
"""Path of the JSON file that tells the server's processes what to serve."""

MALLOC_VARIABLES = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
}
"""For glibc. Many threads answer requests; with a heap for each, large arrays go back to the system after every request
and are taken anew (a fifth of a short request), and what one thread has freed is of no use to the next."""

LOG_KEY = "log_key"
"""File beside the settings: the key of :class:`medunet.deploy.monailabel.private_log.PrivateNames`."""

SHORTEST_TOKEN = 16

FILE_PATTERNS = ("*.nii.gz", "*.nii", "*.nrrd", "*.mha", "*.png", "*.jpg", "*.jpeg", "*.tif", "*.tiff", "*.bmp")
"""Files of a folder that are images; the longer ending before the shorter."""

CACHE_SECONDS = 5
"""For how long a DICOMweb store's list of studies is believed. MONAI Label's two hours hide what is stored or saved."""

APP = '''"""Made by medunet label: what MONAI Label looks for."""

from medunet.deploy.monailabel.app.application import MedunetLabelApp  # noqa: F401
'''


@dataclass(frozen=True)
class LabelServer:
    """What is served to whom.

    Args:
        bundles: at least one.
        studies: a folder of images, or the URL of a DICOMweb service.
        work: folder for working copies of the bundles, trainings, uploads and logs.
        environment: where MONAI Label is installed.
        host: address to bind.
        port: TCP port; 0 takes a free one.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        token: what clients must bear.
        modality: which series of a DICOMweb service are offered; by default all images.
        trust: serve bundles that could run code of their own, see :func:`medunet.trust.require_trust`.

    Raises:
        ConfigError: no token, or a short one, where others than this machine's users could reach the server; a port
            that is none or taken.
        DataError: no such folder of studies, or none that may be written.
    """

    bundles: tuple[ServedBundle, ...]
    studies: str
    work: Path
    environment: LabelEnvironment
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    token: str | None = field(default=None, repr=False)
    modality: str | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and self.token is None:
            raise ConfigError(
                "a server that other machines reach needs a token",
                received=f"--host {self.host}",
                remedy=f"set {TOKEN_VARIABLE}, for instance to {secrets.token_urlsafe(24)}",
            )
        if self.token is not None and len(self.token) < SHORTEST_TOKEN:
            raise ConfigError(
                "the token is too short", received=f"{len(self.token)} characters", expected=f">= {SHORTEST_TOKEN}"
            )
        if not 0 <= self.port < 1 << 16:
            raise ConfigError("no such port", received=self.port, expected="0 to 65535")
        if not self.is_remote and not Path(self.studies).is_dir():
            raise DataError("folder of studies does not exist", file=self.studies, remedy="make it, or give a URL")
        if not self.is_remote and not os.access(self.studies, os.W_OK | os.X_OK):
            raise DataError(
                "folder of studies cannot be written",
                file=self.studies,
                remedy="labels are kept in it: let this user write there, or give the URL of a DICOMweb store",
            )

    @property
    def is_remote(self) -> bool:
        """Whether the studies lie on a DICOMweb service."""
        return self.studies.startswith(("http://", "https://"))

    @property
    def app(self) -> Path:
        """The folder that MONAI Label takes for an app."""
        return self.work / "app"

    @property
    def address(self) -> str:
        """Where browsers and clients find it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def prepare(self) -> None:
        """Judge the bundles; then make the folders, working copies and the file of settings.

        Raises:
            SecurityError: a bundle is not trusted; nothing was made.
            DataError: a folder cannot be written.
        """
        for bundle in self.bundles:
            require_trust(bundle.folder, trust=self.trust)
        for name in ("app/bin", "app/lib", "app/logs", "app/model", "tmp", "sessions", "dicom"):
            try:
                (self.work / name).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(f"cannot be made: {error.strerror or error}", file=self.work / name) from error
        write_atomically(self.app / "main.py", APP)
        copies = [bundle.working_copy(self.work / "bundles") for bundle in self.bundles]
        settings = {
            "bundles": [[copy.name, str(copy.folder.resolve())] for copy in copies],
            "work": str(self.work.resolve()),
            "device": self.device,
            "loopback": is_loopback(self.host),
            "trust": self.trust,
        }
        self._make_log_key()
        write_atomically(self.app / "settings.json", json.dumps(settings, indent=2))

    def _make_log_key(self) -> None:
        """Kept from start to start, so that an image has one code in all logs."""
        path = self.app / LOG_KEY
        if not path.is_file():
            write_atomically(path, secrets.token_hex(32))
            path.chmod(0o600)

    def command(self) -> list[str]:
        """What runs in the environment."""
        return [
            os.fspath(self.environment.python),
            *("-m", "medunet.deploy.monailabel.app"),
            *("--app", os.fspath(self.app.resolve())),
            *("--studies", self.studies if self.is_remote else os.fspath(Path(self.studies).resolve())),
            *("--host", self.host),
            *("--port", str(self.port)),
        ]

    def variables(self) -> dict[str, str]:
        """The environment variables of the server: MONAI Label's settings, and where to find medunet."""
        work = self.work.resolve()
        own = {
            "PYTHONPATH": os.fspath(self.environment.package_path.resolve()),
            "PATH": os.pathsep.join([os.fspath(self.environment.bin.resolve()), os.environ.get("PATH", "")]),
            "TMPDIR": os.fspath(work / "tmp"),
            SETTINGS_VARIABLE: os.fspath(work / "app" / "settings.json"),
            "MONAI_LABEL_SESSION_PATH": os.fspath(work / "sessions"),
            "MONAI_LABEL_DICOMWEB_CACHE_PATH": os.fspath(work / "dicom"),
            "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": str(CACHE_SECONDS),
            "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": json.dumps({"Modality": self.modality} if self.modality else {}),
            "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps(FILE_PATTERNS),
            # a scoring would start a process after every next sample; it is run when somebody asks for it
            "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
            "MPLBACKEND": "agg",
            **limit_variables(),
        }
        if self.token is not None:
            own[TOKEN_VARIABLE] = self.token
        kept = {key: value for key, value in os.environ.items() if key not in (TOKEN_VARIABLE, "PYTHONHOME")}
        return {**MALLOC_VARIABLES, **kept, **own}


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listens on at this moment."""
    with socket.socket() as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """Refuse a port that cannot be bound.

    Raises:
        ConfigError: taken, or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port cannot be used: {error.strerror or error}",
                received=f"{host}:{port}",
                remedy="give another --port",
            ) from error


def describe(bundles: Sequence[ServedBundle]) -> list[str]:
    """A line a bundle, for the command line."""
    return [f"{bundle.name}: {bundle.spatial_dims}D, {', '.join(bundle.labels)}" for bundle in bundles]
