from __future__ import annotations

import gzip
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.errors import DataError, SecurityError
from medunet.io import deflate
from medunet.io.deflate import compress, compress_parts, gunzip

NOISE = np.random.default_rng(0).integers(0, 50, 300_001, dtype=np.uint8).tobytes()


@pytest.fixture(params=["libdeflate", "members"])
def way(request, monkeypatch) -> str:
    """Both ways of decompression obey the same rules."""
    if request.param == "members":
        monkeypatch.setattr(deflate, "_gunzip_at_once", lambda data, wanted: None)
    return request.param


@given(st.binary(max_size=3000), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_what_is_compressed_comes_back(content, level):
    packed = compress(content, level=level)
    assert gzip.decompress(packed) == content
    assert gunzip(packed, wanted=len(content)) == content


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_pieces_make_one_ordinary_member(monkeypatch, extra):
    monkeypatch.setattr(deflate, "_PIECE_BYTES", len(NOISE) // 3 + extra)
    packed = compress(NOISE)
    member = zlib.decompressobj(wbits=31)
    assert member.decompress(packed) == NOISE
    assert member.eof
    assert member.unused_data == b""
    assert gunzip(packed, wanted=len(NOISE)) == NOISE


def test_equal_content_makes_equal_files_on_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(deflate, "_PIECE_BYTES", 10_000)
    first = compress(NOISE)
    monkeypatch.setattr(deflate, "_THREADS", 1)
    assert compress(NOISE) == first


def test_arrays_are_compressed_as_their_bytes():
    array = np.arange(12, dtype=np.int16).reshape(3, 4)
    assert gzip.decompress(compress(array)) == array.tobytes()


def test_several_members_are_read_to_the_end(way):
    packed = gzip.compress(NOISE[:1000]) + gzip.compress(NOISE[1000:])
    assert gunzip(packed, wanted=len(NOISE)) == NOISE


def test_equal_members_are_not_taken_for_one(way):
    packed = gzip.compress(NOISE[:1000]) * 2
    assert gunzip(packed, wanted=2000) == NOISE[:1000] * 2


def test_padding_and_foreign_bytes_behind_the_last_member_are_ignored(way):
    packed = gzip.compress(NOISE)
    for tail in (bytes(512), b"junk", bytes(7) + b"junk"):
        assert gunzip(packed + tail, wanted=len(NOISE)) == NOISE


def test_wrong_checksum_is_refused(way):
    packed = bytearray(gzip.compress(NOISE))
    packed[-8] ^= 1
    with pytest.raises(DataError, match=r"ct.nii.gz: damaged gzip file.*copy it again"):
        gunzip(bytes(packed), wanted=len(NOISE), file="ct.nii.gz")


def test_wrong_length_is_refused(way):
    packed = bytearray(gzip.compress(NOISE))
    packed[-4:] = struct.pack("<I", len(NOISE) + 1)
    with pytest.raises(DataError, match="damaged gzip file"):
        gunzip(bytes(packed), wanted=len(NOISE))


@pytest.mark.parametrize("kept", [3, 12, 5000, -1, -4, -9])
def test_truncated_file_is_refused(way, kept):
    packed = gzip.compress(NOISE)[:kept]
    with pytest.raises(DataError, match=r"(truncated|damaged) gzip file"):
        gunzip(packed, wanted=len(packed))


def test_flipped_bit_in_the_stream_is_refused(way):
    packed = bytearray(gzip.compress(NOISE))
    packed[len(packed) // 2] ^= 4
    with pytest.raises(DataError, match=r"(truncated|damaged) gzip file"):
        gunzip(bytes(packed), wanted=len(NOISE))


def test_not_gzip_is_refused(way):
    with pytest.raises(DataError, match="not a gzip file"):
        gunzip(b"PK\3\4", wanted=4)


def test_damage_behind_the_wanted_bytes_is_refused_in_the_same_member(way):
    packed = bytearray(gzip.compress(NOISE))
    packed[-8] ^= 1
    with pytest.raises(DataError, match="damaged gzip file"):
        gunzip(bytes(packed), wanted=10)


def test_more_than_deflate_can_hold_is_refused_before_it_is_reserved():
    with pytest.raises(SecurityError, match="cannot hold as much"):
        gunzip(gzip.compress(b"x"), wanted=1 << 50)


def test_a_bomb_is_unpacked_no_further_than_wanted(way):
    packed = gzip.compress(bytes(50_000_000))
    assert len(gunzip(packed, wanted=100)) <= 102


def test_fewer_bytes_than_wanted_come_back_as_they_are(way):
    assert gunzip(gzip.compress(NOISE[:100]), wanted=120) == NOISE[:100]


@pytest.mark.parametrize("sizes", [[], [0], [10], [5_000_000, 1, 9_000_000], [0, 7, 0]], ids=str)
def test_parts_are_one_member(sizes):
    parts = [np.random.default_rng(n).integers(0, 9, n, dtype=np.uint8) for n in sizes]
    whole = b"".join(part.tobytes() for part in parts)
    packed = b"".join(compress_parts(parts))
    assert gzip.decompress(packed) == whole
    member = zlib.decompressobj(wbits=31)
    assert member.decompress(packed) == whole
    assert member.eof
    assert not member.unused_data
    assert gunzip(packed, wanted=len(whole)).tobytes() == whole
