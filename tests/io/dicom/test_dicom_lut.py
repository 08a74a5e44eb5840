"""The Modality LUT is applied or rejected."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian

from medunet.errors import DataError
from medunet.io import read_volume


def table(count: int, first: int, bits: int, data: object, kind: str = "US") -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [count, first, bits])
    item.add_new("LUTData", kind, data)
    item.ModalityLUTType = "HU"
    return Sequence([item])


NO_RESCALE = {"RescaleSlope": "del", "RescaleIntercept": "del"}
SQUARES = [k * k for k in range(250)]


@pytest.mark.parametrize(
    "options",
    [
        {"ModalityLUTSequence": table(250, 20, 16, np.array(SQUARES, "<u2").tobytes(), "OW")},
        {"ModalityLUTSequence": table(250, 20, 16, SQUARES), "syntax": ImplicitVRLittleEndian},
    ],
)
def test_values_are_looked_up_and_values_outside_take_the_ends(tmp_path, made, options):
    volume = read_volume(made.series(tmp_path / "ct", made.positions(), **NO_RESCALE, **options))
    expected = np.stack([np.clip(made.pixels(k).T.astype(int) - 20, 0, 249) ** 2 for k in range(4)], axis=-1)
    assert np.array_equal(volume.image[0].numpy(), expected)
    assert volume.record.warnings == ()


def test_first_entry_may_be_negative_and_entries_may_have_eight_bits(tmp_path, made):
    tags = {"ModalityLUTSequence": table(100, -30, 8, bytes(range(100)), "OW"), **NO_RESCALE}
    folder = made.series(tmp_path / "ct", made.positions(2), pixels=lambda k: made.pixels(k) - 40, **tags)
    expected = np.clip(made.pixels(0).T - 40 + 30, 0, 99)
    assert np.array_equal(read_volume(folder).image[0, ..., 0].numpy(), expected)


@pytest.mark.parametrize(
    ("sequence", "rescale", "cause"),
    [
        (table(250, 20, 16, SQUARES), {}, "contradict"),
        (table(251, 20, 16, SQUARES), NO_RESCALE, "does not match its descriptor"),
        (table(250, 20, 8, SQUARES), NO_RESCALE, "does not match its descriptor"),
        (Sequence([Dataset()]), NO_RESCALE, "damaged ModalityLUTSequence"),
    ],
)
def test_invalid_tables_are_rejected(tmp_path, made, sequence, rescale, cause):
    folder = made.series(tmp_path / "ct", made.positions(), ModalityLUTSequence=sequence, **rescale)
    with pytest.raises(DataError, match=cause):
        read_volume(folder)
