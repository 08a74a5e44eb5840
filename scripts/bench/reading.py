"""Time reading and writing against nibabel, SimpleITK and MONAI's readers, with the memory that each takes.

    python -m scripts.bench.reading [--ct DATA/CT_Lung1_001/ct.nii.gz] [--slices 500] [--rounds 3]

Each program runs in a process of its own, in turns, so that a busy machine slows all alike; the median counts. Memory
is what a run takes above what the process held before it. A copy of the CT with one wrong byte in gzip's checksum tells
who verifies it, and the sum of every reader's voxels is compared with ours. Results: a table and results/io.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
from monai.data import ITKReader, NibabelReader, PydicomReader
from monai.transforms import LoadImage
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medunet.io import MedunetReader, read_volume, write_volume

from .measure import RESULTS, ROOT, machine, write_json

DATA = Path(os.environ.get("MEDUNET_TEST_DATA") or ROOT.parent / "shared" / "data")
GOALS = {"read": ("monai NibabelReader", 3.0), "write": ("nibabel", 4.0), "dicom": ("monai ITKReader", 2.0)}
"""What our readers and writers are measured against, and how many times as fast they should be."""

OURS = {"read": "medunet MedunetReader", "write": "medunet write_volume", "dicom": "medunet MedunetReader"}
TITLES = {
    "read": "reading a .nii.gz into float32",
    "write": "writing a .nii.gz of int16",
    "dicom": "reading a DICOM series into float32",
}
MIB = 1 << 20


def load_image(reader: str) -> Callable[[Path], Any]:
    """MONAI's transform as its users call it."""
    readers = {r.__name__: r for r in (ITKReader, NibabelReader, PydicomReader, MedunetReader)}
    return LoadImage(reader=readers[reader](), image_only=True, ensure_channel_first=True)


def read_nibabel(path: Path) -> Any:
    return nibabel.load(path).get_fdata(dtype=np.float32)


def read_sitk(path: Path) -> Any:
    if path.is_dir():
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
        reader.SetOutputPixelType(sitk.sitkFloat32)
        image = reader.Execute()
    else:
        image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    return np.ascontiguousarray(sitk.GetArrayViewFromImage(image).T)


def read_ours(path: Path) -> Any:
    return read_volume(path).image


def write_nibabel(voxels: np.ndarray, path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


def write_sitk(voxels: np.ndarray, path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(voxels.T)), str(path), useCompression=True)


def write_ours(voxels: np.ndarray, path: Path) -> None:
    write_volume(voxels, path, affine=np.eye(4))


def program(task: str, name: str) -> Callable[..., Any]:
    if name.rsplit(maxsplit=1)[-1] in ("NibabelReader", "ITKReader", "PydicomReader", "MedunetReader"):
        return load_image(name.rsplit(maxsplit=1)[-1])
    named: dict[tuple[bool, str], Callable[..., Any]] = {
        (False, "nibabel"): read_nibabel,
        (False, "SimpleITK"): read_sitk,
        (False, "medunet read_volume"): read_ours,
        (True, "nibabel"): write_nibabel,
        (True, "SimpleITK"): write_sitk,
        (True, "medunet write_volume"): write_ours,
    }
    return named[task == "write", name]


PROGRAMS = {
    "read": [
        "monai NibabelReader",
        "monai ITKReader",
        "nibabel",
        "SimpleITK",
        "medunet read_volume",
        "medunet MedunetReader",
    ],
    "write": ["nibabel", "SimpleITK", "medunet write_volume"],
    "dicom": [
        "monai ITKReader",
        "monai PydicomReader",
        "SimpleITK",
        "medunet read_volume",
        "medunet MedunetReader",
    ],
}


def measure_one(task: str, name: str, path: Path, runs: int) -> dict[str, Any]:
    """In a process of its own: seconds, processor seconds of all threads and peak memory, after a run that warms up."""
    run = program(task, name)
    if task == "write":
        voxels = read_ours(path)[0].numpy().astype(np.int16)
        target = path.with_name(f"written-{os.getpid()}.nii.gz")
        work = lambda: run(voxels, target)  # noqa: E731
    else:
        work = lambda: run(path)  # noqa: E731
    result = work()  # warms up: libraries load what they need, the file system holds the file
    facts: dict[str, Any] = {}
    if task == "write":
        facts["file_mib"] = round(target.stat().st_size / MIB, 1)
    else:
        facts |= {"shape": list(np.shape(result)), "sum": float(np.asarray(result).sum(dtype=np.float64))}
    del result
    before = resident_mib("VmRSS")
    reset_peak()
    seconds, cpu_seconds = [], []
    for _ in range(runs):
        start, cpu_start = time.perf_counter(), time.process_time()
        work()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    facts["peak_mib"] = round(resident_mib("VmHWM") - before)
    if task == "write":
        target.unlink()
    if task == "read":
        facts["checksum_verified"] = refuses(run, path.with_name("wrong_checksum.nii.gz"))
    return facts | {"seconds": seconds, "cpu_seconds": cpu_seconds}


def refuses(run: Callable[[Path], Any], path: Path) -> bool:
    try:
        run(path)
    except Exception:
        return True
    return False


def resident_mib(field: str) -> float:
    """A line of /proc/self/status; elsewhere than on Linux the peak of the whole process."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def reset_peak() -> None:
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # see proc(5): sets VmHWM to what is resident now


def make_series(folder: Path, slices: int) -> None:
    """An uncompressed CT series, 512 x 512 x `slices`: a bright cylinder in noise, so that slices differ."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:512, :512]
    body = (np.hypot(rows - 256, columns - 256) < 200).astype(np.int16) * 1000
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for index in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = pydicom.Dataset()
        dataset.file_meta = meta
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = series, study, frame
        dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.PatientName, dataset.PatientID = "", ""
        dataset.StudyDate = dataset.StudyTime = dataset.StudyID = dataset.AccessionNumber = ""
        dataset.SeriesNumber, dataset.InstanceNumber = 1, index + 1
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [-250, -250, index * 0.8], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [0.977, 0.977], 0.8
        dataset.Rows = dataset.Columns = 512
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        pixels = body + rng.integers(0, 100, body.shape, dtype=np.int16)
        dataset.PixelData = pixels.astype("<u2").tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.save_as(folder / f"{index:04d}.dcm", **_as_written(pydicom.__version__))


def _as_written(version: str) -> dict[str, bool]:
    return (
        {"enforce_file_format": True} if int(version.split(".", maxsplit=1)[0]) >= 3 else {"write_like_original": False}
    )


def run_all(ct: Path, slices: int, rounds: int, runs: int, tasks: list[str]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy = folder / "ct.nii.gz"
        copy.write_bytes(ct.read_bytes())
        wrong = bytearray(ct.read_bytes())
        wrong[-8] ^= 1
        (folder / "wrong_checksum.nii.gz").write_bytes(wrong)
        if "dicom" in tasks:
            make_series(folder / "series", slices)
        for task in tasks:
            path = folder / "series" if task == "dicom" else copy
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in PROGRAMS[task]}
            for _ in range(rounds):
                for program_name, records in found.items():
                    records.append(_in_process(task, program_name, path, runs))
            results[task] = {name: _joined(records) for name, records in found.items()}
            rival, _ = GOALS[task]
            for entry in results[task].values():
                for key in ("seconds", "cpu_seconds"):
                    entry[f"{key}_ratio"] = round(results[task][rival][key] / entry[key], 2)
    return results


def _in_process(task: str, name: str, path: Path, runs: int) -> dict[str, Any]:
    words = [sys.executable, "-m", "scripts.bench.reading", "--one", task, name, str(path), "--runs", str(runs)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{task}, {name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _joined(records: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [value for record in records for value in record["seconds"]]
    joined = dict(records[0]) | {
        "seconds": round(statistics.median(seconds), 4),
        "best_seconds": round(min(seconds), 4),
        "cpu_seconds": round(statistics.median(v for record in records for v in record["cpu_seconds"]), 4),
    }
    return joined | {"peak_mib": max(record["peak_mib"] for record in records)}


def print_tables(results: dict[str, Any]) -> None:
    for task, programs in results.items():
        rival, goal = GOALS[task]
        reached = programs[OURS[task]]["seconds_ratio"]
        print(f"\n{TITLES[task]}: {reached:.1f} times as fast as {rival} (goal {goal:g})")
        print(f"  {'program':<24} {'seconds':>8} {'x':>6} {'CPU s':>7} {'x':>6} {'peak MiB':>9}  notes")
        for name, entry in programs.items():
            notes = []
            if "checksum_verified" in entry:
                notes.append("checksum verified" if entry["checksum_verified"] else "wrong checksum accepted")
            if "file_mib" in entry:
                notes.append(f"{entry['file_mib']} MiB")
            if entry.get("sum") != programs[OURS[task]].get("sum"):
                notes.append("other voxels")
            line = f"  {name:<24} {entry['seconds']:>8.3f} {entry['seconds_ratio']:>6.2f}"
            line += f" {entry['cpu_seconds']:>7.3f} {entry['cpu_seconds_ratio']:>6.2f}"
            print(f"{line} {entry['peak_mib']:>9}  {', '.join(notes)}".rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ct", type=Path, default=DATA / "CT_Lung1_001" / "ct.nii.gz")
    parser.add_argument("--slices", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3, help="processes for each program")
    parser.add_argument("--runs", type=int, default=3, help="timed runs in each process")
    parser.add_argument("--tasks", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--output", type=Path, default=RESULTS / "io.json")
    parser.add_argument("--one", nargs=3, metavar=("TASK", "PROGRAM", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        task, name, path = options.one
        print(json.dumps(measure_one(task, name, Path(path), options.runs)))
        return
    results = run_all(options.ct, options.slices, options.rounds, options.runs, options.tasks)
    print_tables(results)
    document = {
        "machine": machine("monai", "nibabel", "SimpleITK", "itk-io", "pydicom"),
        "slices": options.slices,
        "results": results,
    }
    write_json(options.output, document)


if __name__ == "__main__":
    main()
