import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.io import layout


@given(
    st.lists(st.integers(1, 35), min_size=1, max_size=4),
    st.sampled_from(["int16", ">i2", "uint8", "float32", "float64"]),
    st.sampled_from("CF"),
    st.sampled_from("CF"),
    st.sampled_from([256, 4096, 1 << 20]),
)
@settings(deadline=None, max_examples=150)
def test_a_copy_has_every_voxel_in_its_place(shape, dtype, given_order, order, block_bytes):
    source = np.asarray(np.arange(np.prod(shape)).reshape(shape) % 200, dtype=dtype, order=given_order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_BLOCK_BYTES", block_bytes)
        copy = layout.copy_in_order(source, dtype=np.float32, order=order)
    assert copy.dtype == np.float32
    assert copy.flags[f"{order}_CONTIGUOUS"]
    assert np.array_equal(copy, source)
