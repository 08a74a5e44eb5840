"""Synthetic data: what a seed decides, sizes and spacings, tissues and labels."""

import numpy as np
import pytest

from medunet.datasets import make_phantom, open_dataset, write_phantom_dataset
from medunet.errors import ConfigError
from medunet.io import read_volume


def test_every_organ_has_at_least_400_voxels():
    for seed in range(12):
        phantom = make_phantom("ct", seed=seed)
        for name, value in phantom.labels.items():
            assert np.count_nonzero(phantom.label == value) >= 400, (seed, name)


def test_tissues_have_their_hounsfield_units():
    phantom = make_phantom("ct", seed=1)
    means = {name: phantom.image[phantom.label == value].mean() for name, value in phantom.labels.items()}
    assert -860 < means["lungs"] < -700
    assert 90 < means["liver"] < 125
    assert means["liver"] < means["spleen"] < means["kidneys"] < means["spine"]
    assert phantom.image[0, 0].mean() == pytest.approx(-1000, abs=15)


def test_liver_is_on_the_right_of_the_patient():
    phantom = make_phantom("ct", seed=2)
    right = {
        name: (phantom.affine @ [*np.argwhere(phantom.label == phantom.labels[name]).mean(axis=0), 1])[0]
        for name in ("liver", "spleen")
    }
    assert right["liver"] > 20 > -20 > right["spleen"]


@pytest.mark.parametrize(("kind", "size"), [("pet", None), ("ct", (64, 64)), ("cells", (8, 8))])
def test_impossible_phantoms_are_rejected(kind, size):
    with pytest.raises(ConfigError):
        make_phantom(kind, seed=0, size=size)


@pytest.mark.parametrize(("kind", "size"), [("ct", (33, 34, 21)), ("cells", (65, 67))])
def test_written_set_opens_with_the_labels_of_its_phantoms_and_is_the_same_every_time(tmp_path, kind, size):
    first, second = (
        write_phantom_dataset(tmp_path / name, kind=kind, cases=2, test_cases=1, seed=7, size=size) for name in "ab"
    )
    dataset = open_dataset(first)
    assert [case.name for case in (*dataset.cases, *dataset.test)] == [f"{kind}_{n:03d}" for n in range(3)]
    for number, case in enumerate((*dataset.cases, *dataset.test)):
        phantom = make_phantom(kind, seed=(7, number), size=size)
        label, image = read_volume(case.label), read_volume(case.images)
        assert np.array_equal(label.image[0].numpy(), phantom.label)
        assert np.array_equal(image.image[0].numpy(), np.rint(phantom.image))
        assert np.allclose(image.record.geometry.affine, phantom.affine, atol=1e-5)
    assert dataset.labels == phantom.labels
    files = [path for path in first.parent.rglob("*") if path.is_file()]
    assert len(files) == 7
    for file in files:
        assert file.read_bytes() == (second.parent / file.relative_to(first.parent)).read_bytes()
