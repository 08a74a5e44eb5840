"""How a label server is started, and what is refused before it is."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from medunet.deploy.monailabel import LabelEnvironment, LabelServer, ServedBundle
from medunet.deploy.monailabel import environment as environment_module
from medunet.deploy.monailabel.environment import REQUIREMENTS, check_python
from medunet.deploy.monailabel.server import SETTINGS_VARIABLE, TOKEN_VARIABLE, check_port
from medunet.errors import ConfigError, DataError

ROOT = Path(__file__).parents[3]
TOKEN = "a-long-token-of-a-ward"


def server(tmp_path: Path, bundle: Path, **options: object) -> LabelServer:
    (tmp_path / "studies").mkdir(exist_ok=True)
    values: dict[str, object] = {"studies": str(tmp_path / "studies"), **options}
    return LabelServer(
        bundles=(ServedBundle("run", bundle),),
        work=tmp_path / "work",
        environment=LabelEnvironment(tmp_path / "env"),
        **values,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "::", "ward3"])
def test_an_address_that_others_reach_needs_a_token(tmp_path: Path, bundle: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="needs a token"):
        server(tmp_path, bundle, host=host)
    assert server(tmp_path, bundle, host=host, token=TOKEN).host == host


def test_a_short_token_is_refused_and_none_is_shown(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(ConfigError, match="too short"):
        server(tmp_path, bundle, token="secret")
    assert TOKEN not in repr(server(tmp_path, bundle, token=TOKEN))
    assert TOKEN not in " ".join(server(tmp_path, bundle, token=TOKEN).command())


def test_the_server_gets_copies_settings_and_only_this_medunet(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "of somebody else")
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


def test_a_second_start_keeps_what_was_trained(tmp_path: Path, bundle: Path) -> None:
    made = server(tmp_path, bundle)
    made.prepare()
    weights = made.work / "bundles" / "run" / "models" / "model.pt"
    weights.write_bytes(b"trained further")
    made.prepare()
    assert weights.read_bytes() == b"trained further"


def test_studies_must_be_there(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        server(tmp_path, bundle, studies=str(tmp_path / "nowhere"))
    assert server(tmp_path, bundle, studies="http://127.0.0.1:8042/dicom-web").is_remote


def test_a_taken_port_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match="port cannot be used"):
            check_port("127.0.0.1", other.getsockname()[1])


@pytest.mark.parametrize("version", [(3, 9), (3, 13)])
def test_a_python_that_monai_label_does_not_run_on_is_refused(version: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="--python"):
        check_python(version, "python3")


def test_an_environment_that_is_not_set_up_says_how(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="medunet label --setup"):
        LabelEnvironment(tmp_path).check()


def test_an_interrupted_setup_is_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def run(command: list[str]) -> str:
        calls.append(command)
        if "--requirement" in command:
            raise DataError("no connection")
        return "3 11\n"

    monkeypatch.setattr(environment_module, "_run", run)
    made = LabelEnvironment(tmp_path / "env")
    with pytest.raises(DataError, match="no connection"):
        made.make()
    assert not made.is_ready
    torch_first = next(command[-1] for command in calls if "install" in command)
    assert re.fullmatch(r"torch==[\d.]+", torch_first)


def test_the_environment_gets_whatever_medunet_needs() -> None:
    wanted = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert wanted is not None
    names = {name.lower() for name in re.findall(r'^\s*"([A-Za-z0-9_-]+)', wanted.group(1), re.MULTILINE)}
    given = {name.lower() for name in re.findall(r"^([A-Za-z0-9_-]+)", REQUIREMENTS.read_text(), re.MULTILINE)}
    assert names - {"torch"} <= given
