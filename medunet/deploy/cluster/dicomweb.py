"""Studies from a DICOMweb store: found by QIDO-RS, fetched by WADO-RS, results stored by STOW-RS (DICOM PS3.18)."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
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
        """Write the files of a series into a folder, numbered.

        Raises:
            DataError: no answer, or none that holds files.
        """
        path = f"studies/{quote(series.study, safe='')}/series/{quote(series.series, safe='')}"
        answer = self._get(path, 'multipart/related; type="application/dicom"; transfer-syntax=*')
        parts = list(parts_of(answer.content, answer.headers.get("Content-Type", "")))
        if not parts:
            raise DataError("the store gave no files", file=f"{self.url}/{path}")
        folder.mkdir(parents=True, exist_ok=True)
        for number, part in enumerate(parts):
            (folder / f"{number:06d}.dcm").write_bytes(part)
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

    def _get(self, path: str, accept: str, parameters: Mapping[str, str] | None = None) -> requests.Response:
        return self._ask("GET", path, headers={"Accept": accept}, params=dict(parameters or {}))

    def _ask(self, method: str, path: str, **options: Any) -> requests.Response:
        place = f"{self.url}/{path}"
        try:
            answer = self._session.request(method, place, timeout=SECONDS, **options)
            answer.raise_for_status()
        except requests.RequestException as error:
            raise DataError(
                "the DICOMweb store does not answer as it should",
                file=place,
                received=" ".join(str(error).split())[:200],
                remedy=f"look at its address; a token is taken from {TOKEN_VARIABLE}",
            ) from error
        return answer

    def _json(self, answer: requests.Response) -> list[dict[str, Any]]:
        try:
            content = answer.json()
        except ValueError as error:
            raise DataError("the DICOMweb store gave no JSON", file=self.url) from error
        if not isinstance(content, list):
            raise DataError("the DICOMweb store gave no list", file=self.url)
        return content


def parts_of(body: bytes, content_type: str) -> Iterator[bytes]:
    r"""The parts of a multipart answer, without their headers.

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
    for part in (b"\r\n" + body).split(f"\r\n--{boundary}".encode())[1:]:
        if part.startswith(b"--"):
            return
        _, blank, content = part.partition(b"\r\n\r\n")
        if blank:
            yield content


def _value(entry: Mapping[str, Any], tag: str) -> str:
    values = entry.get(tag, {}).get("Value") or [""]
    return str(values[0])
