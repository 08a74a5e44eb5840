"""Series of a DICOMweb store: queried by QIDO-RS, fetched by WADO-RS, results stored by STOW-RS (DICOM PS3.18)."""

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

TOKEN_VARIABLE = "MEDUNET_DICOMWEB_TOKEN"  # a bearer token; without one, user and password come from ~/.netrc

# others are segmentations, contours, reports and the like
IMAGE_MODALITIES = ("CT", "MR", "PT", "US", "CR", "DX", "MG", "NM", "XA", "SM", "OP")

PAGE = 100  # series per query
SECONDS = 120.0  # timeout of an answer
CHUNK = 1 << 20  # bytes of an answer that are in memory

_STUDY, _SERIES, _MODALITY = "0020000D", "0020000E", "00080060"


@dataclass(frozen=True)
class RemoteSeries:
    """A series in a store."""

    store: str  # its address
    study: str  # StudyInstanceUID
    series: str  # SeriesInstanceUID
    send_back: bool = False  # whether a DICOM result is stored there

    @property
    def name(self) -> str:
        """Name of the result."""
        return self.series

    @property
    def url(self) -> str:
        """Address of the series."""
        return f"{self.store}/studies/{quote(self.study, safe='')}/series/{quote(self.series, safe='')}"


class DicomWebStore:
    """A client of a DICOMweb store. A bearer token is read from ``MEDUNET_DICOMWEB_TOKEN``.

    Args:
        url: root of the store, such as ``http://host:8042/dicom-web``.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._session = requests.Session()
        if token := os.environ.get(TOKEN_VARIABLE):
            self._session.headers["Authorization"] = f"Bearer {token}"

    def series(self, query: Mapping[str, str] | None = None, *, send_back: bool = False) -> Iterator[RemoteSeries]:
        """Yield the series of images that match.

        Args:
            query: attributes by keyword, such as ``{"StudyInstanceUID": "1.2", "Modality": "CT"}``.
            send_back: store a DICOM result in the same store.

        Raises:
            DataError: no answer, or one that cannot be read.
        """
        offset, seen = 0, set()
        while True:
            parameters = {**(query or {}), "limit": str(PAGE), "offset": str(offset)}
            answer = self._ask("GET", "series", headers={"Accept": "application/dicom+json"}, params=parameters)
            try:
                entries = [] if answer.status_code == requests.codes.no_content else list(answer.json())
            except (ValueError, TypeError) as error:
                raise DataError("the DICOMweb store must answer with a JSON list", file=self.url) from error
            new = [entry for entry in entries if _value(entry, _SERIES) not in seen]
            for entry in new:
                seen.add(_value(entry, _SERIES))
                if _value(entry, _MODALITY) in ("", *IMAGE_MODALITIES):
                    yield RemoteSeries(self.url, _value(entry, _STUDY), _value(entry, _SERIES), send_back)
            # a store may return less than a page; one that ignores the offset would return the first page forever
            if not new:
                return
            offset += len(entries)

    def fetch(self, series: RemoteSeries, folder: Path) -> Path:
        """Write the files of a series into a folder, numbered; only one of them is in memory at a time.

        Raises:
            DataError: no answer, an incomplete one, or one without files.
            OSError: the disk is full.
        """
        path = series.url.removeprefix(f"{series.store}/")
        headers = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
        folder.mkdir(parents=True, exist_ok=True)
        count = 0
        with self._ask("GET", path, headers=headers, stream=True) as answer, tempfile.TemporaryFile(dir=folder) as file:
            try:
                for chunk in answer.iter_content(CHUNK):
                    file.write(chunk)
            except requests.RequestException as error:
                raise self._failure(path, error) from error
            file.flush()
            if file.tell():
                with closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as body:
                    for count, part in enumerate(parts_of(body, answer.headers.get("Content-Type", "")), start=1):
                        (folder / f"{count:06d}.dcm").write_bytes(part)
        if not count:
            raise DataError("the store returned no files", file=f"{self.url}/{path}")
        return folder

    def store(self, file: Path) -> None:
        """Send a DICOM file to the store; raise a DataError if the store rejects it."""
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = head + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        self._ask("POST", "studies", headers={"Content-Type": kind, "Accept": "application/dicom+json"}, data=body)

    def _ask(self, method: str, path: str, **options: Any) -> requests.Response:
        try:
            answer = self._session.request(method, f"{self.url}/{path}", timeout=SECONDS, **options)
            answer.raise_for_status()
        except requests.RequestException as error:
            raise self._failure(path, error) from error
        return answer

    def _failure(self, path: str, error: Exception) -> DataError:
        cause, received = "the DICOMweb store does not answer as it should", " ".join(str(error).split())[:200]
        return DataError(cause, file=f"{self.url}/{path}", received=received)


def parts_of(body: bytes | mmap.mmap, content_type: str) -> Iterator[bytes]:
    r"""Yield the parts of a multipart response, without their headers.

    Examples:
        >>> body = b"--x\r\nContent-Type: a/b\r\n\r\none\r\n--x\r\n\r\ntwo\r\n--x--"
        >>> list(parts_of(body, "multipart/related; boundary=x"))
        [b'one', b'two']
    """
    words = (word.strip().partition("=") for word in content_type.split(";"))
    boundary = next((value.strip('"') for key, _, value in words if key.lower() == "boundary"), "")
    if not boundary:
        return
    # a boundary begins a line, so pixels that contain its letters by chance do not end a part
    between = f"\r\n--{boundary}".encode()
    start = -2 if body[: len(between) - 2] == between[2:] else body.find(between)
    while start != -1 and body[start + len(between) : start + len(between) + 2] != b"--":
        end = body.find(between, start + len(between))
        stop = len(body) if end == -1 else end
        blank = body.find(b"\r\n\r\n", start + len(between), stop)
        if blank != -1:
            yield body[blank + 4 : stop]
        start = end


def _value(entry: Mapping[str, Any], tag: str) -> str:
    values = entry.get(tag, {}).get("Value") or [""]
    return str(values[0])
