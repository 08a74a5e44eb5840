"""Replace names of images in the server's log by codes: a file name may be a patient's name."""

import functools
import hashlib
import hmac
import logging
import os
import re
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from medunet.errors import MedunetError
from medunet.io import split_suffix

from .server import LOG_KEY, SETTINGS_VARIABLE

SHORT = 6  # a name of fewer characters is only replaced as a whole word: `ct` is a part of many others
CODE_DIGITS = 8
SAFE_ERRORS = (MedunetError, OSError, MemoryError, ImportError)  # messages of other errors may quote a header

_CODE = re.compile(rf"image-[0-9a-f]{{{CODE_DIGITS}}}")
_UPLOAD = re.compile(r"""filename=(['"])(.+?)\1""")
# DICOM's identifiers of studies and series; addresses and versions have fewer parts
_UID = re.compile(r"(?<![\d.])[0-2](?:\.(?:0|[1-9]\d*)){5,}(?![\d.]*\d)")
_IMAGE_FILE = re.compile(
    r"(?:(?<=[/\\'\"=])[^/\\'\"=\n]+?|[^\s/\\'\"=]+?)"  # a name may contain spaces only after a separator
    r"(?=\.(?:nii|nrrd|nhdr|mha|mhd|dcm|png|jpe?g|tiff?|bmp|zip)\b)",
    re.IGNORECASE,
)
_SPELLINGS: tuple[Callable[[str], str], ...] = (
    str,
    quote,
    lambda name: quote(name, safe=""),
    lambda name: re.sub(r"[^A-Za-z0-9._-]+", "_", name),  # of a case in a data set
    lambda name: ascii(name)[1:-1],  # in JSON and in what Python prints
)


class PrivateNames:
    """Names that a log must not contain, and the codes that replace them. Without the key, no code can be guessed."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._codes: dict[str, str] = {}
        self._lengths: set[int] = set()
        self._lock = threading.Lock()

    def hide(self, *names: str) -> None:
        """Replace names from now on, with and without file suffixes, and as URLs and data sets spell them."""
        for name in set(names).difference(self._codes):
            stem = split_suffix(name)[0]
            code = self.code(stem)
            spellings = {spell(text) for text in (name, stem) for spell in _SPELLINGS}
            with self._lock:
                for text in filter(lambda text: text.strip("._- "), spellings):
                    self._codes[text] = code
                    self._lengths.add(len(text))

    def code(self, name: str) -> str:
        """Return the code of a name; a code is returned unchanged."""
        if _CODE.fullmatch(name):
            return name
        digest = hmac.new(self._key, name.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()
        return f"image-{digest[:CODE_DIGITS]}"

    def mask(self, text: str) -> str:
        """Replace the hidden names, any name of an image file or upload, and DICOM's identifiers in a text."""
        self.hide(*(re.split(r"[/\\]", match[2])[-1] for match in _UPLOAD.finditer(text)))
        with self._lock:  # look up every part of the text that is as long as a name: there may be thousands of names
            parts = (text[start : start + length] for length in self._lengths for start in range(len(text)))
            present = {part for part in parts if part in self._codes}
        for name in sorted(present, key=len, reverse=True):  # a longer name may contain a shorter one
            pattern = re.escape(name) if len(name) >= SHORT else rf"(?<!\w){re.escape(name)}(?!\w)"
            text = re.sub(pattern, self._codes[name], text)
        for form in (_UID, _IMAGE_FILE):
            text = form.sub(lambda match: self.code(match[0]), text)
        return text


def mask_log(names: PrivateNames) -> None:
    """Mask every log record of this process, with its traceback.

    A record factory sees all records, although MONAI Label, uvicorn and the DICOMweb client install their own handlers.
    """
    before = logging.getLogRecordFactory()

    def make(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = before(*arguments, **options)
        try:
            text = record.getMessage()
        except Exception:  # arguments that do not fit the message
            text = f"{record.msg} {record.args}"
        record.msg, record.args = names.mask(text), ()
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = names.mask(describe_error(record.exc_info[1]))
        return record

    logging.setLogRecordFactory(make)


@functools.cache
def server_names() -> PrivateNames:
    """Return the hidden names of a server's process; the first call masks its log."""
    names = PrivateNames(Path(os.environ[SETTINGS_VARIABLE]).with_name(LOG_KEY).read_bytes())
    mask_log(names)
    for module in ("local", "dicom", "utils"):  # log new files before their names can be hidden
        logging.getLogger(f"monailabel.datastore.{module}").setLevel(logging.WARNING)
    return names


def describe_error(error: BaseException | None) -> str:
    """Return the traceback of an error and its causes, without messages that may quote an image's header."""
    parts: dict[int, str] = {}
    while error is not None and id(error) not in parts:  # a typed error may be the cause of its own cause
        frames = traceback.extract_tb(error.__traceback__)
        is_torch = bool(frames) and "torch" in Path(frames[-1].filename).parts  # only knows tensors
        text = f": {error}" if is_torch or isinstance(error, SAFE_ERRORS) else ""
        lines = "".join(frames.format())
        parts[id(error)] = f"Traceback (most recent call last):\n{lines}{type(error).__qualname__}{text}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\nThis error led to the next one:\n\n".join(reversed(parts.values()))
