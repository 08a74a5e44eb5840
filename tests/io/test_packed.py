"""Compressed files: every checksum is verified, and nothing small unpacks to something huge."""

import bz2
import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.errors import DataError, SecurityError
from medunet.io import packed
from medunet.io.packed import PackedFile, gzip_parts

NOISE = np.random.default_rng(0).integers(0, 50, 300_001, dtype=np.uint8).tobytes()


@pytest.fixture(params=["libdeflate", "gzip", "bzip2"])
def unpack(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., bytes]:
    """All decompressors obey the same rules; a test compresses by `unpack.compress`."""
    if request.param != "libdeflate":
        monkeypatch.setattr(packed, "_gunzip_at_once", lambda data, wanted: None)
    path = tmp_path / ("a.bz2" if request.param == "bzip2" else "a.gz")

    def read(content: bytes, wanted: int) -> bytes:
        path.write_bytes(content)
        return bytes(PackedFile(path).read(0, wanted))

    read.compress = bz2.compress if request.param == "bzip2" else gzip.compress  # type: ignore[attr-defined]
    return read


@given(st.lists(st.binary(max_size=3000), max_size=4))
@settings(deadline=None, max_examples=40)
def test_gzip_parts_form_one_ordinary_member(parts: list[bytes]) -> None:
    content = b"".join(gzip_parts(parts))
    member = zlib.decompressobj(wbits=31)
    assert member.decompress(content) == b"".join(parts)
    assert member.eof
    assert not member.unused_data


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_equal_content_makes_equal_files_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch, extra: int) -> None:
    monkeypatch.setattr(packed, "_PIECE_BYTES", len(NOISE) // 3 + extra)
    first = b"".join(gzip_parts([NOISE]))
    assert gzip.decompress(first) == NOISE
    monkeypatch.setattr(packed, "_THREADS", 1)
    assert b"".join(gzip_parts([np.frombuffer(NOISE, np.uint8)])) == first


def test_several_members_are_read_to_the_end(unpack: Callable[..., bytes]) -> None:
    pieces = [NOISE[n : n + 4096] for n in range(0, len(NOISE), 4096)]
    blocks = b"".join(map(unpack.compress, [*pieces, b""]))
    assert unpack(blocks, len(NOISE)) == NOISE
    assert unpack(unpack.compress(NOISE[:1000]) * 2, 2000) == NOISE[:1000] * 2


@pytest.mark.parametrize("tail", [bytes(512), b"junk", bytes(7) + b"junk"])
def test_padding_and_other_bytes_behind_the_last_member_are_ignored(unpack: Callable[..., bytes], tail: bytes) -> None:
    assert unpack(unpack.compress(NOISE) + tail, len(NOISE)) == NOISE


def test_a_truncated_file_a_wrong_checksum_and_a_flipped_bit_are_rejected(unpack: Callable[..., bytes]) -> None:
    whole = unpack.compress(NOISE)
    for end in (3, 12, 5000, -1, -4, -9):
        with pytest.raises(DataError, match=r"a\.\w+: (truncated|damaged) \w+ file|a\.\w+: file is shorter than"):
            unpack(whole[:end], len(NOISE))
    for place in (-8, -2, len(NOISE) // 3):  # of gzip: the checksum, the length, the content
        content = bytearray(whole)
        content[place] ^= 4
        for wanted in (10, len(NOISE)):
            with pytest.raises(DataError, match=r"(truncated|damaged) \w+ file"):
                unpack(bytes(content), wanted)


@pytest.mark.parametrize(("name", "remedy"), [("a.nii.gz", "a.nii"), ("a.mgz", "a.mgh"), ("a.nii.bz2", "a.nii")])
def test_a_file_that_is_not_compressed_in_spite_of_its_name_is_rejected(tmp_path: Path, name: str, remedy: str) -> None:
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(DataError, match=rf"despite its name; remedy: rename it to {remedy}$"):
        PackedFile(tmp_path / name)


def test_a_file_that_unpacks_to_far_more_than_wanted_is_rejected(unpack: Callable[..., bytes]) -> None:
    for content in (
        unpack.compress(NOISE + bytes(70 << 20)),
        unpack.compress(NOISE) + unpack.compress(bytes(70 << 20)),
    ):
        with pytest.raises(SecurityError, match=r"a\.\w+: \w+ file unpacks to more than its header says"):
            unpack(content, len(NOISE))
