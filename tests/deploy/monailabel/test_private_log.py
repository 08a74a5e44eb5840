"""A log that was handed on names no patient."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from medunet.deploy.monailabel.private_log import HiddenImages, PrivateNames, mask_log
from medunet.errors import DataError

KEY = b"0123456789abcdef"
UID = "1.2.826.0.1.3680043.8.498.12345678901234567890"


@pytest.fixture
def names() -> Iterator[PrivateNames]:
    found = PrivateNames(KEY)
    end = mask_log(found)
    yield found
    end()


@pytest.mark.parametrize(
    "line",
    [
        "Infer Request: {'model': 'organs', 'image': 'Mustermann Max'}",
        "Adding New Image: Mustermann Max => Mustermann Max.nii.gz",
        "/studies/Mustermann Max.nii.gz: truncated",
        "PUT /datastore/label?image=Mustermann%20Max&tag=final",
        "validating Mustermann_Max",
        f"series {UID} and /dicom/{UID}/1.dcm",
    ],
)
def test_neither_names_nor_identifiers_are_left(line: str) -> None:
    names = PrivateNames(KEY)
    names.hide("Mustermann Max.nii.gz")
    masked = names.mask(line)
    assert "Mustermann" not in masked
    assert UID not in masked
    assert "image-" in masked
    assert names.mask(masked) == masked


@pytest.mark.parametrize(
    "line",
    [
        "Adding Image: /ward/Mustermann Max.nii.gz",
        "{'image': '/sessions/17/Mustermann Max.nrrd'}",
        "UploadFile(filename='Mustermann Max', size=3) => Mustermann Max",
        'form-data; name="file"; filename="C:\\ward\\Mustermann Max.png"',
        "Mustermann.dcm is broken",
    ],
)
def test_files_and_uploads_of_which_nobody_told_are_not_named(line: str) -> None:
    names = PrivateNames(KEY)
    masked = names.mask(line)
    assert "Mustermann" not in masked
    assert names.mask(masked) == masked


def test_a_name_has_one_code_in_all_spellings_and_processes_and_another_by_another_key() -> None:
    one, other, foreign = PrivateNames(KEY), PrivateNames(KEY), PrivateNames(b"another")
    for names in (one, other, foreign):
        names.hide("Müller^Eva.nrrd")
    line = "Müller^Eva, M%C3%BCller%5EEva, M\\xfcller^Eva.nrrd"
    assert one.mask(line) == other.mask(line)
    assert len(set(one.mask(line).split(", "))) == 1
    assert one.mask(line) != foreign.mask(line)


def test_short_names_are_hidden_as_words_only() -> None:
    names = PrivateNames(KEY)
    names.hide("ct", "7", "..", "")
    assert (
        names.mask("act on ct.nii.gz, 17 of 7, ../x")
        == f"act on {names.code('ct')}.nii.gz, 17 of {names.code('7')}, ../x"
    )


def test_addresses_and_versions_stay() -> None:
    line = "http://127.0.0.1:8000, 10.11.12.13, torch 2.13.0, 2026.11.21, 3.14 s"
    assert PrivateNames(KEY).mask(line) == line


def test_every_logger_is_masked_with_arguments_and_tracebacks(
    names: PrivateNames, caplog: pytest.LogCaptureFixture
) -> None:
    names.hide("Mustermann")
    with caplog.at_level(logging.INFO):
        logging.getLogger("monailabel.interfaces.app").info("New label saved for: %s => %s", "Mustermann", "Mustermann")
        try:
            raise OSError("Mustermann.nii.gz is broken")
        except OSError:
            logging.getLogger("uvicorn.error").exception("Mustermann failed")
        logging.getLogger("somebody").info("%d", "Mustermann")
    assert len(caplog.records) == 3
    assert "Mustermann" not in caplog.text
    assert "OSError" in caplog.text
    assert caplog.text.count(names.code("Mustermann")) == 6  # one in the line of the source that Python shows


def test_an_error_that_quotes_a_header_says_only_where_and_of_which_kind(
    names: PrivateNames, caplog: pytest.LogCaptureFixture
) -> None:
    value = "Mustermann^Eva"

    def decode() -> None:
        raise ValueError(f"invalid value {value!r}")

    try:
        try:
            decode()
        except ValueError as error:
            raise DataError("cannot be read", file="a.dcm") from error
    except DataError:
        logging.getLogger("medunet").exception("unexpected error")
    try:
        torch.zeros(2) @ torch.zeros(3)
    except RuntimeError:
        logging.getLogger("medunet").exception("unexpected error")
    assert "Mustermann" not in caplog.text
    assert "in decode" in caplog.text
    assert "cannot be read" in caplog.text
    assert "ValueError" in caplog.text


def test_thousands_of_names_cost_a_line_little() -> None:
    names = PrivateNames(KEY)
    names.hide(*(f"Patient {number:06d}.nii.gz" for number in range(20_000)))
    line = "Infer Request: {'model': 'organs', 'image': 'Patient 012345', 'device': 'cpu'}"
    assert "012345" not in names.mask(line)
    begun = time.process_time()
    for _ in range(100):
        names.mask(line)
    assert time.process_time() - begun < 0.4  # 4 ms a line; looking for one name after the other took 8


def test_what_a_request_names_is_hidden_before_it_is_answered() -> None:
    names = PrivateNames(KEY)
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(names.mask("saving Doe^Jane"))

    scope = {"type": "http", "query_string": b"image=Doe%5EJane&output=image"}
    asyncio.run(HiddenImages(app, names)(scope, None, None))
    asyncio.run(HiddenImages(app, names)({"type": "lifespan"}, None, None))
    assert seen == [f"saving {names.code('Doe^Jane')}"] * 2
