"""The store returns the items that preprocessing returns, and reads only the parts in use."""

import errno
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, MetaTensor
from monai.transforms import Compose, EnsureTyped, LoadImaged, NormalizeIntensityd, Orientationd, Spacingd, Transform

from medunet.datasets import StoreDataset, foreground_indices
from medunet.datasets.cache.entry import Entry
from medunet.errors import ConfigError, DataError, find_cause
from medunet.io import LoadLabeld, MedunetReader, write_volume
from medunet.transforms import EncodeLabelsd, RandDeformd, RandNoised

needs_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12
BOTH = ["image", "label"]
AFFINE = np.diag([-1.0, 1, 2, 1])


def volumes(folder: Path, count: int = 3, *, classes: int = 3, size: tuple[int, ...] = (17, 19, 13)) -> list[Any]:
    """Cases of noise, as NIfTI of 1 x 1 x 2 mm."""
    rng = np.random.default_rng(0)
    items = []
    for index in range(count):
        image, label = folder / f"image_{index}.nii.gz", folder / f"label_{index}.nii.gz"
        write_volume(rng.normal(100, 20, size).astype(np.float32), image, affine=AFFINE)
        write_volume(rng.integers(0, classes, size).astype(np.int16), label, affine=AFFINE)
        items.append({"image": str(image), "label": str(label), "name": f"case_{index}"})
    return items


def fixed(classes: int = 3) -> list[Any]:
    """Deterministic steps, as in configs/3d.yaml."""
    return [
        LoadImaged("image", reader=MedunetReader(channels=1), ensure_channel_first=True, image_only=True),
        LoadLabeld("label", reference_key="image"),
        EncodeLabelsd("label", list(range(classes))),
        Orientationd(BOTH, axcodes="RAS", labels=None),
        Spacingd(BOTH, pixdim=[1.0, 1.0, 1.5], mode=["bilinear", "nearest"], padding_mode="border"),
        NormalizeIntensityd("image", channel_wise=True),
    ]


def random_steps() -> list[Any]:
    options: dict[str, Any] = {"mode": ["bilinear", "nearest"], "foreground_key": "label", "foreground_prob": 0.5}
    deform = RandDeformd(BOTH, spatial_size=(8, 9, 7), rotate_range=0.3, elastic_sigma=1.0, **options)
    return [deform, RandNoised("image", prob=0.5), EnsureTyped(BOTH, track_meta=False)]


class Counted(Transform):
    """Notes each preprocessed item in a class attribute, which is not part of an entry's identity."""

    seen: list[str] = []  # noqa: RUF012

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        type(self).seen.append(data["name"])
        return data


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    Counted.seen.clear()


def counted(items: list[Any], folder: Path, steps: Sequence[Any] | None = None, **options: Any) -> StoreDataset:
    return StoreDataset(items, Compose([Counted(), *(steps or fixed())]), store_dir=folder, **options)


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert type(value) is type(other[key])
            torch.testing.assert_close(value, other[key], rtol=0, atol=0, check_dtype=key == "image")
        else:
            assert value == other[key]


def assert_items_are_those_of_monais_cache(items: list[Any], make_steps: Callable[[], list[Any]], folder: Path) -> None:
    theirs = CacheDataset(items, Compose(make_steps()), progress=False, num_workers=1)
    ours = StoreDataset(items, Compose(make_steps()), store_dir=folder)
    for dataset in (theirs, ours):
        dataset.transform.set_random_state(3)
    for index in (*range(len(items)), 0, -1):
        assert_same(ours[index], theirs[index])


def test_patches_are_bit_equal_to_those_without_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items, load = volumes(tmp_path), Entry.load
    monkeypatch.setattr(Entry, "load", lambda *words, **options: (load(*words, **options)[0], {}))  # as in CacheDataset
    assert_items_are_those_of_monais_cache(items, lambda: [*fixed(), *random_steps()], tmp_path / "store")


def test_whole_items_are_bit_equal_and_keep_their_meta(tmp_path: Path) -> None:
    items = volumes(tmp_path, 2)
    assert_items_are_those_of_monais_cache(items, fixed, tmp_path / "store")
    item, other = StoreDataset(items, fixed(), store_dir=tmp_path / "store")[1], Compose(fixed())(items[1])
    assert isinstance(item["image"], MetaTensor)
    assert item["image"].meta["filename_or_obj"] == items[1]["image"]
    torch.testing.assert_close(item["image"].affine, other["image"].affine, rtol=0, atol=0)


def test_items_without_meta_have_the_same_voxels(tmp_path: Path) -> None:
    items = volumes(tmp_path, 1)
    item, plain = (
        StoreDataset(items, fixed(), store_dir=tmp_path / "store", track_meta=track_meta)[0]
        for track_meta in (True, False)
    )
    assert type(plain["image"]) is torch.Tensor
    assert torch.equal(item["image"].as_tensor(), plain["image"])


@pytest.mark.parametrize(("classes", "dtype"), [(3, torch.uint8), (400, torch.int16)])
def test_labels_are_stored_in_the_smallest_integers(classes: int, dtype: torch.dtype, tmp_path: Path) -> None:
    items = volumes(tmp_path, 1, classes=classes)
    label = StoreDataset(items, fixed(classes), store_dir=tmp_path / "store")[0]["label"]
    expected = Compose(fixed(classes))(items[0])["label"]
    assert label.dtype == dtype
    assert torch.equal(label.as_tensor(), expected.as_tensor().to(dtype))
    for value in (0.5, np.nan, np.inf, 3e9):  # not a map of integers
        label = np.array([[0, value]])
        np.testing.assert_array_equal(StoreDataset([{"label": label}], [], store_dir=tmp_path)[0]["label"], label)


def test_foreground_indices_are_the_voxels_of_each_class_and_large_classes_are_sampled() -> None:
    label = np.random.default_rng(0).integers(0, 4, (1, 9, 8, 7))
    label[0, 0, :2] = 255
    for number, flat in enumerate(foreground_indices(label), start=1):
        np.testing.assert_array_equal(flat, np.flatnonzero(label[0] == number))
    channels = np.stack([label[0] == 1, label[0] == 9, label[0] > 0])  # overlapping structures; the second is empty
    assert [len(one) for one in foreground_indices(channels)] == [channels[0].sum(), channels[2].sum()]
    (some,), (again,) = (foreground_indices(np.ones((1, 40, 50), np.uint8), limit=100) for _ in range(2))
    assert len(set(some.tolist())) == 100
    np.testing.assert_array_equal(some, again)
    assert abs(some.mean() - 1000) < 200  # all over the label


def test_every_patch_is_centred_on_foreground_and_classes_are_balanced(tmp_path: Path) -> None:
    label = np.zeros((1, 30, 30), dtype=np.uint8)
    label[0, 5:25, 5:14], label[0, 20, 20] = 1, 2
    crop = RandDeformd("label", spatial_size=(3, 3), prob=0.0, foreground_key="label", foreground_prob=1.0)
    dataset = StoreDataset([{"label": label}], [crop], store_dir=tmp_path)
    dataset.transform.set_random_state(0)
    centres = [int(dataset[0]["label"][0, 1, 1]) for _ in range(60)]
    assert 0 not in centres
    assert 15 < centres.count(2) < 45  # one voxel of 181, but one class of two


def test_patches_of_sparse_annotation_are_centred_on_it(tmp_path: Path) -> None:
    label = torch.full((1, 31, 33), 255, dtype=torch.uint8)
    label[0, 7, 3:30] = 0
    label[0, 20, 20] = 1
    crop = RandDeformd("label", spatial_size=[3, 3], foreground_key="label", foreground_prob=0.3)
    dataset = StoreDataset([{"label": label}], [crop], store_dir=tmp_path)
    patches = [dataset[0] for _ in range(40)]
    assert all(patch.keys() == {"label"} for patch in patches)
    assert {int(patch["label"][0, 1, 1]) for patch in patches} == {0, 1}


def test_a_second_data_set_preprocesses_only_changed_files(tmp_path: Path) -> None:
    items, steps = volumes(tmp_path), fixed()
    first = counted(items, tmp_path / "store", steps)
    first.prepare()
    assert sorted(Counted.seen) == ["case_0", "case_1", "case_2"]
    write_volume(np.full((17, 19, 13), 7, np.float32) + np.eye(19, 13), items[1]["image"], affine=AFFINE)
    again = counted(items[::-1], tmp_path / "store", steps)  # transforms that were used are still the same
    again.prepare()
    assert again.folder == first.folder
    assert [again[index]["name"] for index in range(3)] == ["case_2", "case_1", "case_0"]
    assert Counted.seen[3:] == ["case_1"]
    torch.testing.assert_close(again[1]["image"], Compose(fixed())(items[1])["image"])


def test_changed_transforms_create_new_entries_unless_they_are_random(tmp_path: Path) -> None:
    items = volumes(tmp_path, 1)
    for steps in (fixed(), [*fixed()[:-1], NormalizeIntensityd("image")], fixed(4)):
        counted(items, tmp_path / "store", steps).prepare()
    assert len(Counted.seen) == 3
    counted(items, tmp_path / "store", [*fixed(), *random_steps()]).prepare()
    assert len(Counted.seen) == 3


@pytest.mark.parametrize("damage", ["cut", "zeroed", "longer", "half a header"])
def test_a_damaged_entry_is_prepared_again(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = volumes(tmp_path, 2)
    dataset = counted(items, tmp_path / "store")
    dataset.prepare()
    file = dataset._entries[0].path
    content = file.read_bytes()
    size = {"cut": len(content) // 2, "zeroed": -64, "longer": None, "half a header": 100}[damage]
    file.write_bytes(content[:size] + {"zeroed": bytes(64), "longer": b"1"}.get(damage, b""))
    again = counted(items, tmp_path / "store")
    again.prepare()
    assert_same(again[0], Compose(fixed())(items[0]))
    assert Counted.seen[2:] == ["case_0"]
    assert "damaged" in caplog.text


def test_an_entry_deleted_or_truncated_during_training_is_prepared_again(tmp_path: Path) -> None:
    items = volumes(tmp_path, 1)
    dataset = counted(items, tmp_path / "store")
    dataset.prepare()
    dataset._entries[0].path.unlink()
    assert_same(dataset[0], Compose(fixed())(items[0]))
    file = dataset._entries[0].path
    content = file.read_bytes()
    file.unlink()  # other bytes under the name, not in the file that is mapped
    file.write_bytes(content[:-500])
    assert_same(dataset[0], Compose(fixed())(items[0]))
    assert len(Counted.seen) == 3


def test_changing_an_item_in_place_reaches_neither_the_store_nor_the_next_item(tmp_path: Path) -> None:
    dataset = StoreDataset(volumes(tmp_path, 1), fixed(), store_dir=tmp_path / "store")
    first = dataset[0]
    expected = first["image"].clone()
    first["image"].zero_()
    torch.testing.assert_close(dataset[0]["image"], expected, rtol=0, atol=0)


def test_a_full_disk_and_a_file_in_place_of_the_folder_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = counted(volumes(tmp_path, 1), tmp_path / "store")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"No space left.*store_dir"):
            dataset.prepare()
    assert list(dataset.folder.iterdir()) == []
    assert dataset[0]["name"] == "case_0"
    with pytest.raises(DataError, match="store_dir"):
        counted(volumes(tmp_path, 1), tmp_path / "image_0.nii.gz").prepare()


def test_an_error_in_a_case_keeps_its_type_and_the_other_entries(tmp_path: Path) -> None:
    items = volumes(tmp_path)
    write_volume(np.full((17, 19, 13), 9, np.int16), items[2]["label"], affine=AFFINE)
    dataset = counted(items, tmp_path / "store")
    with pytest.raises(RuntimeError) as info:
        dataset.prepare()
    assert "label_2" in str(find_cause(info.value))
    assert len(list(dataset.folder.iterdir())) == 2


def test_a_value_that_cannot_be_stored_is_named(tmp_path: Path) -> None:
    for value in (object(), np.array([None])):
        with pytest.raises(ConfigError, match="other: object"):
            StoreDataset([{"image": np.ones((1, 2)), "other": value}], [], store_dir=tmp_path)[0]


def test_values_arrays_and_empty_arrays_are_restored(tmp_path: Path) -> None:
    item = {
        "image": np.arange(6, dtype=np.float16).reshape(1, 2, 3),
        "mask": torch.zeros(1, 0, 3, dtype=torch.bool),
        "number": 3,
        "spacing": [1.0, 2.5],
        "nested": {"a": None, "b": "text"},
        "scalar": np.array(4.0),
        "strided": np.arange(6).reshape(2, 3).T,
    }
    stored = StoreDataset([item], [], store_dir=tmp_path)[0]
    assert stored.keys() == item.keys()
    for key, value in item.items():
        assert type(stored[key]) is type(value)
        np.testing.assert_array_equal(np.asarray(stored[key]), np.asarray(value))
        assert getattr(stored[key], "dtype", None) == getattr(value, "dtype", None)


def test_other_users_cannot_read_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDUNET_CACHE_DIR", str(tmp_path / "cache"))
    dataset = StoreDataset(volumes(tmp_path, 1), fixed())
    dataset.prepare()
    assert dataset.folder.parent == tmp_path / "cache" / "store"
    if os.name != "nt":
        assert dataset.folder.stat().st_mode & 0o077 == 0


def test_a_patch_reads_only_its_part_of_the_volume(tmp_path: Path) -> None:
    if not Path("/proc/self/smaps").is_file():
        pytest.skip("needs Linux")
    array = np.zeros((1, 1024, 128, 128), dtype=np.float32)  # 64 MiB; one plane is 64 KiB
    items = [{"image": array, "label": np.zeros(array.shape, dtype=np.uint8)}]
    items[0]["label"][0, 512, 64, 64] = 1
    used = []

    class Keep(Transform):
        def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
            used.append(data)  # the mapping exists until its pages are counted
            return data

    deform = RandDeformd(BOTH, spatial_size=(8, 8, 8), rotate_range=0.3, foreground_key="label", foreground_prob=1.0)
    dataset = StoreDataset(items, [lambda data: data, Keep(), deform], store_dir=tmp_path)
    dataset.prepare()
    assert dataset[0]["image"].shape == (1, 8, 8, 8)
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    sizes = [
        int(next(fact.split()[1] for fact in lines if fact.startswith("Rss:")))
        for line in lines
        if line.endswith(str(dataset._entries[0].path))
    ]
    assert 0 < sum(sizes) < 81920 // 4, "KiB"  # about 20 planes of both arrays, and what the kernel maps around them


class Slow(Transform):
    """Notes each item in a file, and takes a while."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        with self.notes.open("a") as file:
            file.write(f"{data['name']}\n")
        time.sleep(0.05)
        return data


def slow(folder: Path) -> StoreDataset:
    items = [{"image": str(folder / f"{n}.raw"), "name": f"case_{n}"} for n in range(8)]
    return StoreDataset(items, [Slow(folder / "notes")], store_dir=folder / "store", num_workers=1)


def start_preparing(folder: Path) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=lambda: slow(folder).prepare())
    process.start()
    return process


@needs_fork
def test_after_a_kill_only_the_missing_cases_are_prepared(tmp_path: Path) -> None:
    process = start_preparing(tmp_path)
    deadline = time.monotonic() + 60
    while len(list(slow(tmp_path).folder.glob("[!.]*.safetensors"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    finished = list(slow(tmp_path).folder.glob("[!.]*.safetensors"))
    notes = len((tmp_path / "notes").read_text().split())
    dataset = slow(tmp_path)
    dataset.prepare()
    assert 3 <= len(finished) < 8
    assert len((tmp_path / "notes").read_text().split()) - notes == 8 - len(finished)
    assert [dataset[index]["name"] for index in range(8)] == [f"case_{index}" for index in range(8)]


@needs_fork
def test_two_processes_share_the_work(tmp_path: Path) -> None:
    for process in [start_preparing(tmp_path) for _ in range(2)]:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert sorted((tmp_path / "notes").read_text().split()) == [f"case_{n}" for n in range(8)], "each case once"
    assert len(list(slow(tmp_path).folder.iterdir())) == 8
