"""Cases of `scripts.bench.unusual`: broken, odd or unusual images, with the truth if there is one."""

from __future__ import annotations

import gzip
import importlib.util
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel as nib
import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from .measure import ROOT

Truth = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    kind: str
    name: str
    rule: str
    path: Path | tuple[Path, Path]
    truth: Truth | None = None
    spatial_dims: int | None = None


def dicom_cases(folder: Path) -> list[Case]:
    """Series made by the helper of the tests: 4 slices of 5 x 7 pixels."""
    spec = importlib.util.spec_from_file_location("made", ROOT / "tests" / "io" / "conftest.py")
    made = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(made)  # type: ignore[union-attr]
    affine = np.diag([-0.7, -0.5, 2.5, 1.0])
    affine[:3, 3] = -10, -20, 30
    voxels = np.stack([made.slice_pixels(k).T for k in range(4)], axis=-1).astype(np.float64) - 1000
    truth = (voxels, affine)
    positions = made.regular_positions()
    cases: list[Case] = []

    def add(name: str, rule: str, *series: dict[str, Any], truth: Truth | None = None, dims: int | None = None) -> Path:
        path = folder / f"dicom_{len(cases):02d}"
        for number, options in enumerate(series):
            where = options.pop("positions", positions)
            made.write_series(path, where, **{"prefix": "abc"[number]} | options)
        path.mkdir(exist_ok=True)
        cases.append(Case("DICOM", name, rule, path, truth, dims))
        return path

    def patch(path: Path, old: bytes, new: bytes) -> None:
        for file in path.iterdir():
            content = file.read_bytes()
            assert old in content
            file.write_bytes(content.replace(old, new.ljust(len(old))))

    one = {"series": "1.2.3"}
    tilted = positions + np.outer(np.arange(4), [0, 0.5, 0])
    sheared = affine.copy()
    sheared[1, 2] = -0.5
    localizer = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "positions": positions[:1] + 100}
    add("plain series", "C", {}, truth=truth)
    add("missing slice", "R", {"positions": np.delete(made.regular_positions(7), 3, axis=0)})
    add("uneven spacing", "R", {"positions": positions * [1, 1, 0] + np.outer([0, 2, 5, 7], [0, 0, 1])})
    add("duplicate position, same pixels", "W", dict(one), {**one, "positions": positions[:2]}, truth=truth)
    add("duplicate position, other pixels", "R", {"positions": positions[[0, 1, 1, 2]]})
    add("gantry tilt of 11 degrees", "C", {"positions": tilted}, truth=(voxels, sheared))
    add("two series in a folder", "R", {"series": "1.2.3"}, {"series": "1.2.4", "positions": positions[:3] + 50})
    add("localizer in the series", "W", dict(one), {**one, **localizer}, truth=truth)
    second = {**one, "positions": made.regular_positions(6)[4:]}
    add("mixed orientation", "R", dict(one), {**second, "ImageOrientationPatient": [0, 1, 0, 1, 0, 0]})
    add("mixed matrix", "R", dict(one), {**second, "Rows": 7, "Columns": 5})
    add("mixed PixelSpacing", "R", dict(one), {**second, "PixelSpacing": [0.5, 0.8]})
    add("InstanceNumber reversed", "C", {"InstanceNumber": lambda k: 9 - k}, truth=truth)
    add("InstanceNumber missing", "C", {"InstanceNumber": "del"}, truth=truth)
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        add(f"no {tag}", "R", {tag: "del"})
    for name, spacing in (("zero", [0, 0]), ("negative", [-0.5, 0.7]), ("absurd", [1e6, 1e6])):
        add(f"PixelSpacing {name}", "R", {"PixelSpacing": spacing})
    patch(add("PixelSpacing NaN", "R", {"PixelSpacing": [0.25, 0.125]}), b"0.25\\0.125", b"nan\\nan")
    add("orientation not orthonormal", "R", {"ImageOrientationPatient": [1, 0, 0, 0.5, 1, 0]})
    patch(add("RescaleSlope 0", "R", {"RescaleSlope": "12345"}), b"12345 ", b"0")
    patch(add("RescaleSlope NaN", "R", {"RescaleSlope": "12345"}), b"12345 ", b"nan")
    slopes = (voxels + 1000) * (0.1 * np.arange(1, 5)) - 1000
    add("a slope for each slice (PET)", "C", {"RescaleSlope": lambda k: 0.1 * (k + 1)}, truth=(slopes, affine))
    add("no rescale", "W", {"RescaleSlope": "del", "RescaleIntercept": "del"}, truth=(voxels + 1000, affine))
    add("MONOCHROME1 (CT: values are measurements)", "C", {"PhotometricInterpretation": "MONOCHROME1"}, truth=truth)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    add("RGB", "R", colour | {"PixelData": lambda k: made.slice_pixels(k).tobytes() * 3})
    file = add("truncated pixel data", "R", {}) / "a02"
    file.write_bytes(file.read_bytes()[:-20])
    file = add("slice of zeros", "R", {}) / "a01"
    file.write_bytes(bytes(file.stat().st_size))
    file = add("slice cut in its preamble", "R", {}) / "a01"
    file.write_bytes(bytes(100))
    file = add("slice that is a link to nothing", "R", {}) / "a01"
    file.unlink()
    file.symlink_to(folder / "nothing")
    half = {"positions": positions[:2]}, {"positions": positions[2:]}
    for name, tag in (("studies", "StudyInstanceUID"), ("frames of reference", "FrameOfReferenceUID")):
        add(f"two {name} in one series", "R", *({**one, **part, tag: f"1.2.{n}"} for n, part in enumerate(half)))
    nameless = {"SeriesInstanceUID": "del"}
    add(
        "two patients, no SeriesInstanceUID",
        "R",
        *({**nameless, **part, "PatientID": n} for n, part in zip("ab", half, strict=True)),
    )
    add("slope missing, intercept given", "W", {"RescaleSlope": "del"}, truth=truth)
    growing = positions[[0] * 8] * [1, 1, 0] + np.outer([0, 2.5, 5, 7.5, 10, 15, 20, 25], [0, 0, 1])
    add("slices become thicker", "R", {"positions": growing, "SliceThickness": lambda k: 5 if k > 4 else 2.5})
    path = add("segmentation beside its series", "W", {}, truth=truth)
    segmentation = made.empty_file(path / "segmentation", "1.2.840.10008.5.1.4.1.1.66.4")
    segmentation.Rows, segmentation.Columns = made.ROWS, made.COLUMNS
    made.save(segmentation)
    path = add("RT Dose", "R")
    made.save(made.empty_file(path / "dose", "1.2.840.10008.5.1.4.1.1.481.2"))
    path = add("DICOM file named .nii.gz", "R", {"positions": positions[:1]})
    cases[-1] = replace(cases[-1], path=(path / "a01").rename(path / "a01.nii.gz"))
    cases += compressed_cases(folder, made, truth)
    cases += vendor_cases(folder, made, truth) + plane_cases(folder, made)
    enhanced = folder / "enhanced.dcm"
    made.write_multiframe(enhanced, positions)
    frames = (voxels + 1000) * np.arange(1, 5) - 1000
    cases.append(Case("DICOM", "enhanced multi-frame", "C", enhanced, (frames, affine)))
    moments = {"positions": np.repeat(positions, 2, axis=0), "TemporalPositionIdentifier": lambda k: 1 + k % 2}
    add("temporal sequence", "R", moments)
    path = add("junk files and a DICOMDIR", "W", {}, truth=truth)
    (path / "notes.txt").write_text("junk")
    directory(made, path, ["S1"])
    path = add("`../` in a DICOMDIR's ReferencedFileID", "R", {})
    directory(made, path, ["..", "secret"])
    add("single slice for a 3D model", "R", {"positions": positions[:1]}, dims=3)
    add("empty folder", "R")
    padded = voxels.copy()
    padded[0, 0] = 1 - 1000

    def with_padding(k: int) -> np.ndarray:
        pixels = made.slice_pixels(k)
        pixels[0, 0] = -2000
        return pixels

    add(
        "padding value outside the range",
        "C",
        {"pixels": with_padding, "PixelPaddingValue": -2000},
        truth=(padded, affine),
    )
    add("padding alone", "R", {"pixels": lambda k: np.full((5, 7), -2000, "<i2"), "PixelPaddingValue": -2000})
    return cases


def vendor_cases(folder: Path, made: Any, truth: Truth) -> list[Case]:
    """Volumes whose slices are not simply one file each, and stored values that are looked up."""
    affine = truth[1]
    tiles = np.stack([made.slice_pixels(k).T for k in range(5)], axis=-1) + 1000.0
    reversed_affine = affine.copy()
    reversed_affine[2, 2:] = -2.5, 30
    stored = truth[0] + 1000
    cases: list[Case] = []

    def add(name: str, rule: str, path: Path, voxels: np.ndarray | None = None, placed: np.ndarray = affine) -> None:
        cases.append(Case("DICOM", name, rule, path, None if voxels is None else (voxels, placed)))

    def series(number: int, **options: Any) -> Path:
        return made.write_series(folder / f"vendor_{number}", made.regular_positions(), **options)

    add("Siemens mosaic", "C", made.write_mosaic(folder / "mosaic.dcm"), tiles)
    descending = made.write_mosaic(folder / "mosaic_r.dcm", normal=-1.0)
    add("Siemens mosaic, numbered from head to foot", "C", descending, tiles, reversed_affine)
    anonymous = made.write_mosaic(folder / "mosaic_p.dcm")
    header = dcmread(anonymous)
    header.remove_private_tags()
    made.save(header)
    add("Siemens mosaic without its CSA header", "R", anonymous)
    bare = made.write_mosaic(folder / "mosaic_s.dcm", SpacingBetweenSlices="del")
    add("Siemens mosaic without SpacingBetweenSlices", "R", bare)
    table = Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [400, 0, 16], [3 * k for k in range(400)], "US"
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    lookup = {"ModalityLUTSequence": Sequence([table])}
    no_rescale = {"RescaleSlope": "del", "RescaleIntercept": "del"}
    add("values of a Modality LUT", "C", series(1, **lookup, **no_rescale), 3 * stored)
    add("Modality LUT and rescale slope", "R", series(2, **lookup))
    twice = np.tile(made.regular_positions(), (2, 1))
    volumes = made.write_series(folder / "vendor_3", twice, series="1.2.3")
    add("two volumes, distinguished by InstanceNumber", "R", volumes)
    add("nuclear medicine, reconstructed", "C", made.write_nm(folder / "nm.dcm"), stored)
    no_distance = made.write_nm(folder / "nm_s.dcm", SpacingBetweenSlices="del")
    add("nuclear medicine without SpacingBetweenSlices", "R", no_distance)
    add("ZIP archive of a series", "C", Path(shutil.make_archive(str(folder / "ct"), "zip", series(4))), truth[0])
    with zipfile.ZipFile(folder / "outside.zip", "w") as archive:
        archive.writestr("../outside", b"x")
    add("`../` in a ZIP archive", "R", folder / "outside.zip")
    return cases


def plane_cases(folder: Path, made: Any) -> list[Case]:
    """Images in the plane that have no place in a patient."""
    grey = made.slice_pixels(0).astype("<u2")
    rgb = np.random.default_rng(0).integers(0, 256, (*grey.shape, 3)).astype(np.uint8)
    ybr = np.full_like(rgb, 128)
    ybr[..., 0] = rgb[..., 0]
    palette_only = {"PhotometricInterpretation": "PALETTE COLOR"}
    palette: dict[str, Any] = dict(palette_only)
    for name, table in (("Red", bytes(range(256))), ("Green", bytes(range(255, -1, -1))), ("Blue", bytes(256))):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        palette[f"{name}PaletteColorLookupTableData"] = table
    coloured = np.stack([rgb[..., 0].T, 255 - rgb[..., 0].T, np.zeros(grey.T.shape)])
    no_spacing = {"PixelSpacing": "del"}
    rows: list[tuple[str, str, dict[str, Any], np.ndarray | None]] = [
        ("radiograph", "C", {}, grey.T[None]),
        ("radiograph, MONOCHROME1", "W", {"PhotometricInterpretation": "MONOCHROME1"}, 65535 - grey.T[None]),
        ("spacing at the detector only", "W", no_spacing | {"ImagerPixelSpacing": [0.2, 0.1]}, grey.T[None]),
        ("no PixelSpacing", "W", no_spacing, grey.T[None]),
        ("no PixelSpacing, pixels not square", "R", no_spacing | {"PixelAspectRatio": ["4", "3"]}, None),
        ("PixelSpacing zero", "R", {"PixelSpacing": [0, 0]}, None),
        ("RGB", "C", {"pixels": rgb}, rgb.T),
        ("YBR", "C", {"pixels": ybr, "PhotometricInterpretation": "YBR_FULL"}, np.stack([rgb[..., 0].T] * 3)),
        ("palette", "C", {"pixels": rgb[..., 0].copy(), **palette}, coloured),
        ("palette without its tables", "R", {"pixels": rgb[..., 0].copy()} | palette_only, None),
        ("ultrasound clip", "R", {"pixels": np.stack([grey] * 3)}, None),
    ]
    cases = []
    for number, (name, rule, options, voxels) in enumerate(rows):
        path = made.write_picture(folder / f"plane_{number}.dcm", **options)
        truth = None if voxels is None else (voxels.astype(np.float64), np.eye(4))
        cases.append(Case("DICOM 2D", name, rule, path, truth))
    return [*cases, replace(cases[0], name="radiograph for a 3D model", rule="R", truth=None, spatial_dims=3)]


def compressed_cases(folder: Path, made: Any, truth: Truth) -> list[Case]:
    """The transfer syntaxes, and one that has no decoder."""

    def rle(pixels: np.ndarray) -> bytes:
        planes = [pixels.astype(">u2").tobytes()[byte::2] for byte in (0, 1)]
        header = np.zeros(16, "<u4")
        header[:3] = 2, 64, 64 + 1 + len(planes[0])
        return header.tobytes() + b"".join(bytes([len(plane) - 1]) + plane for plane in planes)

    encoders: list[tuple[str, str, str, Callable[[np.ndarray], bytes]]] = [
        ("RLE", "C", "5", rle),
        ("JPEG lossless", "C", "4.70", lambda p: imagecodecs.jpeg8_encode(p, lossless=True, predictor=1)),
        ("JPEG-LS", "C", "4.80", imagecodecs.jpegls_encode),
        ("JPEG 2000", "C", "4.90", lambda p: imagecodecs.jpeg2k_encode(p, reversible=True, codecformat="j2k")),
        ("codec missing (MPEG-4)", "R", "4.103", lambda p: b" no image "),
    ]
    cases = []
    for name, rule, last, encode in encoders:
        made.write_series(
            folder / name,
            made.regular_positions(),
            syntax=f"1.2.840.10008.1.2.{last}",
            pixels=lambda k: made.slice_pixels(k).astype("<u2"),
            PixelData=lambda k, encode=encode: encapsulate([encode(made.slice_pixels(k).astype("<u2"))]),
        )
        cases.append(Case("DICOM", name, rule, folder / name, truth if rule == "C" else None))
    return cases


def directory(made: Any, folder: Path, name: list[str]) -> None:
    """A DICOMDIR that names one file."""
    file = made.empty_file(folder / "DICOMDIR", "1.2.840.10008.1.3.10")
    record = Dataset()
    record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", name
    file.DirectoryRecordSequence = Sequence([record])
    made.save(file)


def nifti_cases(folder: Path) -> list[Case]:
    """Volumes of 5 x 6 x 7 voxels, 2 x 3 x 4 mm."""
    affine = np.diag([2.0, 3, 4, 1])
    affine[:3, 3] = 10, -20, 30
    voxels = np.arange(210).reshape(5, 6, 7).astype(np.int16)
    cases: list[Case] = []

    def add(
        name: str,
        rule: str,
        *,
        data: np.ndarray = voxels,
        sform: np.ndarray | None = affine,
        qform: np.ndarray | None = affine,
        truth: Truth | None = None,
        kind: Any = nib.Nifti1Image,
        change: Callable[[bytearray], Any] | None = None,
        suffix: str = ".nii",
        pack: Callable[[bytes], bytes] = bytes,
        **header: Any,
    ) -> None:
        path = folder / f"nifti_{len(cases):02d}.nii"
        image = kind(
            data,
            affine if sform is None else sform,
            kind.header_class(endianness=">") if name == "big-endian" else None,
        )
        image.set_sform(sform, code=0 if sform is None else 1)
        image.set_qform(qform, code=0 if qform is None else 1)
        nib.save(image, path)
        content = bytearray(path.read_bytes())
        if header:
            fields = kind.header_class(bytes(content[:348]), check=False)
            for key, value in header.items():
                fields[key] = value
            content[:348] = fields.binaryblock
        if change is not None:
            change(content)
        path.unlink()
        path = path.with_suffix(suffix)
        path.write_bytes(pack(bytes(content)))
        cases.append(Case("NIfTI", name, rule, path, truth if rule == "C" else None))

    def pixdim(index: int, value: float) -> np.ndarray:
        field = np.array([1, 2, 3, 4, 1, 1, 1, 1], np.float32)
        field[index] = value
        return field

    plain = (voxels.astype(np.float64), affine)
    shear, mirrored = affine.copy(), affine @ np.diag([-1.0, 1, 1, 1])
    shear[1, 2] = 0.7
    holes = voxels.astype(np.float32)
    holes[1, 2, 3] = np.nan
    noise = np.random.default_rng(0).integers(0, 30000, (32, 32, 32)).astype(np.int16)
    packed = {"suffix": ".nii.gz", "data": noise}

    def wrong_crc(content: bytes) -> bytes:
        data = bytearray(gzip.compress(content))
        data[-6] ^= 1
        return bytes(data)

    add("sform and qform disagree", "R", qform=np.diag([1.0, 1, 1, 1]))
    add("neither sform nor qform", "R", sform=None, qform=None)
    add("singular affine", "R", qform=None, srow_z=[0, 0, 0, 0])
    add("NaN in the affine", "R", qform=None, srow_z=[0, 0, np.nan, 0])
    add("sheared sform", "C", sform=shear, qform=None, truth=(plain[0], shear))
    add("pixdim 0", "R", pixdim=pixdim(2, 0))
    add("negative determinant", "C", sform=mirrored, qform=mirrored, truth=(plain[0], mirrored))
    add("NaN voxels", "R", data=holes)
    add("scl_slope 0", "C", scl_slope=0, scl_inter=7, truth=plain)
    add("scl_slope NaN", "C", scl_slope=np.nan, scl_inter=7, truth=plain)
    add("truncated gzip", "R", pack=lambda c: gzip.compress(c)[:-2000], **packed)
    add("wrong CRC", "R", pack=wrong_crc, **packed)
    add("not gzip in spite of its name", "R", suffix=".nii.gz")
    add("zero bytes", "R", pack=lambda c: b"")
    add("header larger than the file", "R", dim=[3, 50, 60, 70, 1, 1, 1, 1])
    add("absurd size (54 TB)", "R", dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])
    add("4D, channels not declared", "R", data=np.stack([voxels, voxels], axis=-1))
    add("5D", "R", data=np.zeros((3, 4, 5, 2, 3), np.int16))
    add("complex", "R", data=np.zeros((3, 4, 5), np.complex64))
    add("RGB", "R", data=np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    add("big-endian", "C", truth=plain)
    add("NIfTI-2", "C", kind=nib.Nifti2Image, truth=plain)
    return cases


def label_cases(folder: Path) -> list[Case]:
    """An image and a label each; the data set knows the values 0 and 1."""
    affine = np.diag([2.0, 3, 4, 1])
    shifted = affine.copy()
    shifted[0, 3] = 6
    label = np.zeros((5, 6, 7), np.uint8)
    label[1:3] = 1

    def pair(number: int, name: str, rule: str, values: np.ndarray, placement: np.ndarray = affine) -> Case:
        paths = folder / f"image_{number}.nii.gz", folder / f"label_{number}.nii.gz"
        nib.save(nib.Nifti1Image(np.arange(210).reshape(5, 6, 7).astype(np.int16), affine), paths[0])
        nib.save(nib.Nifti1Image(values, placement), paths[1])
        return Case("label", name, rule, paths)

    return [
        pair(0, "shape unlike the image", "R", label[:, :, :6]),
        pair(1, "affine unlike the image", "R", label, shifted),
        pair(2, "float, but integral", "W", label.astype(np.float32)),
        pair(3, "fractional values", "R", label * np.float32(0.5)),
        pair(4, "unexpected value", "R", label * np.uint8(7)),
        pair(5, "negative value", "R", -label.astype(np.int16)),
        pair(6, "empty label", "C", label * np.uint8(0)),
    ]
