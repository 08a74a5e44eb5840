"""Results that tell of no patient: pseudonyms for names, and DICOM by the basic profile of PS3.15.

The profile (PS3.15, annex E, table E.1-1) is kept as far as it concerns what medunet writes: its DICOM objects are made
anew and take over little from the source (`dicom_source.LINKS`). Voxels are labels, so there is nothing to blank.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from medunet.errors import DataError, MedunetError
from medunet.io.names import output_name

SHORTEST_KEY = 16
"""Bytes; who can guess the key can try out names."""

CODE_DIGITS = 16
"""Hexadecimal digits of a keyed pseudonym: 64 bits, so that a million names hardly ever meet."""

METHOD = "medunet: PS3.15 Basic Application Confidentiality Profile"
"""DeidentificationMethod, at most 64 characters."""

_STANDARD_UIDS = "1.2.840.10008."
"""Classes, syntaxes and code lists of the standard itself: they tell of nobody, and must stay."""

_EMPTIED = frozenset({"PatientBirthDate", "StudyDate", "StudyTime", "StructureSetDate", "StructureSetTime"})
"""Dates and times that must be there and may be empty (type 2)."""

_DUMMIES = {"ContentDate": "19000101", "ContentTime": "000000"}
"""Those that must have a value (type 1); the profile allows a dummy."""

_CLEARED = ("PatientSex", "StudyID", "AccessionNumber", "ReferringPhysicianName")

Error = TypeVar("Error", bound=MedunetError)


class Pseudonyms:
    """Names for cases, patients and UIDs that lead back only with the key or the table.

    Args:
        key: with one, equal inputs get equal names in every call, on every machine that has it; without one cases are
            numbered in their order, and UIDs agree within this object only.

    Raises:
        DataError: a key that is too short.

    Example:
        >>> numbered = Pseudonyms()
        >>> numbered.code("in/Smith_John.nii.gz"), numbered.code("in/b.nii.gz"), numbered.code("in/Smith_John.nii.gz")
        ('case_0001', 'case_0002', 'case_0001')
        >>> Pseudonyms(b"0123456789abcdef").code("in/Smith_John.nii.gz")
        'case_30396b8cb4eacf8e'
    """

    def __init__(self, key: bytes | None = None) -> None:
        if key is not None and len(key) < SHORTEST_KEY:
            raise DataError(
                "the key of pseudonyms is too short",
                received=f"{len(key)} bytes",
                expected=f"{SHORTEST_KEY} or more",
                remedy="make one, for instance by `head -c 32 /dev/urandom > FILE`",
            )
        self._is_keyed = key is not None
        self._key = secrets.token_bytes(32) if key is None else key
        self._codes: dict[str, str] = {}
        self._lock = threading.Lock()

    @classmethod
    def from_file(cls, path: Path | None) -> Pseudonyms:
        """With the key that a file holds, or without one.

        Raises:
            DataError: no such file, or a key that is too short.
        """
        if path is None:
            return cls()
        try:
            key = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot be opened: {error.strerror or error}", file=path) from error
        return cls(key)

    def code(self, source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> str:
        """The name of a case, for its files, lines and errors."""
        first = source if isinstance(source, str | os.PathLike) else source[0]
        place = os.path.abspath(first)  # noqa: PTH100 (keeps links)
        with self._lock:
            if place not in self._codes:
                digits = self._digest("case", output_name([first]))[:CODE_DIGITS]
                self._codes[place] = f"case_{digits}" if self._is_keyed else f"case_{len(self._codes) + 1:04d}"
            return self._codes[place]

    def patient(self, identifier: str) -> str:
        """A patient's new name and identifier."""
        return f"patient_{self._digest('patient', identifier)[:CODE_DIGITS]}"

    def uid(self, uid: str) -> str:
        """A new UID for one that was given in a hospital; equal ones stay equal.

        Example:
            >>> names = Pseudonyms()
            >>> names.uid("1.2.3") == names.uid("1.2.3"), names.uid("1.2.840.10008.1.2.1")
            (True, '1.2.840.10008.1.2.1')
        """
        if not uid or uid.startswith(_STANDARD_UIDS):
            return uid
        return f"2.25.{uuid.UUID(hex=self._digest('uid', uid)[:32], version=4).int}"

    def table(self) -> list[tuple[str, str]]:
        """Each case's name and the path that it had, in their order."""
        return [(code, place) for place, code in self._codes.items()]

    def hide(self, error: Error, source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Error:
        """The same error with the case's new name in place of its file; values that were met are left out."""
        paths = [source] if isinstance(source, str | os.PathLike) else list(source)
        code, cause, remedy = self.code(source), error.cause, error.remedy
        words = {os.fspath(path) for path in paths} | {Path(path).name for path in paths} | {output_name(paths)}
        for word in sorted(filter(None, words), key=len, reverse=True):
            cause, remedy = cause.replace(word, code), remedy and remedy.replace(word, code)
        return type(error)(cause, file=code, remedy=remedy)

    def _digest(self, kind: str, text: str) -> str:
        return hmac.new(self._key, f"{kind}:{text}".encode(), hashlib.sha256).hexdigest()

    def __deepcopy__(self, memo: dict[int, Any]) -> Pseudonyms:
        """Copies of a transform speak of the same cases."""
        return self


def deidentify(dataset: Dataset, names: Pseudonyms) -> None:
    """Take out of a DICOM result that medunet has made what tells of a patient; the data set is changed.

    UIDs are mapped, the patient has a pseudonym, persons, dates and times are emptied or dummies, and the data set says
    so (PatientIdentityRemoved, DeidentificationMethod).

    Args:
        dataset: a DICOM SEG or RTSTRUCT of `make_dicom_seg` or `make_rtstruct`.
        names: where the new ones come from.
    """
    patient = names.patient(str(dataset.get("PatientID") or dataset.get("PatientName") or ""))
    _clean(dataset, names, set())
    dataset.PatientName = dataset.PatientID = patient
    for keyword in _CLEARED:
        setattr(dataset, keyword, "")
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = METHOD
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    dataset.DeidentificationMethodCodeSequence = DicomSequence([code])
    dataset.LongitudinalTemporalInformationModified = "REMOVED"


def _clean(dataset: Dataset, names: Pseudonyms, seen: set[int]) -> None:
    """Each item once: highdicom puts some of them into two sequences, and a UID must not be mapped twice."""
    if id(dataset) in seen:
        return
    seen.add(id(dataset))
    for element in list(dataset):
        if element.VR == "SQ":
            for item in element.value:
                _clean(item, names, seen)
        elif element.VR == "UI" and element.value:
            many = not isinstance(element.value, str)
            element.value = [names.uid(str(uid)) for uid in element.value] if many else names.uid(str(element.value))
        elif element.VR == "PN" or element.keyword in _EMPTIED:
            element.value = ""
        elif element.keyword in _DUMMIES:
            element.value = _DUMMIES[element.keyword]
        elif element.VR in ("DA", "DT", "TM"):
            del dataset[element.tag]
