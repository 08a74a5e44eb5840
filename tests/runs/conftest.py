"""Reports in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, program


class ReportBrowser(Browser):
    """Opens reports; warnings count as errors."""

    def open(self, page: str | Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a file and wait until its viewer, if it has one, shows a case."""
        self.errors, self.requests = [], []
        self.resize(width, height, scale=2, dark=dark)
        super().open(Path(page).resolve().as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")
        self.wait("!document.getElementById('viewer') || document.getElementById('viewer').dataset.case !== undefined")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReportBrowser]:
    with ReportBrowser(program(), tmp_path_factory.mktemp("chromium"), noted=("error", "assert", "warning")) as browser:
        yield browser
