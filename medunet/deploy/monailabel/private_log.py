"""The server's log without names of images: a file's name may be a patient's."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import threading
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

from medunet.errors import MedunetError
from medunet.io import split_suffix

ID_PARAMETERS = frozenset({"image", "label", "id"})
"""Query parameters of MONAI Label that name an image."""

SHORT = 6
"""A name of fewer characters is hidden where it stands as a word only: `ct` is a part of many others."""

CODE_DIGITS = 8
_CODE = re.compile(rf"image-[0-9a-f]{{{CODE_DIGITS}}}")

UID = re.compile(r"(?<![\d.])[0-2](?:\.(?:0|[1-9]\d*)){5,}(?![\d.]*\d)")
"""DICOM's identifiers of studies and series, which lead to the patient. Addresses and versions have fewer parts."""

SPEAKING = (MedunetError, OSError, MemoryError, ImportError)
"""Errors whose words go into the log, with names of images masked."""

_SPELLINGS: tuple[Callable[[str], str], ...] = (
    str,
    quote,
    lambda name: quote(name, safe=""),
    lambda name: re.sub(r"[^A-Za-z0-9._-]+", "_", name),  # of a case in a data set
    lambda name: ascii(name)[1:-1],  # in JSON and in what Python prints
)


_IMAGE_ENDING = r"(?=\.(?:nii|nrrd|nhdr|mha|mhd|dcm|png|jpe?g|tiff?|bmp|zip)\b)"
_IMAGE_FILE = re.compile(
    # after a separator a name may hold spaces; elsewhere they end it
    rf"(?:(?<=[/\\'\"=])[^/\\'\"=\n]+?|[^\s/\\'\"=]+?){_IMAGE_ENDING}",
    re.IGNORECASE,
)
_UPLOAD = re.compile(r"""filename=(['"])(.+?)\1""")


class PrivateNames:
    """Names that a log must not hold, and what it holds in their place.

    A name has the same code in each process and after a restart of the server, by a key that stays in its work folder,
    so that lines can be told apart and nobody can try names out on a log that was handed on.

    Args:
        key: of any length, secret.

    Example:
        >>> names = PrivateNames(b"key")
        >>> names.hide("Doe^Jane")
        >>> line = names.mask("Infer Request: {'image': 'Doe^Jane'}")
        >>> "Doe" in line, line == names.mask(line), names.mask("127.0.0.1, torch 2.13.0")
        (False, True, '127.0.0.1, torch 2.13.0')
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._codes: dict[str, str] = {}
        self._lengths: set[int] = set()
        self._lock = threading.Lock()

    def hide(self, *names: str) -> None:
        """Hide names from now on; of files with and without their endings, and as they stand in URLs and data sets."""
        for name in set(names).difference(self._codes):
            stem = split_suffix(name)[0]
            code = self.code(stem)
            spelt = {way(one) for one in (name, stem) for way in _SPELLINGS}
            with self._lock:
                for text in spelt:
                    if text.strip("._- "):
                        self._codes[text] = code
                        self._lengths.add(len(text))

    def code(self, name: str) -> str:
        """What stands for a name; a code stands for itself."""
        if _CODE.fullmatch(name):
            return name
        digest = hmac.new(self._key, name.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()
        return f"image-{digest[:CODE_DIGITS]}"

    def mask(self, text: str) -> str:
        """A text without the names, without any name of an image file or an upload, and without DICOM's identifiers."""
        self.hide(*(re.split(r"[/\\]", match[2])[-1] for match in _UPLOAD.finditer(text)))
        for name in sorted(self._found_in(text), key=len, reverse=True):  # the longer first: it may hold the shorter
            if len(name) >= SHORT:
                text = text.replace(name, self._codes[name])
            else:
                text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", self._codes[name], text)
        for pattern in (UID, _IMAGE_FILE):
            text = pattern.sub(lambda match: self.code(match[0]), text)
        return text

    def _found_in(self, text: str) -> set[str]:
        """By all parts of the text that are as long as some name, for there may be many thousands of names."""
        with self._lock:
            parts = (text[place : place + length] for length in self._lengths for place in range(len(text)))
            return {part for part in parts if part in self._codes}


def mask_log(names: PrivateNames) -> Callable[[], None]:
    """Let every record of this process, whoever writes it, go through :meth:`PrivateNames.mask`, its traceback too.

    By the factory of records, since MONAI Label, uvicorn and DICOMweb's client set handlers of their own.

    Returns:
        What ends it.
    """
    before = logging.getLogRecordFactory()

    def make(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = before(*arguments, **options)
        try:
            text = record.getMessage()
        except Exception:  # a record that logging itself could not write
            text = f"{record.msg} {record.args}"
        record.msg, record.args = names.mask(text), ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = names.mask(describe_error(record.exc_info[1]))
        return record

    logging.setLogRecordFactory(make)
    return lambda: logging.setLogRecordFactory(before)


def describe_error(error: BaseException | None) -> str:
    """A traceback in which only errors that quote no image speak: a decoder's may hold what stands in a header.

    Args:
        error: with those that it came from.

    Example:
        >>> try:
        ...     raise ValueError("invalid value 'Doe^Jane'")
        ... except ValueError as error:
        ...     describe_error(error).splitlines()[-1]
        'ValueError'
    """
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        frames = "".join(traceback.extract_tb(error.__traceback__).format())
        words = f": {error}" if isinstance(error, SPEAKING) or _is_torchs(error) else ""
        parts.append(f"Traceback (most recent call last):\n{frames}{type(error).__qualname__}{words}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\nand so, or meanwhile:\n\n".join(reversed(parts))


def _is_torchs(error: BaseException) -> bool:
    """Whether it was raised in PyTorch, which knows nothing but tensors."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and "torch" in Path(frames[-1].filename).parts


class HiddenImages:
    """ASGI middleware that hides what a request calls its image or label, before anybody logs it.

    Args:
        app: the application.
        names: takes them.
    """

    def __init__(self, app: Callable[..., Any], names: PrivateNames) -> None:
        self.app = app
        self.names = names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on."""
        if scope["type"] == "http":
            self.names.hide(*named_images(scope["query_string"].decode("latin-1")))
        await self.app(scope, receive, send)


def named_images(query: str) -> Iterable[str]:
    """Names of images in a query.

    Example:
        >>> list(named_images("image=Doe%5EJane&output=json"))
        ['Doe^Jane']
    """
    return (value for key, value in parse_qsl(query) if key in ID_PARAMETERS)
