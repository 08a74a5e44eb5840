"""Commands as a user types them, run in the test's process: a new one needs seconds to import PyTorch."""

import logging
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping

import pytest

from medunet.cli.app import main

Medunet = Callable[..., int]  # type of the fixture `medunet`
Capture = pytest.CaptureFixture[str]


def run_medunet(*words: object) -> int:
    """Run `medunet WORDS` and return the exit code; what it prints is read with `capsys` or `capfd`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["medunet", *map(str, words)])
        with pytest.raises(SystemExit) as info:
            main()
    return int(info.value.code or 0)


def sets(changes: Mapping[str, object]) -> list[str]:
    """Return values by config id as words of a command line."""
    return [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]


def run_monai_bundle(*words: object, **options: object) -> None:
    """Run `python -m monai.bundle WORDS --KEY VALUE ...`; a bundle's `logging.conf` writes to standard output."""
    root = logging.getLogger()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(root, "handlers", list(root.handlers))
        patch.setattr(root, "level", root.level)
        warnings.simplefilter("ignore")  # MONAI and ignite warn about themselves
        patch.setattr(sys, "argv", ["monai.bundle", *map(str, words), *_words(options)])
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=False)


def run_torchrun(*words: object, processes: int, **options: object) -> None:
    """Run `torchrun -m monai.bundle WORDS --KEY VALUE ...` in new processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "monai.bundle", *map(str, words), *_words(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def _words(options: dict[str, object]) -> list[str]:
    return [text for key, value in options.items() for text in (f"--{key}", str(value))]
