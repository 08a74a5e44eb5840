"""The identity of preprocessed cases."""

import functools
import os
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from medunet.datasets.cache.identity import code_digest, describe_source, digest
from medunet.transforms import EncodeLabelsd, RandDeformd


def test_digest_of_objects_covers_class_and_attributes_but_not_random_state() -> None:
    assert digest(EncodeLabelsd("label", [0, 1])) == digest(EncodeLabelsd("label", [0, 1]))
    others = [EncodeLabelsd("label", [0, 1]), EncodeLabelsd("label", [0, 2]), EncodeLabelsd("seg", [0, 1])]
    assert len({digest(other) for other in others}) == 3
    assert digest(RandDeformd("a").set_random_state(0)) == digest(RandDeformd("a").set_random_state(1))


def test_digest_of_functions_covers_code_closure_and_defaults() -> None:
    def shift(by: int) -> object:
        return lambda x, scale=1: scale * x + by

    assert digest(shift(1)) == digest(shift(1))
    assert digest(shift(1)) != digest(shift(2))
    assert digest(lambda x: x + 1) != digest(lambda x: x + 2)
    assert digest(functools.partial(max, 1)) != digest(functools.partial(max, 2))
    assert digest(functools.partial(max, 1)) != digest(functools.partial(min, 1))


def test_recursive_values_have_a_digest() -> None:
    loop: list[object] = [1]
    loop.append(loop)
    assert digest(loop) != digest([1])


def test_the_order_of_sets_and_mappings_does_not_change_the_digest() -> None:
    assert list({0, 8}) != list({8, 0})
    assert digest({0, 8}) == digest({8, 0}) != digest([0, 8])
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_digest_of_arrays_covers_type_shape_and_content() -> None:
    values = [np.zeros(4, np.uint8), np.zeros(4, np.int8), np.zeros((2, 2), np.uint8), np.ones(4, np.uint8)]
    assert len({digest(value) for value in values}) == 4
    assert digest(torch.zeros(4, dtype=torch.uint8)) == digest(values[0])


def test_digest_of_files_covers_path_size_and_time(tmp_path: Path) -> None:
    file, copy = tmp_path / "a.raw", tmp_path / "b.raw"
    for path in (file, copy):
        path.write_bytes(b"1234")
        os.utime(path, ns=(0, 10**18))
    before = describe_source({"image": str(file)})
    assert before == describe_source({"image": file})
    assert before != describe_source({"image": copy})
    folder = describe_source({"image": tmp_path})  # such as a DICOM series
    os.utime(file, ns=(0, 10**18 + 1))
    assert before != describe_source({"image": file})
    assert folder != describe_source({"image": tmp_path})
    header, voxels = tmp_path / "c.mhd", tmp_path / "c.raw"
    for path in (header, voxels):
        path.write_bytes(b"1")
    before = describe_source(header)
    voxels.write_bytes(b"123")
    assert before != describe_source(header)


def test_a_name_is_not_a_path_even_if_a_folder_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe_source("case1")
    (tmp_path / "case1").mkdir()
    (tmp_path / "case1.nii.gz").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    assert describe_source("case1") == before
    assert describe_source("case1.nii.gz") == describe_source(tmp_path / "case1.nii.gz")


def test_code_digest_covers_all_code_behind_a_preprocessed_case(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_digest()
    assert code_digest.__wrapped__() == before
    read = Path.read_bytes
    for name in ("nifti.py", "geometry.py", "spatial.py", "store.py"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", lambda path, name=name: read(path) + b"#" * (path.name == name))
            assert code_digest.__wrapped__() != before, name
    monkeypatch.setattr(metadata, "version", lambda library: "0")
    assert code_digest.__wrapped__() != before
