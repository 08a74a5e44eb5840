"""nginx with the proxy that docs/howto/deploy.md shows, on a free port of the loopback."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from medunet.deploy.monailabel.server import usable_port

NAME = "label.example.org"
GUIDE = Path(__file__).parents[2] / "docs" / "howto" / "deploy.md"
START_SECONDS = 20.0


@dataclass
class Proxy:
    """A running nginx."""

    port: int
    certificate: Path  # its own, self-signed

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"


@contextmanager
def proxied(upstream: str, folder: Path, *, passwords: str | None = None) -> Iterator[Proxy]:
    """Run nginx before the server at `upstream`, configured as in the guide except for addresses and files.

    `passwords` are the lines of nginx' password file; each request needs one of them.
    """
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None or shutil.which("openssl") is None:
        pytest.skip("nginx or openssl is not installed: run bash scripts/test_services.sh")
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = folder / "proxy.pem", folder / "proxy.key"
    names = f"subjectAltName=DNS:{NAME},DNS:localhost"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={NAME}"]
    command = [*words, "-addext", names, "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    port = usable_port()
    changes = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "/etc/ssl/label.pem": str(certificate),
        "/etc/ssl/label.key": str(key),
        "http://127.0.0.1:8000;": f"{upstream};",
    }
    [block] = re.findall(r"```nginx\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    for documented, own in changes.items():
        assert block.count(documented) == 1, f"the guide has {documented!r} {block.count(documented)} times"
        block = block.replace(documented, own)
    if passwords is not None:
        (folder / "passwords").write_text(passwords, encoding="utf-8")
        login = f"auth_basic people; auth_basic_user_file {folder / 'passwords'};"
        block = block.replace("location / {", f"{login}\n    location / {{")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    spools = "\n".join(f"{kind}_temp_path {folder / kind};" for kind in kinds)
    root = "user root;\n" if os.geteuid() == 0 else ""  # its workers must reach the folder of the test
    log = folder / "nginx.log"
    text = f"{root}pid {folder / 'nginx.pid'}; error_log {log} info;\nevents {{}}\n"
    (folder / "nginx.conf").write_text(f"{text}http {{ access_log off;\n{spools}\n{block}}}\n", encoding="utf-8")
    start = [program, "-p", str(folder), "-e", str(log), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    process = subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + START_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(
                    f"nginx does not answer: {log.read_text(encoding='utf-8') if log.is_file() else ''}"[-2000:]
                )
            time.sleep(0.1)
        yield Proxy(port, certificate)
    finally:
        process.terminate()
        process.wait(20)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
