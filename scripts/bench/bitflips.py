"""Flip one bit in files of each format and count how many are read with wrong voxels, silently.

    python scripts.bench.bitflips [--flips 200] [--out scripts/results/io_bitflips.md]

The bits are spread evenly over the part of the file that has the voxels, with its checksum. A format without a checksum
cannot detect a flip that leaves the stream valid; the table names these formats.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
import tifffile
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, generate_uid

from medunet.errors import MedunetError
from medunet.io import read_volume, write_volume

from .measure import RESULTS

SHAPE = (40, 41, 12)


@dataclass(frozen=True)
class Format:
    """One row of the table: the file to read, the file to damage, and whether the voxels have a checksum."""

    name: str
    path: Path
    damaged: Path
    checksum: str


def formats(folder: Path) -> list[Format]:
    """Write the same smooth volume, or one slice of it, in each format."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    noise = np.random.default_rng(0).normal(0, 20, SHAPE)
    voxels = (1000 * np.exp(-2 * (x**2 + y**2 + z**2)) + noise + 200).clip(0).astype(np.uint16)
    affine = np.diag([0.7, 0.7, 2.5, 1.0])
    image = sitk.GetImageFromArray(voxels.T)
    found = []

    def add(name: str, file: str, write: Callable[[Path], object], checksum: str, damaged: str | None = None) -> None:
        write(folder / file)
        found.append(Format(name, folder / file, folder / (damaged or file), checksum))

    def by_itk(path: Path) -> None:
        sitk.WriteImage(image, str(path), useCompression=True)

    add(".mha, compressed", "a.mha", by_itk, "Adler-32")
    add(".mhd with .zraw", "a.mhd", by_itk, "Adler-32", "a.zraw")
    add(".nrrd, gzip", "a.nrrd", by_itk, "CRC-32")
    add(".nhdr with .raw.gz", "b.nhdr", by_itk, "CRC-32", "b.raw.gz")
    add(".nii.gz", "a.nii.gz", lambda path: write_volume(voxels, path, affine=affine), "CRC-32")
    add(".nii.bz2", "a.nii.bz2", lambda path: nib.save(nib.Nifti1Image(voxels, affine), path), "CRC-32")
    add(".mgz", "a.mgz", lambda path: nib.save(nib.MGHImage(voxels.astype(np.int16), affine), path), "CRC-32")
    add("PNG", "a.png", lambda path: write_volume(voxels[..., 6], path), "CRC-32")
    for name, compression, checksum in (
        ("deflate", "zlib", "Adler-32"),
        ("LZW", "lzw", "none"),
        ("none", None, "none"),
    ):
        add(
            f"TIFF, {name}",
            f"{name}.tif",
            lambda path, compression=compression: tifffile.imwrite(path, voxels.T, compression=compression),
            checksum,
        )
    add("DICOM, deflated", "a.dcm", lambda path: deflated_dicom(path, voxels[..., 6].T), "none")
    return found


def deflated_dicom(path: Path, pixels: np.ndarray) -> None:
    """Write one CT slice with the deflated transfer syntax."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, DeflatedExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    slice_ = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    slice_.SeriesInstanceUID, slice_.StudyInstanceUID, slice_.Modality = generate_uid(), generate_uid(), "CT"
    slice_.ImagePositionPatient, slice_.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    slice_.PixelSpacing, slice_.RescaleSlope, slice_.RescaleIntercept = [0.7, 0.7], 1, 0
    slice_.Rows, slice_.Columns = pixels.shape
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation, slice_.PixelRepresentation = 1, "MONOCHROME2", 0
    slice_.BitsAllocated = slice_.BitsStored = 16
    slice_.HighBit = 15
    slice_.PixelData = pixels.tobytes()
    pydicom.dcmwrite(path, slice_)


def measure(one: Format, flips: int) -> tuple[int, int, int]:
    """Return how many damaged files are rejected, read with the right voxels, and read with wrong ones."""
    whole = one.damaged.read_bytes()
    expected = np.asarray(read_volume(one.path).image)
    first = 8 * (len(whole) // 4 if one.path == one.damaged else 16)  # behind the header
    rejected = right = wrong = 0
    for bit in np.linspace(first, 8 * len(whole) - 1, flips).astype(int):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        one.damaged.write_bytes(data)
        try:
            found = np.asarray(read_volume(one.path).image)
        except MedunetError:
            rejected += 1
        else:
            right, wrong = (right + 1, wrong) if np.array_equal(found, expected) else (right, wrong + 1)
    one.damaged.write_bytes(whole)
    return rejected, right, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS / "io_bitflips.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = [
        "# One flipped bit",
        "",
        f"{options.flips} files per format, each with one flipped bit among voxels and checksum, read by medunet.",
        "Written by `scripts.bench.bitflips`.",
        "",
        "| format | checksum | rejected | read, right voxels | read, wrong voxels |",
        "| --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for one in formats(Path(folder)):
            rejected, right, wrong = measure(one, options.flips)
            lines.append(f"| {one.name} | {one.checksum} | {rejected} | {right} | {wrong} |")
            print(lines[-1], flush=True)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
