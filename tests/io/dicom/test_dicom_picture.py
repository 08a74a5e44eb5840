"""DICOM images in the plane: radiographs, colour, frames without positions."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from monai.data import MetaTensor, PydicomReader
from monai.transforms import LoadImage, LoadImaged

from medunet.datasets import list_inputs, open_dataset
from medunet.datasets.check.check import check_pair
from medunet.errors import DataError, GeometryError
from medunet.io import MedunetReader, SavePredictiond, read_header, read_label, read_volume, write_volume
from medunet.io.dicom.series import picture_files

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)


@pytest.mark.filterwarnings("ignore:PydicomReader. ImageOrientationPatient:UserWarning")
@pytest.mark.parametrize("pixels", [None, RGB])
def test_axes_are_those_of_monai_and_itk(tmp_path, made, pixels):
    path = made.picture(tmp_path / "x.dcm", pixels=pixels)
    volume = read_volume(path)
    assert volume.image.shape == (1 if pixels is None else 3, 7, 5)
    reader = PydicomReader(channel_dim="no_channel" if pixels is None else -1)
    monai = LoadImage(reader=reader, image_only=True, ensure_channel_first=True)(path)
    assert np.array_equal(volume.image.numpy(), np.asarray(monai))
    itk = sitk.GetArrayFromImage(sitk.ReadImage(path))[0]  # the third axis has one slice; a last axis counts colours
    assert np.array_equal(volume.image.numpy(), itk.T.reshape(-1, 7, 5))
    assert not volume.record.is_placed
    assert volume.image.affine.tolist() == np.diag([0.1, 0.2, 1, 1]).tolist()
    assert volume.record.warnings == ()


@pytest.mark.parametrize(
    ("tags", "spacing", "warning"),
    [
        ({"ImagerPixelSpacing": [0.4, 0.3]}, (0.1, 0.2), None),
        ({"PixelSpacing": "del", "ImagerPixelSpacing": [0.4, 0.3]}, (0.3, 0.4), "the patient appears magnified"),
        ({"PixelSpacing": "del", "NominalScannedPixelSpacing": [0.4, 0.3]}, (0.3, 0.4), "scanned film"),
        ({"PixelSpacing": "del"}, (1, 1), "unknown and counts as 1"),
    ],
)
def test_size_of_a_pixel_is_stated_or_recorded_as_unknown(tmp_path, made, tags, spacing, warning):
    record = read_header(made.picture(tmp_path / "x.dcm", **tags))
    assert record.geometry.spacing_mm[:2] == pytest.approx(spacing)
    assert [text for text in record.warnings if warning and warning in text] == list(record.warnings)
    assert len(record.warnings) == (warning is not None)


@pytest.mark.parametrize(
    ("tags", "cause"),
    [
        ({"PixelSpacing": "del", "ImagerPixelSpacing": [0.1, -1]}, "impossible ImagerPixelSpacing"),
        ({"PixelSpacing": "del", "PixelAspectRatio": ["4", "3"]}, "pixels of unknown size must be square"),
    ],
)
def test_impossible_size_of_a_pixel_is_rejected(tmp_path, made, tags, cause):
    with pytest.raises(GeometryError, match=cause):
        read_header(made.picture(tmp_path / "x.dcm", **tags))


def test_radiographs_are_not_a_volume(tmp_path, made):
    folder = tmp_path / "rays"
    folder.mkdir()
    for name in ("a", "b"):
        made.picture(folder / f"{name}.dcm", SeriesInstanceUID="1.2.3")
    with pytest.raises(GeometryError, match="no usable"):
        read_volume(folder / "a.dcm", spatial_dims=3)
    for dims, cause in ((None, "no usable"), (3, "no usable"), (2, "not several")):
        with pytest.raises(GeometryError, match=cause):
            read_volume(folder, spatial_dims=dims)


def test_frames_without_positions_are_chosen_by_phase(tmp_path, made):
    frames = np.stack([made.pixels(k).astype("<u2") for k in range(3)])
    path = made.picture(tmp_path / "cine.dcm", pixels=frames)
    with pytest.raises(DataError, match=r"3 frames without a position .*expected --phase 0 to 2"):
        read_header(path)
    volume = read_volume(path, phase=2, spatial_dims=2)
    assert np.array_equal(volume.image[0].numpy(), made.pixels(2).T)
    assert volume.record.warnings == ("frame 2 of 3 read",)
    with pytest.raises(DataError, match="phase=3"):
        read_volume(path, phase=3)
    with pytest.raises(GeometryError, match="does not give the positions of its frames"):
        read_volume(path, spatial_dims=3)


def test_colour_is_decoded_to_rgb_or_rejected(tmp_path, made):
    cine = made.picture(tmp_path / "cine.dcm", pixels=np.stack([RGB, RGB[::-1]]))
    assert np.array_equal(read_volume(cine, phase=1).image.numpy(), RGB[::-1].T)

    luminance = np.full((5, 7, 3), 128, np.uint8)
    luminance[..., 0] = RGB[..., 0]  # without chrominance, luminance is the grey value
    ybr = made.picture(tmp_path / "ybr.dcm", pixels=luminance, PhotometricInterpretation="YBR_FULL")
    assert np.array_equal(read_volume(ybr).image.numpy(), np.stack([RGB[..., 0].T] * 3))

    levels = np.arange(256, dtype=np.uint8)
    tables = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 8] for name in ("Red", "Green", "Blue")}
    for name, values in (("Red", levels), ("Green", levels[::-1]), ("Blue", 0 * levels)):
        tables[f"{name}PaletteColorLookupTableData"] = values.tobytes()
    palette = {"pixels": RGB[..., 0].copy(), "PhotometricInterpretation": "PALETTE COLOR"}
    image = read_volume(made.picture(tmp_path / "palette.dcm", **palette, **tables)).image.numpy()
    assert np.array_equal(image, np.stack([RGB[..., 0].T, 255 - RGB[..., 0].T, np.zeros((7, 5))]))
    with pytest.raises(DataError, match="cannot be decoded"):
        read_volume(made.picture(tmp_path / "damaged.dcm", **palette))


def test_a_folder_of_radiographs_is_a_folder_of_images_and_a_series_is_not(tmp_path, made):
    folder = tmp_path / "rays"
    folder.mkdir()
    paths = [made.picture(folder / name) for name in ("a.dcm", "b")]
    assert picture_files(folder) == paths
    assert picture_files(made.series(tmp_path / "ct", made.positions())) == []


@pytest.mark.parametrize(("spacing", "lowest"), [(2.5, 30.0), (-2.5, 22.5)])
def test_slices_of_a_reconstructed_nuclear_image_are_placed_by_its_detector(tmp_path, made, spacing, lowest):
    volume = read_volume(made.nm(tmp_path / "nm.dcm", spacing=spacing))
    affine = np.diag([-0.7, -0.5, 2.5, 1.0])
    affine[:3, 3] = -10, -20, lowest
    assert np.allclose(volume.image.affine, affine)
    order = range(4) if spacing > 0 else range(3, -1, -1)
    assert np.array_equal(volume.image[0].numpy(), np.stack([made.pixels(k).T for k in order], axis=-1))


@pytest.mark.parametrize(
    "tags", [{"SpacingBetweenSlices": "del"}, {"DetectorInformationSequence": "del"}, {"SliceVector": [1, 2, 3]}]
)
def test_nuclear_image_that_does_not_place_its_slices_is_rejected(tmp_path, made, tags):
    with pytest.raises(GeometryError, match="does not place its slices"):
        read_header(made.nm(tmp_path / "nm.dcm", **tags))


def test_gated_nuclear_image_has_phases_and_projections_are_in_the_plane(tmp_path, made):
    kind = ["ORIGINAL", "PRIMARY", "RECON GATED TOMO", "EMISSION"]
    path = made.nm(tmp_path / "nm.dcm", ImageType=kind, SliceVector=[1, 2, 1, 2])
    with pytest.raises(DataError, match=r"2 phases .*frame number of the first position 1, 3"):
        read_header(path)
    assert read_volume(path, phase=1).image[0, 0, 0].tolist() == [200, 300]
    projections = made.nm(tmp_path / "nm.dcm", ImageType=["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"])
    with pytest.raises(DataError, match="4 frames without a position"):
        read_header(projections)


def write_cases(root: Path, images: dict[str, Path], shape: tuple[int, ...], suffix: str) -> Path:
    """Write a data set of images, by the name in it, with labels of this shape."""
    label = np.zeros(shape, np.uint8)
    label[2, 3] = 1
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for name, path in images.items():
        shutil.copy(path, root / "imagesTr" / name)
        affine = None if len(shape) == 2 else read_header(path).geometry.affine
        write_volume(label, root / "labelsTr" / f"{name.partition('.')[0]}{suffix}", affine=affine)
    return root


def assert_cases(root: Path, dims: int, names: list[str]) -> None:
    dataset = open_dataset(root)
    assert (dataset.spatial_dims, [case.name for case in dataset.cases]) == (dims, names)
    for case in dataset.cases:
        findings = check_pair(case, dataset.labels, level="voxels")
        assert [finding.cause for finding in findings if finding.severity == "error"] == []


def test_radiographs_with_label_pictures_are_a_data_set_and_their_results_are_pictures(tmp_path, made):
    picture = made.picture(tmp_path / "x.dcm")
    root = write_cases(tmp_path / "data", {"a.dcm": picture, "b.dcm": picture}, (7, 5), ".png")
    assert_cases(root, 2, ["a", "b"])
    assert list_inputs(root / "imagesTr") == [root / "imagesTr" / "a.dcm", root / "imagesTr" / "b.dcm"]

    load = LoadImaged("image", reader=MedunetReader(spatial_dims=2), ensure_channel_first=True)
    item = load({"image": str(root / "imagesTr" / "a.dcm")})
    with pytest.raises(DataError, match="needs a DICOM series"):
        SavePredictiond(output_dir=tmp_path / "out", format="dicom-seg").check(item)
    saver = SavePredictiond(output_dir=tmp_path / "out")
    saver.check(item)
    label = read_label(root / "labelsTr" / "a.png", reference=picture).image
    written = saver({**item, "pred": MetaTensor(label.as_tensor(), affine=item["image"].affine)})["pred_path"]
    assert written == str(tmp_path / "out" / "a.png")
    assert np.array_equal(read_volume(written).image.numpy(), label.numpy())


def test_archives_are_cases_of_a_data_set(tmp_path, made):
    archive = Path(shutil.make_archive(str(tmp_path / "a"), "zip", made.series(tmp_path / "ct", made.positions())))
    assert_cases(write_cases(tmp_path / "data", {"a.zip": archive}, (7, 5, 4), ".nii.gz"), 3, ["a"])
