"""Made DICOM: small series whose every voxel can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

ROWS, COLUMNS = 5, 7


def regular_positions(n: int = 4, dz: float = 2.5) -> np.ndarray:
    """Positions (LPS mm) of upright slices."""
    return np.array([(10, 20, 30 + dz * k) for k in range(n)], dtype=float)


def slice_pixels(number: int) -> np.ndarray:
    """Stored values of a slice: column + 7 row + 100 number."""
    return (np.arange(ROWS * COLUMNS, dtype="<i2") + 100 * number).reshape(ROWS, COLUMNS)


def empty_file(path: Path, kind: str, syntax: str = ExplicitVRLittleEndian) -> FileDataset:
    """A DICOM file without content but a patient."""
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
        header.is_little_endian, header.is_implicit_VR = True, False
        header.save_as(path, write_like_original=False)
    return path


def add_pixels(header: Dataset, pixels: np.ndarray) -> None:
    header.Rows, header.Columns = pixels.shape[-2:]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = pixels.dtype.itemsize * 8
    header.HighBit, header.PixelRepresentation = header.BitsStored - 1, int(pixels.dtype.kind == "i")
    header.PixelData = pixels.tobytes()


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
    """CT slices at given positions (LPS mm); the names of the files run against the order of the positions.

    A tag may be a function of the slice's number; None leaves the tag empty, 'del' takes it away.
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
        for tag, given in tags.items():
            value = given(number) if callable(given) else given
            if isinstance(value, str) and value == "del":
                delattr(header, tag)
            else:
                setattr(header, tag, value)
        if syntax.startswith(("1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.5")):
            header["PixelData"].VR = "OB"
            header["PixelData"].is_undefined_length = True
        save(header)
    return folder


def item(**tags: Any) -> Sequence:
    dataset = Dataset()
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    return Sequence([dataset])


def write_multiframe(path: Path, positions: np.ndarray, *, moments: list[int] | None = None, **tags: Any) -> Path:
    """An enhanced CT whose frame k has the pixels of slice k and slope k + 1; `moments` are TemporalPositionIndex."""
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
    for tag, value in tags.items():
        setattr(header, tag, value)
    return save(header)


class MadeDicom:
    """What the tests of DICOM share, in one fixture: test modules cannot import each other."""

    positions = staticmethod(regular_positions)
    pixels = staticmethod(slice_pixels)
    series = staticmethod(write_series)
    multiframe = staticmethod(write_multiframe)
    empty_file = staticmethod(empty_file)
    save = staticmethod(save)


@pytest.fixture(scope="session")
def made() -> MadeDicom:
    return MadeDicom()
