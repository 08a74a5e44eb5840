from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import label as components

from medunet.datasets import make_phantom, open_dataset, write_phantom_dataset
from medunet.errors import ConfigError
from medunet.geometry import Geometry
from medunet.io import read_volume


@pytest.mark.parametrize("kind", ["ct", "mr", "cells", "instances"])
def test_seed_decides_everything(kind):
    first, again, other = (make_phantom(kind, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.label, again.label)
    assert first.image.shape != other.image.shape or not np.array_equal(first.label, other.label)


@pytest.mark.parametrize("kind", ["ct", "mr"])
def test_no_organ_is_tiny(kind):
    for seed in range(12):
        phantom = make_phantom(kind, seed=seed)
        for name, value in phantom.labels.items():
            assert np.count_nonzero(phantom.label == value) >= 400, (seed, name)


@pytest.mark.parametrize(("kind", "size"), [("ct", (33, 34, 35)), ("mr", (33, 35, 21)), ("cells", (67, 131))])
def test_size_is_kept_but_for_the_range_of_spacings(kind, size):
    phantom = make_phantom(kind, seed=0, size=size)
    assert phantom.image.shape == phantom.label.shape
    assert phantom.image.dtype == np.float32
    tolerance = 0 if kind == "cells" else 0.13
    assert np.all(np.abs(np.array(phantom.image.shape) / size - 1) <= tolerance)


def test_spacing_varies_but_the_field_of_view_does_not():
    spacings, extents = [], []
    for seed in range(6):
        phantom = make_phantom("ct", seed=seed)
        geometry = Geometry(phantom.affine, phantom.image.shape)
        assert geometry.axis_codes == "LPS"
        spacings.append(geometry.spacing_mm)
        extents.append(np.array(geometry.spacing_mm) * phantom.image.shape)
    assert np.ptp(spacings, axis=0).min() > 0.1
    assert np.all(np.abs(np.array(extents) - np.multiply((64, 64, 48), (2.75, 2.75, 4.5))) <= np.array([1.5, 1.5, 2.5]))


def test_tissues_have_their_hounsfield_units():
    phantom = make_phantom("ct", seed=1)
    means = {name: phantom.image[phantom.label == value].mean() for name, value in phantom.labels.items()}
    assert -860 < means["lungs"] < -700
    assert 90 < means["liver"] < 125
    assert means["liver"] < means["spleen"] < means["kidneys"] < means["spine"]
    assert phantom.image[0, 0].mean() == pytest.approx(-1000, abs=15)


def test_liver_lies_on_the_right_of_the_patient():
    phantom = make_phantom("ct", seed=2)
    centre = {
        name: (phantom.affine @ [*np.argwhere(phantom.label == phantom.labels[name]).mean(axis=0), 1])[:3]
        for name in ("liver", "spleen", "lungs", "spine")
    }
    assert centre["liver"][0] > 20 > -20 > centre["spleen"][0]
    assert centre["lungs"][2] > centre["liver"][2]
    assert centre["spine"][1] < centre["liver"][1]


def test_bias_field_changes_white_matter_across_the_head():
    phantom = make_phantom("mr", seed=0)
    white = phantom.image[phantom.label == phantom.labels["white_matter"]]
    assert phantom.image.min() >= 0
    assert white.std() / white.mean() > 0.05


def test_mask_of_cells_parts_what_instances_number():
    mask, instances = make_phantom("cells", seed=5), make_phantom("instances", seed=5)
    assert np.array_equal(mask.image, instances.image)
    assert np.array_equal(mask.label == 255, instances.label > 0)
    parts, _ = components(mask.label)
    for number in range(1, instances.label.max() + 1):
        inside = instances.label == number
        assert inside.any()
    # no part of the mask joins two cells
    for part in range(1, parts.max() + 1):
        assert len(np.unique(instances.label[parts == part])) == 1


@pytest.mark.parametrize(("kind", "size"), [("pet", None), ("ct", (64, 64)), ("cells", (8, 8))])
def test_impossible_phantoms_are_refused(kind, size):
    with pytest.raises(ConfigError):
        make_phantom(kind, seed=0, size=size)


@pytest.mark.parametrize(("kind", "size"), [("ct", (33, 34, 21)), ("mr", (21, 22, 23)), ("cells", (65, 67))])
def test_written_set_opens_and_holds_the_made_labels(tmp_path, kind, size):
    manifest = write_phantom_dataset(tmp_path, kind=kind, cases=2, test_cases=1, seed=7, size=size)
    dataset = open_dataset(manifest)
    assert [case.name for case in (*dataset.cases, *dataset.test)] == [f"{kind}_{n:03d}" for n in range(3)]
    for number, case in enumerate((*dataset.cases, *dataset.test)):
        phantom = make_phantom(kind, seed=(7, number), size=size)
        label = read_volume(case.label)
        image = read_volume(case.images)
        assert np.array_equal(label.image[0].numpy(), phantom.label)
        assert np.array_equal(image.image[0].numpy(), np.rint(phantom.image))
        assert np.allclose(image.record.geometry.affine, phantom.affine, atol=1e-5)
    assert dataset.labels == phantom.labels


def test_same_arguments_write_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        write_phantom_dataset(tmp_path / folder, kind="ct", cases=1, size=(17, 18, 19))
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
