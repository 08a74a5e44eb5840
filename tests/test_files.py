"""Atomic writing: a reader finds the old file or the new one, never a part."""

from __future__ import annotations

from pathlib import Path

import pytest

from medunet.errors import DataError
from medunet.files import atomic_path, write_atomically


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomically(tmp_path / "metrics.json", "old")

    def fail(self: Path, target: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(DataError, match="no space"):
        write_atomically(path, "new")
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]
    assert path.read_text() == "old"


def test_an_error_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.nii.gz") as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_the_temporary_name_keeps_the_ending(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"whole")
    assert (tmp_path / "a.nii.gz").read_bytes() == b"whole"


def test_an_existing_file_can_be_protected(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "first")
    with pytest.raises(DataError, match="exists already"):
        write_atomically(tmp_path / "a", "second", overwrite=False)
    assert (tmp_path / "a").read_text() == "first"
