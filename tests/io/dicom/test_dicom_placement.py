"""Images whose slices have no position of their own: radiographs, colour, nuclear medicine, Siemens mosaics."""

import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from monai.data import MetaTensor, PydicomReader
from monai.transforms import LoadImage, LoadImaged
from pydicom import dcmread

from medunet.datasets import list_inputs, open_dataset
from medunet.datasets.check.check import check_pair
from medunet.errors import DataError, GeometryError
from medunet.io import MedunetReader, SavePredictiond, read_header, read_label, read_volume, write_volume
from medunet.io.dicom.series import picture_files

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)


@pytest.mark.filterwarnings("ignore:PydicomReader. ImageOrientationPatient:UserWarning")
@pytest.mark.parametrize("pixels", [None, RGB])
def test_axes_match_monai_and_itk(tmp_path, made, pixels):
    path = made.picture(tmp_path / "x.dcm", pixels=pixels, ImagerPixelSpacing=[0.4, 0.3])
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
        ({"PixelSpacing": "del", "ImagerPixelSpacing": [0.4, 0.3]}, (0.3, 0.4), "the patient appears magnified"),
        ({"PixelSpacing": "del", "NominalScannedPixelSpacing": [0.4, 0.3]}, (0.3, 0.4), "scanned film"),
        ({"PixelSpacing": "del"}, (1, 1), "unknown and counts as 1"),
    ],
)
def test_the_origin_of_the_pixel_size_is_recorded(tmp_path, made, tags, spacing, warning):
    record = read_header(made.picture(tmp_path / "x.dcm", **tags))
    assert record.geometry.spacing_mm[:2] == pytest.approx(spacing)
    [text] = record.warnings
    assert warning in text


@pytest.mark.parametrize(
    ("tags", "cause"),
    [
        ({"PixelSpacing": "del", "ImagerPixelSpacing": [0.1, -1]}, "impossible ImagerPixelSpacing"),
        ({"PixelSpacing": "del", "PixelAspectRatio": ["4", "3"]}, "pixels of unknown size must be square"),
    ],
)
def test_invalid_pixel_size_is_rejected(tmp_path, made, tags, cause):
    with pytest.raises(GeometryError, match=cause):
        read_header(made.picture(tmp_path / "x.dcm", **tags))


def test_radiographs_are_not_a_volume(tmp_path, made):
    folder = tmp_path / "rays"
    folder.mkdir()
    paths = [made.picture(folder / name, SeriesInstanceUID="1.2.3") for name in ("a.dcm", "b")]
    for path, dims, cause in ((paths[0], 3, "no usable"), (folder, None, "no usable"), (folder, 2, "not several")):
        with pytest.raises(GeometryError, match=cause):
            read_volume(path, spatial_dims=dims)
    assert picture_files(folder) == paths  # but images by themselves
    assert picture_files(made.series(tmp_path / "ct", made.positions())) == []


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


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("kind", "option", "value", "count"), [("mosaic", "normal", 1, 5), ("nm", "spacing", 2.5, 4)])
def test_slices_are_placed_along_their_normal_or_against_it(tmp_path, made, *, kind, option, value, count, sign):
    path = getattr(made, kind)(tmp_path / "x.dcm", **{option: sign * value})
    volume = read_volume(path)
    affine = np.diag([-0.7, -0.5, 2.5, 1.0])
    affine[:3, 3] = -10, -20, 30 if sign > 0 else 30 - 2.5 * (count - 1)
    assert np.allclose(volume.image.affine, affine)
    assert volume.record.geometry.is_close(read_header(path).geometry)
    planes = [made.pixels(k).T + (1000 if kind == "mosaic" else 0) for k in range(count)]
    assert np.array_equal(volume.image[0].numpy(), np.stack(planes[::sign], axis=-1))


@pytest.mark.parametrize(
    "tags", [{"SpacingBetweenSlices": "del"}, {"DetectorInformationSequence": "del"}, {"SliceVector": [1, 2, 3]}]
)
def test_nuclear_image_that_does_not_place_its_slices_is_rejected(tmp_path, made, tags):
    with pytest.raises(GeometryError, match="lacks the positions of its slices"):
        read_header(made.nm(tmp_path / "nm.dcm", **tags))


def test_gated_nuclear_image_has_phases_and_projections_are_2d_images(tmp_path, made):
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


@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed (scripts/other_programs.sh)")
@pytest.mark.parametrize("normal", [1.0, -1.0])
def test_mosaics_are_read_as_dcm2niix_converts_them(tmp_path, made, normal):
    folder = tmp_path / "mosaics"
    folder.mkdir()
    for moment in (1, 2):
        made.mosaic(folder / f"{moment}.dcm", normal=normal, moment=moment)
    subprocess.run(["dcm2niix", "-f", "out", "-o", tmp_path, folder], check=True, capture_output=True)
    theirs = nib.as_closest_canonical(nib.load(tmp_path / "out.nii"))
    for phase in (0, 1):
        image = read_volume(folder, phase=phase).image
        ours = nib.as_closest_canonical(nib.Nifti1Image(image[0].numpy(), image.affine.numpy()))
        assert np.allclose(ours.affine, theirs.affine, atol=1e-4)
        assert np.array_equal(ours.get_fdata(), theirs.get_fdata()[..., phase])


@pytest.mark.parametrize(
    ("tags", "error", "cause"),
    [
        ({}, DataError, "no CSA header that places its slices"),
        ({"SpacingBetweenSlices": "del"}, GeometryError, "no SpacingBetweenSlices"),
        ({"ImagePositionPatient": "del"}, GeometryError, "no usable ImagePositionPatient"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]}, GeometryError, "SliceNormalVector must be normal"),
        ({"Rows": 14}, DataError, "cannot be divided into its tiles"),
    ],
)
def test_mosaics_that_do_not_place_their_slices_are_rejected(tmp_path, made, tags, error, cause):
    path = made.mosaic(tmp_path / "m.dcm", **tags)
    if not tags:
        header = dcmread(path)
        header.remove_private_tags()
        made.save(header)
    with pytest.raises(error, match=cause):
        read_header(path)


def test_damaged_headers_are_rejected(tmp_path, made):
    path = made.mosaic(tmp_path / "m.dcm", SpacingBetweenSlices=2.5)
    content = path.read_bytes()
    place = content.index(b"SV10\4\3\2\1") + 8  # the number of tags of the CSA header
    path.write_bytes(content[:place] + b"\xff\xff\xff\x7f" + content[place + 4 :])
    with pytest.raises(DataError, match="damaged header of a mosaic"):
        read_header(path)
