"""The server's log contains no names of patients."""

import logging
from collections.abc import Iterator

import pytest
import torch

from medunet.deploy.monailabel.private_log import PrivateNames, mask_log
from medunet.errors import DataError

KEY = b"0123456789abcdef"
UID = "1.2.826.0.1.3680043.8.498.12345678901234567890"


@pytest.fixture
def names() -> Iterator[PrivateNames]:
    before = logging.getLogRecordFactory()
    names = PrivateNames(KEY)
    mask_log(names)
    yield names
    logging.setLogRecordFactory(before)


@pytest.mark.parametrize(
    ("hidden", "line"),
    [
        (True, "Infer Request: {'model': 'organs', 'image': 'Mustermann Max'}"),
        (True, "Adding New Image: Mustermann Max => Mustermann Max.nii.gz"),
        (True, "PUT /datastore/label?image=Mustermann%20Max&tag=final"),
        (True, "validating Mustermann_Max"),
        (True, f"series {UID} and /dicom/{UID}/1.dcm"),
        (False, "{'image': '/sessions/17/Mustermann Max.nrrd'}"),
        (False, "UploadFile(filename='Mustermann Max', size=3) => Mustermann Max"),
        (False, 'form-data; name="file"; filename="C:\\ward\\Mustermann Max.png"'),
        (False, "Mustermann.dcm is broken"),
    ],
)
def test_hidden_names_identifiers_files_and_uploads_are_masked(hidden: bool, line: str) -> None:
    names = PrivateNames(KEY)
    if hidden:
        names.hide("Mustermann Max.nii.gz")
    masked = names.mask(line)
    assert "Mustermann" not in masked
    assert UID not in masked
    assert "image-" in masked
    assert names.mask(masked) == masked


def test_a_name_has_one_code_per_key_in_all_spellings_and_processes() -> None:
    one, other, foreign = PrivateNames(KEY), PrivateNames(KEY), PrivateNames(b"another")
    for names in (one, other, foreign):
        names.hide("Müller^Eva.nrrd")
    line = "Müller^Eva, M%C3%BCller%5EEva, M\\xfcller^Eva.nrrd"
    assert one.mask(line) == other.mask(line)
    assert len(set(one.mask(line).split(", "))) == 1
    assert one.mask(line) != foreign.mask(line)


def test_short_names_are_only_masked_as_words_and_addresses_and_versions_are_not_masked() -> None:
    names = PrivateNames(KEY)
    names.hide("ct", "7", "..", "")
    line = "http://127.0.0.1:8000, 10.11.12.13, torch 2.13.0, 2026.11.21, 3.14 s"
    expected = f"act on {names.code('ct')}.nii.gz, 17 of {names.code('7')}, ../x, {line}"
    assert names.mask(f"act on ct.nii.gz, 17 of 7, ../x, {line}") == expected


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
        logging.getLogger("other").info("%d", "Mustermann")
    assert len(caplog.records) == 3
    assert "Mustermann" not in caplog.text
    assert "OSError" in caplog.text
    assert caplog.text.count(names.code("Mustermann")) == 6  # one in the line of the source that Python shows


def test_messages_of_errors_that_may_quote_a_header_are_left_out(
    names: PrivateNames, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        try:
            int("Mustermann^Eva".lower())
        except ValueError as error:
            raise DataError("cannot be read", file="a.dcm") from error
    except DataError as error:
        error.__cause__.__cause__ = error  # type: ignore[union-attr] # errors may be the cause of each other
        logging.getLogger("medunet").exception("unexpected error")
    try:
        torch.zeros(2) @ torch.zeros(3)
    except RuntimeError:
        logging.getLogger("medunet").exception("unexpected error")
    assert "mustermann" not in caplog.text
    for text in ("cannot be read", "ValueError", "RuntimeError"):
        assert text in caplog.text
