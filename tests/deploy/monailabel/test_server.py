"""How a label server is started, and what is rejected before it starts."""

import json
import os
import re
import shutil
import socket
from pathlib import Path

import pytest

from medunet.deploy.monailabel import LabelEnvironment, LabelServer, ServedBundle
from medunet.deploy.monailabel import environment as environment_module
from medunet.deploy.monailabel.environment import REQUIREMENTS, check_python
from medunet.deploy.monailabel.served import trusted_bundles
from medunet.deploy.monailabel.server import LOG_KEY, SETTINGS_VARIABLE, TOKEN_VARIABLE, usable_port
from medunet.errors import ConfigError, DataError
from medunet.io.isolation import SWITCH as ISOLATE
from medunet.trust import UntrustedBundleError

TOKEN = "a-long-token-of-a-ward"


def server(tmp_path: Path, bundle: Path, **options: object) -> LabelServer:
    (tmp_path / "studies").mkdir(exist_ok=True)
    values: dict[str, object] = {"studies": str(tmp_path / "studies"), **options}
    environment, work = LabelEnvironment(tmp_path / "env"), tmp_path / "work"
    return LabelServer(bundles=(ServedBundle("run", bundle),), work=work, environment=environment, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "ward3"])
def test_a_public_address_needs_a_long_token(tmp_path: Path, bundle: Path, host: str) -> None:
    for token, words in ((None, "needs a token"), ("secret", "at least 16 characters")):
        with pytest.raises(ConfigError, match=words):
            server(tmp_path, bundle, host=host, token=token)
    assert server(tmp_path, bundle, host="::1", port=80).address == "http://[::1]:80"
    made = server(tmp_path, bundle, host=host, token=TOKEN)
    assert TOKEN not in f"{made!r} {made.command()}"


def test_the_server_process_gets_bundle_copies_settings_and_this_package(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "of another server")
    monkeypatch.delenv(ISOLATE, raising=False)
    made = server(tmp_path, bundle)
    made.prepare()
    variables = made.variables()
    assert TOKEN_VARIABLE not in variables
    assert variables["PYTHONPATH"] == str((tmp_path / "env" / "medunet-package").resolve())
    settings = json.loads(Path(variables[SETTINGS_VARIABLE]).read_text(encoding="utf-8"))
    ((name, folder),) = settings["bundles"]
    assert name == "run"
    assert (Path(folder) / "models" / "model.pt").read_bytes() == (bundle / "models" / "model.pt").read_bytes()
    assert Path(folder) != bundle
    key = made.work / "app" / LOG_KEY
    first = key.read_text()
    made.prepare()
    assert key.read_text() == first  # an image keeps its code in the log
    assert key.stat().st_mode & 0o077 == 0
    assert first not in (made.work / "app" / "settings.json").read_text()
    assert variables[ISOLATE] == "1"  # images are decoded in a process of their own
    monkeypatch.setenv(ISOLATE, "0")
    assert made.variables()[ISOLATE] == "0"


def test_a_copy_keeps_its_weights_until_the_bundle_has_new_ones(tmp_path: Path, bundle: Path) -> None:
    source = Path(shutil.copytree(bundle, tmp_path / "run"))

    def weights() -> Path:
        return ServedBundle("run", source).working_copy(tmp_path / "bundles").weights[0]

    weights().write_bytes(b"trained further on corrections")
    assert weights().read_bytes() == b"trained further on corrections"
    (source / "models" / "model.pt").write_bytes(b"trained anew")
    assert weights().read_bytes() == b"trained anew"


def test_an_untrusted_bundle_is_not_served_and_the_servers_process_checks_trust_again(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDUNET_CONFIG_DIR", str(tmp_path / "config"))
    foreign = Path(shutil.copytree(bundle, tmp_path / "foreign"))
    path = foreign / "configs" / "inference.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mine": "$print('executed')"}))
    with pytest.raises(UntrustedBundleError, match="executed"):
        server(tmp_path, foreign).prepare()
    assert not (tmp_path / "work").exists()
    made = server(tmp_path, foreign, trust=True)
    made.prepare()
    settings = made.work / "app" / "settings.json"
    # by --trust itself if nothing could be recorded, and by the record after a restart
    monkeypatch.setenv("MEDUNET_CONFIG_DIR", str(tmp_path / "other"))
    assert [one.name for one in trusted_bundles(settings)] == ["run"]
    server(tmp_path, foreign).prepare()
    assert trusted_bundles(settings)
    # a change of the copy ends the trust
    path = made.work / "bundles" / "run" / "configs" / "inference.json"
    path.write_text(path.read_text().replace("executed", "changed"))
    with pytest.raises(UntrustedBundleError, match="changed"):
        trusted_bundles(settings)


def test_studies_must_exist_and_be_writable_and_the_port_free(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server(tmp_path, bundle, studies="http://127.0.0.1:8042/dicom-web").is_remote
    with pytest.raises(DataError, match="does not exist"):
        server(tmp_path, bundle, studies=str(tmp_path / "nowhere"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write to any folder
    with pytest.raises(DataError, match="cannot be written"):
        server(tmp_path, bundle)
    with socket.socket() as other, pytest.raises(ConfigError, match="port cannot be used"):
        other.bind(("127.0.0.1", 0))
        other.listen()
        usable_port("127.0.0.1", other.getsockname()[1])


def test_an_environment_installs_torch_then_packages_then_monai_label_without_dependencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[list[str]] = []
    failing = "--requirement"

    def run(command: list[str]) -> str:
        if "venv" in command:
            LabelEnvironment(tmp_path).bin.mkdir()
            LabelEnvironment(tmp_path).python.touch()
        if "install" in command:
            installed.append(command[command.index("--disable-pip-version-check") + 1 :])
        if failing in command:
            raise DataError("no connection")
        return "3 11\n"

    monkeypatch.setattr(environment_module, "_run", run)
    made = LabelEnvironment(tmp_path)
    with pytest.raises(ConfigError, match="medunet label setup"):
        made.check()
    for version in ("3 9", "3 13"):
        with pytest.raises(ConfigError, match="does not support this Python"):
            check_python(version, "python3")
    with pytest.raises(DataError, match="no connection"):
        made.make()
    assert not made.is_ready  # an interrupted setup is not complete
    installed.clear()
    failing = "nothing"
    made.make(torch_index="https://index.example.org/cpu")
    assert made.is_ready
    torch, packages, server = installed
    assert torch[:-1] == ["--index-url", "https://index.example.org/cpu"]  # for torch alone
    assert re.fullmatch(r"torch==[\d.]+", torch[-1])
    assert packages == [torch[-1], "--requirement", str(REQUIREMENTS)]
    assert server[0] == "--no-deps"
    assert re.fullmatch(r"monailabel==[\d.]+", server[1])
    made.make()
    assert len(installed) == 3  # a complete environment stays as it is


def test_the_environment_gets_all_dependencies_of_medunet() -> None:
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    wanted = re.findall(r'^ +"([A-Za-z0-9_-]+)', project.partition("\ndependencies = [")[2].partition("\n]")[0], re.M)
    given = re.findall(r"^([A-Za-z0-9_-]+)", REQUIREMENTS.read_text(), re.M)
    assert wanted and {name.lower() for name in wanted} - {"torch"} <= {name.lower() for name in given}
