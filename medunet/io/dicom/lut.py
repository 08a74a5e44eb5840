"""The Modality LUT: a table that maps stored values to output values instead of a slope and an intercept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pydicom

from .values import damaged, items


class ModalityLut(NamedTuple):
    """A table of output values.

    Args:
        first: stored value of the first entry; values below the table take the first entry, values above it the last.
        values: the entries.
        bits_stored: bits of the entries.
    """

    first: int
    values: npt.NDArray[np.uint16]
    bits_stored: int

    def apply(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
        """Look stored values up.

        Example:
            >>> ModalityLut(-1, np.array([10, 20, 40], np.uint16), 16).apply(np.array([-5, -1, 0, 7])).tolist()
            [10, 10, 20, 40]
        """
        return self.values[np.clip(stored.astype(np.int64) - self.first, 0, len(self.values) - 1)]


def read_modality_lut(
    header: pydicom.Dataset, path: Path, *, is_signed: bool, is_big_endian: bool
) -> ModalityLut | None:
    """Return the table of a header, or None if it has none; a damaged table is a DataError."""
    tables = items(header, "ModalityLUTSequence")
    if not tables:
        return None
    order = ">" if is_big_endian else "<"
    try:
        descriptor = _words(tables[0].LUTDescriptor, order)
        count, first, bits = int(descriptor[0]) or 1 << 16, int(descriptor[1]), int(descriptor[2])
        data = tables[0].LUTData
        is_packed = bits <= 8 and isinstance(data, bytes) and len(data) in (count, count + 1)  # padded to be even
        values = np.frombuffer(data, np.uint8)[:count].astype(np.uint16) if is_packed else _words(data, order)
    except Exception as error:  # pydicom raises many kinds for damaged bytes
        raise damaged("damaged ModalityLUTSequence", path) from error
    if len(tables) > 1 or not 1 <= bits <= 16 or values.size != count or int(values.max()) >= 1 << bits:
        raise damaged(
            "ModalityLUTSequence does not match its descriptor",
            path,
            received=f"{len(tables)} tables, {values.size} entries",
            expected=f"{count} entries of {bits} bits",
        )
    return ModalityLut(first - (1 << 16) if is_signed and first >= 1 << 15 else first, values, bits)


def _words(value: Any, order: str) -> npt.NDArray[np.uint16]:
    """Return a value of ambiguous representation (US, SS or OW) as unsigned 16-bit numbers."""
    if isinstance(value, bytes):
        return np.frombuffer(value, f"{order}u2").astype(np.uint16)
    return (np.atleast_1d(np.array(value, dtype=np.int64)) & 0xFFFF).astype(np.uint16)
