"""Synthetic DICOM: small series whose voxels can be computed by hand."""

import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    NuclearMedicineImageStorage,
    generate_uid,
)
from pydicom.uid import DigitalXRayImageStorageForPresentation as DigitalXRayImageStorage

ROWS, COLUMNS = 5, 7


def regular_positions(n: int = 4, dz: float = 2.5) -> np.ndarray:
    """Return positions (LPS mm) of upright slices."""
    return np.array([(10, 20, 30 + dz * k) for k in range(n)], dtype=float)


def slice_pixels(number: int) -> np.ndarray:
    """Return stored values of a slice: column + 7 row + 100 number."""
    return (np.arange(ROWS * COLUMNS, dtype="<i2") + 100 * number).reshape(ROWS, COLUMNS)


def empty_file(path: Path, kind: str, syntax: str = ExplicitVRLittleEndian) -> FileDataset:
    """Return a DICOM file with nothing but a patient."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = kind
    meta.MediaStorageSOPInstanceUID = generate_uid()
    header = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    header.SOPClassUID, header.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    header.PatientName, header.PatientID = "Secret^Name", "SECRET-ID"
    return header


def save(header: FileDataset) -> Path:
    """Write a whole file with pydicom 2 or 3."""
    path = Path(header.filename)
    if int(pydicom.__version__.partition(".")[0]) >= 3:
        header.save_as(path, enforce_file_format=True)
    else:
        header.is_little_endian, header.is_implicit_VR = True, header.file_meta.TransferSyntaxUID.is_implicit_VR
        header.save_as(path, write_like_original=False)
    return path


def add_pixels(header: Dataset, pixels: np.ndarray) -> None:
    header.Rows, header.Columns = pixels.shape[-2:]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = pixels.dtype.itemsize * 8
    header.HighBit, header.PixelRepresentation = header.BitsStored - 1, int(pixels.dtype.kind == "i")
    header.PixelData = pixels.tobytes()


def with_tags(header: Any, tags: dict[str, Any]) -> Any:
    """Return the header with tags set, or removed if their value is 'del'."""
    for tag, value in tags.items():
        if isinstance(value, str) and value == "del":
            delattr(header, tag)
        else:
            setattr(header, tag, value)
    return header


def write_series(
    folder: Path,
    positions: np.ndarray,
    *,
    series: str | None = None,
    prefix: str = "s",
    pixels: Callable[[int], np.ndarray] = slice_pixels,
    syntax: str = ExplicitVRLittleEndian,
    **tags: Any,
) -> Path:
    """Write CT slices at positions (LPS mm); the names of the files have the reverse order of the positions.

    A tag may be a function of the slice's number; None leaves the tag empty, 'del' removes it.
    """
    folder.mkdir(exist_ok=True)
    series = series or generate_uid()
    for number, position in enumerate(positions):
        header = empty_file(folder / f"{prefix}{len(positions) - number:02d}", CTImageStorage, syntax)
        header.SeriesInstanceUID, header.Modality = series, "CT"
        header.PixelSpacing = [0.5, 0.7]
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        header.ImagePositionPatient = [float(p) for p in position]
        header.RescaleSlope, header.RescaleIntercept = 1, -1000
        header.InstanceNumber = number + 1
        add_pixels(header, pixels(number))
        with_tags(header, {tag: given(number) if callable(given) else given for tag, given in tags.items()})
        if syntax.startswith(("1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.5")):
            header["PixelData"].VR = "OB"
            header["PixelData"].is_undefined_length = True
        save(header)
    return folder


def item(**tags: Any) -> Sequence:
    return Sequence([with_tags(Dataset(), tags)])


def replace_bytes(folder: Path, old: bytes, new: bytes) -> None:
    """Replace bytes that occur once in each file of a folder."""
    for file in folder.iterdir():
        content = file.read_bytes()
        assert content.count(old) == 1
        file.write_bytes(content.replace(old, new))


def write_multiframe(path: Path, positions: np.ndarray, *, moments: list[int] | None = None, **tags: Any) -> Path:
    """Write an enhanced CT whose frame k has the pixels of slice k and slope k + 1; `moments` are temporal indices."""
    header = empty_file(path, EnhancedCTImageStorage)
    header.SeriesInstanceUID, header.Modality = generate_uid(), "CT"
    header.NumberOfFrames = len(positions)
    shared = Dataset()
    shared.PixelMeasuresSequence = item(PixelSpacing=[0.5, 0.7], SliceThickness=2.5)
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    header.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for number, position in enumerate(positions):
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=[float(p) for p in position])
        frame.PixelValueTransformationSequence = item(RescaleSlope=1 + number, RescaleIntercept=-1000, RescaleType="HU")
        if moments is not None:
            frame.FrameContentSequence = item(TemporalPositionIndex=moments[number])
        frames.append(frame)
    header.PerFrameFunctionalGroupsSequence = Sequence(frames)
    add_pixels(header, np.stack([slice_pixels(number) for number in range(len(positions))]))
    return save(with_tags(header, tags))


def csa_header(*tags: tuple[str, str, list[Any]]) -> bytes:
    """Return a Siemens CSA2 header of tags (name, representation, values); each has six items or more, as real ones."""
    content = b"SV10\4\3\2\1" + struct.pack("<2I", len(tags), 77)
    for name, kind, values in tags:
        n_items = max(6, len(values))
        content += struct.pack("<64si4s3i", name.encode(), len(values), kind.encode(), 0, n_items, 77)
        for number in range(n_items):
            text = f"{values[number]}\0".encode() if number < len(values) else b""
            content += struct.pack("<4i", len(text), len(text), 77, len(text)) + text + bytes(-len(text) % 4)
    return content + bytes(len(content) % 2)


def write_mosaic(path: Path, *, slices: int = 5, normal: float = 1.0, moment: int = 1, **tags: Any) -> Path:
    """Write a Siemens mosaic whose tile k has the pixels of slice k; the first tile is placed at (10, 20, 30) LPS mm.

    `normal` is the sign of the CSA header's normal, `moment` the AcquisitionNumber. A tag may be 'del'.
    """
    header = empty_file(path, MRImageStorage)
    header.SeriesInstanceUID, header.StudyInstanceUID = "1.2.3", "1.2.4"
    header.Modality, header.Manufacturer = "MR", "SIEMENS"
    header.SeriesNumber, header.SeriesDescription = 7, "mosaic"
    header.AcquisitionNumber = header.InstanceNumber = moment
    header.AcquisitionDate, header.AcquisitionTime = "20200101", f"1200{moment:02d}"
    header.RepetitionTime, header.EchoTime = "2000", "30"
    header.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    tiles = int(np.ceil(np.sqrt(slices)))
    pixels = np.zeros((tiles * ROWS, tiles * COLUMNS), "<u2")
    for k in range(slices):
        row, column = divmod(k, tiles)
        tile = slice_pixels(k) + 1000 * moment
        pixels[row * ROWS : (row + 1) * ROWS, column * COLUMNS : (column + 1) * COLUMNS] = tile
    header.PixelSpacing, header.SpacingBetweenSlices, header.SliceThickness = [0.5, 0.7], 2.5, 2
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    corner = np.array([10, 20, 30]) - (tiles - 1) / 2 * np.array([0.7 * COLUMNS, 0.5 * ROWS, 0])
    header.ImagePositionPatient = [float(x) for x in corner]
    add_pixels(header, pixels)
    block = header.private_block(0x29, "SIEMENS CSA HEADER", create=True)
    csa = csa_header(
        ("NumberOfImagesInMosaic", "US", [slices]),
        ("SliceNormalVector", "FD", [0.0, 0.0, normal]),
        ("AcquisitionMatrixText", "SH", [f"{COLUMNS}*{ROWS}"]),
        ("MosaicRefAcqTimes", "FD", [float(k) for k in range(slices)]),
    )
    block.add_new(0x08, "CS", "IMAGE NUM 4")
    block.add_new(0x10, "OB", csa)
    return save(with_tags(header, tags))


def write_picture(path: Path, *, pixels: np.ndarray | None = None, **tags: Any) -> Path:
    """Write a radiograph without a position in a patient, 0.2 mm between rows and 0.1 mm between columns.

    Pixels with a last axis of three are colour, and a first axis of several counts frames. A tag may be 'del'.
    """
    header = empty_file(path, DigitalXRayImageStorage)
    header.SeriesInstanceUID, header.StudyInstanceUID, header.Modality = generate_uid(), "1.2.4", "DX"
    header.PixelSpacing = [0.2, 0.1]
    pixels = slice_pixels(0).astype("<u2") if pixels is None else pixels
    colour = pixels.ndim > 2 and pixels.shape[-1] == 3
    add_pixels(header, pixels[..., 0] if colour else pixels)
    if colour:
        header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, "RGB", 0
        header.PixelData = pixels.tobytes()
    if pixels.ndim - colour == 3:
        header.NumberOfFrames = len(pixels)
    return save(with_tags(header, tags))


def write_nm(path: Path, *, spacing: float = 2.5, slices: int = 4, **tags: Any) -> Path:
    """Write a reconstructed SPECT whose frame k has the pixels of slice k; the detector is at (10, 20, 30) LPS mm."""
    header = empty_file(path, NuclearMedicineImageStorage)
    header.SeriesInstanceUID, header.StudyInstanceUID, header.Modality = generate_uid(), "1.2.4", "NM"
    header.SeriesNumber = header.InstanceNumber = 1
    header.ImageType = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    header.PixelSpacing, header.SpacingBetweenSlices, header.SliceThickness = [0.5, 0.7], spacing, abs(spacing)
    header.DetectorInformationSequence = item(
        ImagePositionPatient=[10, 20, 30], ImageOrientationPatient=[1, 0, 0, 0, 1, 0]
    )
    header.NumberOfFrames = header.NumberOfSlices = slices
    header.FrameIncrementPointer, header.SliceVector = 0x00540080, list(range(1, slices + 1))
    add_pixels(header, np.stack([slice_pixels(k).astype("<u2") for k in range(slices)]))
    return save(with_tags(header, tags))


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    """Helpers of the DICOM tests in one fixture, because test modules cannot import each other."""
    builders = {"series": write_series, "multiframe": write_multiframe, "mosaic": write_mosaic}
    builders |= {"picture": write_picture, "nm": write_nm, "empty_file": empty_file, "save": save}
    return SimpleNamespace(positions=regular_positions, pixels=slice_pixels, replace=replace_bytes, **builders)
