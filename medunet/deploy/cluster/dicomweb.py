"""Studies from a DICOMweb store: found by QIDO-RS, fetched by WADO-RS, results stored by STOW-RS (DICOM PS3.18)."""

from __future__ import annotations

import mmap
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from medunet.errors import DataError

TOKEN_VARIABLE = "MEDUNET_DICOMWEB_TOKEN"
"""Environment variable with a bearer token; without one, user and password are taken from ~/.netrc."""

IMAGE_MODALITIES = ("CT", "MR", "PT", "US", "CR", "DX", "MG", "NM", "XA", "SM", "OP")
"""Modalities of images; others are segmentations, contours, reports and the like."""

PAGE = 100
"""Series that are asked for at once."""

SECONDS = 120.0
"""A store that says nothing for so long does not answer."""

CHUNK = 1 << 20
"""Bytes of an answer that are in memory at once."""

_STUDY, _SERIES, _MODALITY = "0020000D", "0020000E", "00080060"


@dataclass(frozen=True)
class RemoteSeries:
    """A series in a store.

    Args:
        store: its address.
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        send_back: whether a DICOM result is stored there.
    """

    store: str
    study: str
    series: str
    send_back: bool = False

    @property
    def name(self) -> str:
        """What the result is called."""
        return self.series


class DicomWebStore:
    """Asks a DICOMweb store.

    Args:
        url: its root, such as ``http://host:8042/dicom-web``.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._session = requests.Session()
        if token := os.environ.get(TOKEN_VARIABLE):
            self._session.headers["Authorization"] = f"Bearer {token}"

    def series(self, query: Mapping[str, str] | None = None, *, send_back: bool = False) -> Iterator[RemoteSeries]:
        """Series of images that match.

        Args:
            query: attributes by keyword, such as ``{"StudyInstanceUID": "1.2", "Modality": "CT"}``.
            send_back: see :class:`RemoteSeries`.

        Raises:
            DataError: no answer, or none that can be read.
        """
        offset, seen = 0, set()
        while True:
            parameters = {**(query or {}), "limit": str(PAGE), "offset": str(offset)}
            answer = self._get("series", "application/dicom+json", parameters)
            entries = [] if answer.status_code == requests.codes.no_content else self._json(answer)
            fresh = [entry for entry in entries if _value(entry, _SERIES) not in seen]
            for entry in fresh:
                seen.add(_value(entry, _SERIES))
                if _value(entry, _MODALITY) in ("", *IMAGE_MODALITIES):
                    yield RemoteSeries(self.url, _value(entry, _STUDY), _value(entry, _SERIES), send_back)
            # a store may give less than a page; one that knows no offset would give the first page for ever
            if not fresh:
                return
            offset += len(entries)

    def fetch(self, series: RemoteSeries, folder: Path) -> Path:
        """Write the files of a series into a folder, numbered; no more than one of them is in memory.

        Raises:
            DataError: no answer, one that breaks off, or one without files.
            OSError: no room for them.
        """
        path = f"studies/{quote(series.study, safe='')}/series/{quote(series.series, safe='')}"
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        with self._get(path, accept, stream=True) as answer, tempfile.TemporaryFile(dir=folder) as file:
            try:
                for chunk in answer.iter_content(CHUNK):
                    file.write(chunk)
            except requests.RequestException as error:
                raise self._failure(path, error) from error
            file.flush()
            if file.tell():
                with closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as body:
                    for part in parts_of(body, answer.headers.get("Content-Type", "")):
                        (folder / f"{number:06d}.dcm").write_bytes(part)
                        number += 1
        if not number:
            raise DataError("the store gave no files", file=f"{self.url}/{path}")
        return folder

    def store(self, file: Path) -> None:
        """Give a DICOM file to the store.

        Raises:
            DataError: it is refused.
        """
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = head + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        self._ask("POST", "studies", headers=headers, data=body)

    def _get(
        self, path: str, accept: str, parameters: Mapping[str, str] | None = None, *, stream: bool = False
    ) -> requests.Response:
        return self._ask("GET", path, headers={"Accept": accept}, params=dict(parameters or {}), stream=stream)

    def _ask(self, method: str, path: str, **options: Any) -> requests.Response:
        try:
            answer = self._session.request(method, f"{self.url}/{path}", timeout=SECONDS, **options)
            answer.raise_for_status()
        except requests.RequestException as error:
            raise self._failure(path, error) from error
        return answer

    def _failure(self, path: str, error: Exception) -> DataError:
        return DataError(
            "the DICOMweb store does not answer as it should",
            file=f"{self.url}/{path}",
            received=" ".join(str(error).split())[:200],
            remedy=f"look at its address; a token is taken from {TOKEN_VARIABLE}",
        )

    def _json(self, answer: requests.Response) -> list[dict[str, Any]]:
        try:
            content = answer.json()
        except ValueError as error:
            raise DataError("the DICOMweb store gave no JSON", file=self.url) from error
        if not isinstance(content, list):
            raise DataError("the DICOMweb store gave no list", file=self.url)
        return content


def parts_of(body: bytes | mmap.mmap, content_type: str) -> Iterator[bytes]:
    r"""The parts of a multipart answer, one after the other, without their headers.

    Example:
        >>> body = b"--x\r\nContent-Type: a/b\r\n\r\none\r\n--x\r\n\r\ntwo\r\n--x--"
        >>> list(parts_of(body, "multipart/related; boundary=x"))
        [b'one', b'two']
    """
    words = (word.strip().partition("=") for word in content_type.split(";"))
    boundary = next((value.strip('"') for key, _, value in words if key.lower() == "boundary"), "")
    if not boundary:
        return
    # a boundary begins a line, so pixels that hold its letters by chance do not end a part
    between = f"\r\n--{boundary}".encode()
    first = between[2:]
    start = len(first) if body[: len(first)] == first else _behind(body, between, 0)
    while start != -1 and body[start : start + 2] != b"--":
        end = body.find(between, start)
        blank = body.find(b"\r\n\r\n", start, len(body) if end == -1 else end)
        if blank != -1:
            yield body[blank + 4 : len(body) if end == -1 else end]
        start = -1 if end == -1 else end + len(between)


def _behind(body: bytes | mmap.mmap, wanted: bytes, start: int) -> int:
    """Where what is wanted ends; -1 where it is missing."""
    found = body.find(wanted, start)
    return -1 if found == -1 else found + len(wanted)


def _value(entry: Mapping[str, Any], tag: str) -> str:
    values = entry.get(tag, {}).get("Value") or [""]
    return str(values[0])
