"""Results that identify no patient: pseudonyms for names, and DICOM by the basic profile of PS3.15.

The profile (PS3.15, annex E, table E.1-1) is followed as far as it concerns what medunet writes: its DICOM objects are
new and copy little from the source (`references.LINKS`). Voxels are labels, so there is nothing to blank.
"""

import hmac
import os
import secrets
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from medunet.errors import DataError, MedunetError
from medunet.io.limits import open_for_reading
from medunet.io.names import output_name

from .references import code_item

SHORTEST_KEY = 16  # bytes; whoever guesses the key can try out names
CODE_DIGITS = 16  # hexadecimal digits of a keyed pseudonym: 64 bits, so that a million names hardly ever collide
METHOD = "medunet: PS3.15 Basic Application Confidentiality Profile"  # DeidentificationMethod, at most 64 characters

_STANDARD_UIDS = "1.2.840.10008."  # classes, syntaxes and code lists of the standard itself identify nobody
# Dates and times that are required: those that may be empty (type 2), and dummies for the others (type 1).
_DATES = dict.fromkeys(["PatientBirthDate", "StudyDate", "StudyTime", "StructureSetDate", "StructureSetTime"], "")
_DATES |= {"ContentDate": "19000101", "ContentTime": "000000"}
_CLEARED = ("PatientSex", "StudyID", "AccessionNumber", "ReferringPhysicianName")

Error = TypeVar("Error", bound=MedunetError)
PathLike = str | os.PathLike[str]


class Pseudonyms:
    """Names for cases, patients and UIDs that can be traced back only with the key or the table.

    Args:
        key: with a key, equal inputs get equal names in every call and on every machine. Without one, cases are
            numbered in their order, and UIDs agree within this object only.

    Raises:
        DataError: a key that is too short.

    Examples:
        >>> numbered = Pseudonyms()
        >>> numbered.code("in/Smith_John.nii.gz"), numbered.code("in/b.nii.gz"), numbered.code("in/Smith_John.nii.gz")
        ('case_0001', 'case_0002', 'case_0001')
        >>> Pseudonyms(b"0123456789abcdef").code("in/Smith_John.nii.gz")
        'case_30396b8cb4eacf8e'
    """

    def __init__(self, key: bytes | None = None) -> None:
        if key is not None and len(key) < SHORTEST_KEY:
            remedy = "make one, for instance by `head -c 32 /dev/urandom > FILE`"
            cause = f"key of pseudonyms must have {SHORTEST_KEY} bytes or more"
            raise DataError(cause, received=len(key), remedy=remedy)
        self._is_keyed = key is not None
        self._key = secrets.token_bytes(32) if key is None else key
        self._codes: dict[str, str] = {}
        self._lock = threading.Lock()

    @classmethod
    def from_file(cls, path: Path | None) -> "Pseudonyms":
        """Create pseudonyms with the key in a file, or without a key; a file that cannot be read is a DataError."""
        if path is None:
            return cls()
        with open_for_reading(path) as file:
            return cls(file.read())

    def code(self, source: PathLike | Sequence[PathLike]) -> str:
        """Return the name of a case, for its files, log lines and errors."""
        first = source if isinstance(source, str | os.PathLike) else source[0]
        place = os.path.abspath(first)  # noqa: PTH100 (keeps links)
        with self._lock:
            if place not in self._codes:
                digits = self._digest("case", output_name([first]))[:CODE_DIGITS]
                self._codes[place] = f"case_{digits}" if self._is_keyed else f"case_{len(self._codes) + 1:04d}"
            return self._codes[place]

    def patient(self, identifier: str) -> str:
        """Return a patient's new name and identifier."""
        return f"patient_{self._digest('patient', identifier)[:CODE_DIGITS]}"

    def uid(self, uid: str) -> str:
        """Return a new UID for a hospital's UID. Equal UIDs stay equal, and those of the standard are unchanged."""
        if not uid or uid.startswith(_STANDARD_UIDS):
            return uid
        return f"2.25.{uuid.UUID(hex=self._digest('uid', uid)[:32], version=4).int}"

    def table(self) -> list[tuple[str, str]]:
        """Return each case's name and its original path, in their order."""
        return [(code, place) for place, code in self._codes.items()]

    def hide(self, error: Error, source: PathLike | Sequence[PathLike]) -> Error:
        """Return the same error with the case's new name in place of its file, and without received values."""
        paths = [source] if isinstance(source, str | os.PathLike) else list(source)
        code, cause, remedy = self.code(source), error.cause, error.remedy
        words = {os.fspath(path) for path in paths} | {Path(path).name for path in paths} | {output_name(paths)}
        for word in sorted(filter(None, words), key=len, reverse=True):
            cause, remedy = cause.replace(word, code), remedy and remedy.replace(word, code)
        return type(error)(cause, file=code, remedy=remedy)

    def _digest(self, kind: str, text: str) -> str:
        return hmac.digest(self._key, f"{kind}:{text}".encode(), "sha256").hex()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Pseudonyms":
        """Copies of a transform share the names."""
        return self


def deidentify(dataset: Dataset, names: Pseudonyms) -> None:
    """Remove what identifies a patient from a DICOM SEG or RTSTRUCT of medunet, in place.

    UIDs are mapped, the patient has a pseudonym, and persons, dates and times are emptied or replaced by dummies. The
    data set records this (PatientIdentityRemoved, DeidentificationMethod).
    """
    mapped: set[int] = set()

    def clean(parent: Dataset, element: DataElement) -> None:
        if element.VR == "UI" and element.value:
            if id(element) not in mapped:  # highdicom puts some items into two sequences
                many = not isinstance(element.value, str)
                element.value = [names.uid(uid) for uid in element.value] if many else names.uid(element.value)
            mapped.add(id(element))
        elif element.VR == "PN" or element.keyword in _DATES:
            element.value = _DATES.get(element.keyword, "")
        elif element.VR in ("DA", "DT", "TM"):
            del parent[element.tag]

    patient = names.patient(str(dataset.get("PatientID") or dataset.get("PatientName") or ""))
    dataset.walk(clean)
    dataset.PatientName = dataset.PatientID = patient
    for keyword in _CLEARED:
        setattr(dataset, keyword, "")
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = METHOD
    code = code_item("113100", "DCM", "Basic Application Confidentiality Profile")
    dataset.DeidentificationMethodCodeSequence = [code]
    dataset.LongitudinalTemporalInformationModified = "REMOVED"
