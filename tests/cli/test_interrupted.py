"""What a user reads when a long command ends early."""

import os
import subprocess
import sys

import pytest
from ignite.engine import Engine

from medunet import log
from medunet.cli.options import EXIT_INTERRUPTED
from medunet.errors import DataError

SIGTERM_IN_A_PROCESS_WITH_A_WORKER = """
import os, signal, sys, time
from medunet.cli.app import app, main
from medunet.cli.registry import add

def train() -> None:
    ready, begin = os.pipe()
    worker = os.fork()
    if worker:
        os.read(ready, 1)
        os.kill(worker, signal.SIGTERM)
        assert os.waitpid(worker, 0)[1] == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
    os.write(begin, b".")
    time.sleep(60)

add(app, train)
sys.argv = ["medunet", "train"]
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="there are no such signals")
def test_sigterm_prints_how_to_resume_and_ends_the_command_like_ctrl_c() -> None:
    words = [sys.executable, "-c", SIGTERM_IN_A_PROCESS_WITH_A_WORKER]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == "interrupted: add --resume to the same command to continue from the last completed epoch\n"
    assert done.returncode == EXIT_INTERRUPTED


def test_an_error_within_an_engine_is_not_logged_before_it_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise DataError("no voxel is labelled")

    monkeypatch.delenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", raising=False)
    log.set_up()
    with pytest.raises(DataError):
        Engine(fail).run([0])
    assert not caplog.records
    assert os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] == "false"
