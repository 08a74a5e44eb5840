"""Cases of `scripts.bench.unusual` in formats other than DICOM and NIfTI in one file."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import tifffile
from PIL import Image

from .unusual_cases import Case


def related_cases(folder: Path) -> list[Case]:
    """What nibabel reads beside NIfTI in one file: 5 x 6 x 7 voxels of 2 x 3 x 4 mm."""
    affine = np.diag([2.0, 3, 4, 1])
    affine[:3, 3] = 10, -20, 30
    voxels = np.arange(210).reshape(5, 6, 7).astype(np.int16)
    truth = voxels.astype(np.float64), affine
    cases = []

    def add(name: str, rule: str, file: str, image: object, change: Callable[[bytes], bytes] = bytes) -> None:
        path = folder / file
        nib.save(image, path)
        path.write_bytes(change(path.read_bytes()))
        cases.append(Case("NIfTI", name, rule, path, truth if rule == "C" else None))

    def qfac_of_0(content: bytes) -> bytes:
        return content[:76] + bytes(4) + content[80:]

    def flipped(content: bytes) -> bytes:
        return content[:-60] + bytes([content[-60] ^ 4]) + content[-59:]

    plain = nib.Nifti1Image(voxels, affine)
    by_qform = nib.Nifti1Image(voxels, affine)
    by_qform.set_qform(affine, code=1)
    by_qform.set_sform(None, code=0)
    add("qfac 0", "C", "qfac.nii", by_qform, qfac_of_0)
    add("pair of .hdr and .img", "C", "pair.hdr", nib.Nifti1Pair(voxels, affine))
    add("bzip2", "C", "packed.nii.bz2", plain)
    add("bzip2, one flipped bit", "R", "flipped.nii.bz2", plain, flipped)
    add("MGZ", "C", "free.mgz", nib.MGHImage(voxels, affine))
    unplaced = nib.MGHImage(voxels, affine)
    add("MGH without orientation", "R", "free.mgh", unplaced, lambda c: c[:28] + bytes(2) + c[30:])
    add("Analyze 7.5 (left side not defined)", "R", "analyze.hdr", nib.AnalyzeImage(voxels, np.diag([2.0, 3, 4, 1])))
    return cases


def itk_cases(folder: Path) -> list[Case]:
    """NRRD and MetaImage of 5 x 6 x 7 voxels, 2 x 3 x 4 mm."""
    voxels = np.random.default_rng(0).integers(0, 500, (5, 6, 7)).astype(np.int16)
    image = sitk.GetImageFromArray(voxels.T)
    image.SetSpacing((2, 3, 4))
    truth = voxels.astype(np.float64), np.diag([-2.0, -3, 4, 1])
    cases = []

    def add(
        name: str, rule: str, ending: str, change: Callable[[bytes], bytes] = bytes, *, compressed: bool = True
    ) -> None:
        path = folder / f"itk_{len(cases):02d}{ending}"
        sitk.WriteImage(image, str(path), useCompression=compressed)
        data = next((path.with_suffix(s) for s in (".zraw", ".raw.gz") if path.with_suffix(s).exists()), path)
        data.write_bytes(change(data.read_bytes()))
        cases.append(Case("ITK", f"{ending}, {name}", rule, path, truth if rule == "C" else None))

    def without(field: bytes) -> Callable[[bytes], bytes]:
        return lambda c: c[: c.index(field)] + c[c.index(b"\n", c.index(field)) + 1 :]

    for ending in (".mha", ".mhd", ".nrrd", ".nhdr"):
        add("compressed", "C", ending)
        add("one flipped bit", "R", ending, lambda c: c[:-60] + bytes([c[-60] ^ 4]) + c[-59:])
        add("wrong checksum", "R", ending, lambda c: c[:-7] + bytes([c[-7] ^ 1]) + c[-6:])
        add("truncated", "R", ending, lambda c: c[:-40])
        add("data behind the voxels", "R", ending, lambda c: c + bytes(30))
    for ending in (".mha", ".nrrd"):
        add("truncated, not compressed", "R", ending, lambda c: c[:-40], compressed=False)
        add("header larger than the data", "R", ending, lambda c: c.replace(b"5 6 7", b"5 6 9"))
    add("no ElementSpacing", "R", ".mha", without(b"ElementSpacing"))
    add("no space directions", "R", ".nrrd", without(b"space directions"))
    add("no space", "R", ".nrrd", lambda c: c.replace(b"space: left-posterior-superior", b"space dimension: 3"))
    return cases


def picture_cases(folder: Path) -> list[Case]:
    """PNG and TIFF; the truth is ``(C, x, y[, z])``, as MONAI's readers order axes."""
    grey = np.arange(9 * 7, dtype=np.uint8).reshape(7, 9)  # 7 rows
    deep = (np.arange(7 * 9 * 3, dtype=np.uint16) * 300).reshape(7, 9, 3)
    stack = (np.arange(4 * 2 * 7 * 9, dtype=np.uint16) * 3).reshape(4, 2, 7, 9)  # z, c, y, x
    cases = []

    def add(name: str, rule: str, path: Path, truth: np.ndarray | None = None) -> None:
        cases.append(Case("picture", name, rule, path, None if truth is None else (truth, np.eye(4))))

    def tiff(name: str, pixels: np.ndarray, **options: object) -> Path:
        tifffile.imwrite(folder / name, pixels, **options)
        return folder / name

    def png(name: str, depth: int, colour_type: int, rows: list[bytes]) -> Path:
        def chunk(kind: bytes, content: bytes) -> bytes:
            return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

        header = (9).to_bytes(4, "big") + (7).to_bytes(4, "big") + bytes([depth, colour_type, 0, 0, 0])
        body = zlib.compress(b"".join(b"\0" + row for row in rows))
        content = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n" + content)
        return folder / name

    Image.fromarray(grey).save(folder / "grey.png")
    add("PNG", "C", folder / "grey.png", grey.T[None])
    content = (folder / "grey.png").read_bytes()
    place = content.index(b"IDAT") + 20
    (folder / "flipped.png").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    add("PNG, one flipped bit", "R", folder / "flipped.png")
    (folder / "cut.png").write_bytes(content[:-20])
    add("PNG, truncated", "R", folder / "cut.png")
    add("PNG, RGB of 16 bits", "C", png("deep.png", 16, 2, [r.astype(">u2").tobytes() for r in deep]), deep.T)
    both = deep[..., :2]
    add("PNG, 16 bits and alpha", "W", png("alpha.png", 16, 4, [r.astype(">u2").tobytes() for r in both]), both.T[:1])
    few = grey % 4
    rows = [np.packbits([int(d) for v in row for d in f"{v:02b}"]).tobytes() for row in few]
    add("PNG, labels of 2 bits", "C", png("few.png", 2, 0, rows), few.T[None])
    indexed = Image.fromarray(few)
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    indexed.save(folder / "palette.png")
    add("PNG, labels as a palette", "C", folder / "palette.png", few.T[None])

    whole = stack.transpose(1, 3, 2, 0)
    add("TIFF of pages", "C", tiff("pages.tif", stack[:, 0], photometric="minisblack", metadata=None), whole[:1])
    add("ImageJ, channels", "C", tiff("c.tif", stack[0], imagej=True, metadata={"axes": "CYX"}), whole[..., 0])
    add("ImageJ, depth and channels", "C", tiff("zc.tif", stack, imagej=True, metadata={"axes": "ZCYX"}), whole)
    add("OME, depth and channels", "C", tiff("zc.ome.tif", stack, ome=True, metadata={"axes": "ZCYX"}), whole)
    add("ImageJ, time", "R", tiff("t.tif", stack[:, 0], imagej=True, metadata={"axes": "TYX"}))
    add("TIFF, 0 is white", "C", tiff("white.tif", grey, photometric="miniswhite"), 255 - grey.T[None])
    add("TIFF, CMYK", "R", tiff("cmyk.tif", np.zeros((7, 9, 4), np.uint8), photometric="separated"))
    path = tiff("deflate.tif", np.tile(grey, (9, 9)), compression="zlib")
    with tifffile.TiffFile(path) as opened:
        place = opened.pages[0].dataoffsets[0] + 30
    content = path.read_bytes()
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    add("TIFF, deflate, one flipped bit", "R", path)
    path = tiff("endless.tif", stack[:, 0], photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as opened:
        last = opened.pages[3].offset
        end = last + 2 + 12 * len(opened.pages[3].tags)
    content = path.read_bytes()
    path.write_bytes(content[:end] + last.to_bytes(4, "little") + content[end + 4 :])
    add("TIFF, pages without end", "R", path)
    return cases
