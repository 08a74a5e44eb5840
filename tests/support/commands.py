"""Commands as a user types them, run in the test's process: a new one needs seconds to import PyTorch."""

from __future__ import annotations

import runpy
import sys
import warnings

import pytest

from medunet.cli.app import main


def run_medunet(*words: object) -> int:
    """Run `medunet WORDS` and return the exit code; what it prints is read with `capsys` or `capfd`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["medunet", *map(str, words)])
        with pytest.raises(SystemExit) as info:
            main()
    return int(info.value.code or 0)


def run_monai_bundle(*words: object, **options: object) -> None:
    """Run `python -m monai.bundle WORDS --KEY VALUE ...`."""
    given = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI and ignite warn about themselves
        patch.setattr(sys, "argv", ["monai.bundle", *map(str, words), *given])
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=False)
