"""Start a MONAI Label server with medunet bundles in its own environment."""

import ipaddress
import json
import os
import secrets
import socket
from dataclasses import dataclass, field
from pathlib import Path

from medunet.errors import ConfigError, DataError
from medunet.files import write_atomically
from medunet.io.isolation import SWITCH as ISOLATE
from medunet.trust import require_trust

from .environment import LabelEnvironment
from .served import ServedBundle

TOKEN_VARIABLE = "MEDUNET_LABEL_TOKEN"  # not an option: every user of the machine can read command lines
SETTINGS_VARIABLE = "MEDUNET_LABEL_SETTINGS"  # path of the JSON file that the server's processes read
LOG_KEY = "log_key"  # file beside the settings: the key of the codes in the log
SHORTEST_TOKEN = 16  # characters
CACHE_SECONDS = 5  # lifetime of a DICOMweb store's list of studies; MONAI Label's two hours hide new studies

# image files of a folder; longer suffixes come before shorter ones
FILE_PATTERNS = ("*.nii.gz", "*.nii", "*.nrrd", "*.mha", "*.png", "*.jpg", "*.jpeg", "*.tif", "*.tiff", "*.bmp")

# Settings of glibc: otherwise each thread returns its large arrays to the system after a request, a fifth of its time.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "536870912"}

APP = '''"""Written by medunet label serve: MONAI Label looks for this file."""

from medunet.deploy.monailabel.app.application import MedunetLabelApp  # noqa: F401
'''


@dataclass(frozen=True)
class LabelServer:
    """Settings of a label server.

    Args:
        bundles: at least one.
        studies: folder of images, or URL of a DICOMweb service.
        work: folder for working copies of the bundles, training runs, uploads and logs.
        environment: MONAI Label's environment.
        host: address to bind.
        port: TCP port.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        token: secret that each request must carry.
        modality: modality of the DICOM series to offer. Default: all images.
        trust: serve bundles that could run their own code, see :func:`medunet.trust.require_trust`.

    Raises:
        ConfigError: missing or short token, or impossible port.
        DataError: the folder of studies is missing or cannot be written.
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
            remedy = f"set {TOKEN_VARIABLE}, for instance to {secrets.token_urlsafe(24)}"
            rule = "a server that other machines can reach needs a token"
            raise ConfigError(rule, received=f"--host {self.host}", remedy=remedy)
        if self.token is not None and len(self.token) < SHORTEST_TOKEN:
            raise ConfigError(f"the token must have at least {SHORTEST_TOKEN} characters", received=len(self.token))
        if not 0 <= self.port < 1 << 16:
            raise ConfigError("port must be in [0, 65535]", received=self.port)
        if self.is_remote:
            return
        if not Path(self.studies).is_dir():
            raise DataError("folder of studies does not exist", file=self.studies)
        if not os.access(self.studies, os.W_OK | os.X_OK):
            remedy = "give this user write access, for labels are stored in it, or give the URL of a DICOMweb store"
            raise DataError("folder of studies cannot be written", file=self.studies, remedy=remedy)

    @property
    def is_remote(self) -> bool:
        """Whether the studies are in a DICOMweb service."""
        return self.studies.startswith(("http://", "https://"))

    @property
    def address(self) -> str:
        """URL for browsers and clients."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def prepare(self) -> None:
        """Check that the bundles are trusted, then write folders, working copies and settings.

        Raises:
            SecurityError: an untrusted bundle; nothing was written.
            DataError: a folder cannot be written.
        """
        for bundle in self.bundles:
            require_trust(bundle.folder, trust=self.trust)
        for name in ("app", "tmp", "sessions", "dicom"):
            try:
                (self.work / name).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(f"cannot be created: {error.strerror or error}", file=self.work / name) from error
        app = self.work / "app"
        write_atomically(app / "main.py", APP)
        copies = [bundle.working_copy(self.work / "bundles") for bundle in self.bundles]
        settings = {
            "bundles": [[copy.name, str(copy.folder.resolve())] for copy in copies],
            "work": str(self.work.resolve()),
            "device": self.device,
            "loopback": is_loopback(self.host),
            "trust": self.trust,
        }
        key = app / LOG_KEY
        if not key.is_file():  # kept across restarts, so that an image has one code in all logs
            write_atomically(key, secrets.token_hex(32))
            key.chmod(0o600)
        write_atomically(app / "settings.json", json.dumps(settings, indent=2))

    def command(self) -> list[str]:
        """Return the command line of the server's process."""
        application = "medunet.deploy.monailabel.app.asgi:app"
        # lines of the access log would have names of patients' series
        options = ["--host", self.host, "--port", str(self.port), "--no-access-log"]
        return [os.fspath(self.environment.python), "-m", "uvicorn", application, *options]

    def variables(self) -> dict[str, str]:
        """Return the environment variables of the server's process, and of those that train and score."""
        work = self.work.resolve()
        own = {
            "PYTHONPATH": os.fspath(self.environment.package_path.resolve()),
            "PATH": os.pathsep.join([os.fspath(self.environment.bin.resolve()), os.environ.get("PATH", "")]),
            "TMPDIR": os.fspath(work / "tmp"),
            SETTINGS_VARIABLE: os.fspath(work / "app" / "settings.json"),
            "MONAI_LABEL_APP_DIR": os.fspath(work / "app"),
            "MONAI_LABEL_STUDIES": self.studies if self.is_remote else os.fspath(Path(self.studies).resolve()),
            "MONAI_LABEL_SERVER_PORT": str(self.port),
            "MONAI_LABEL_SESSION_PATH": os.fspath(work / "sessions"),
            "MONAI_LABEL_DICOMWEB_CACHE_PATH": os.fspath(work / "dicom"),
            "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": str(CACHE_SECONDS),
            "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": json.dumps({"Modality": self.modality} if self.modality else {}),
            "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps(FILE_PATTERNS),
            "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",  # else each next sample starts a process for scoring
            "MPLBACKEND": "agg",
        }
        if os.name == "posix":  # images are decoded in a child process
            own[ISOLATE] = os.environ.get(ISOLATE, "1")
        if self.token is not None:
            own[TOKEN_VARIABLE] = self.token
        inherited = {key: value for key, value in os.environ.items() if key not in (TOKEN_VARIABLE, "PYTHONHOME")}
        return {**MALLOC, **inherited, **own}


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address to bind."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def usable_port(host: str = "127.0.0.1", port: int = 0) -> int:
    """Return a port that can be bound now; 0 chooses a free one.

    Raises:
        ConfigError: the port is in use or not allowed.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"port cannot be used: {error.strerror or error}", received=f"{host}:{port}") from error
        return int(probe.getsockname()[1])
