"""Fixtures that the tests of several packages share."""

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from commands import run_medunet
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from shared import shared

CELLS: dict[str, Any] = {"kind": "cells", "cases": 4, "test_cases": 2, "size": (48, 48)}
VOLUMES: dict[str, Any] = {"kind": "ct", "cases": 6, "size": (36, 34, 26)}


def pytest_configure(config: pytest.Config) -> None:
    # MONAI's LoadImage builds all its readers, and one complains where NVIDIA's codec is not installed.
    config.addinivalue_line("filterwarnings", "ignore:NvImgCodecPydicomReader:UserWarning")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache that belongs to the tests: the cache of the user is neither read nor written."""
    folder = shared(tmp_path_factory, "cache", lambda _: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDUNET_CACHE_DIR", str(folder))
        patch.setenv("MEDUNET_CONFIG_DIR", str(folder / "config"))
        # torch.compile would load kernels that were compiled for other instructions and give wrong numbers
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def create_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], None] | None]:
    """Let new SQLite stores be copies of one, because MLflow takes seconds; yield the original function."""
    if "monai" not in sys.modules:  # tests that train import it
        yield None
        return
    try:
        from medunet.tracking import server
    except ModuleNotFoundError:  # a machine without MLflow
        yield None
        return
    original = server.create_store
    with pytest.MonkeyPatch.context() as patch:

        def copy(path: Path) -> None:
            folder = shared(tmp_path_factory, "store", lambda folder: original(folder / "mlruns.db"))
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "mlruns.db", path)

        patch.setattr(server, "create_store", copy)
        yield original


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2D data set: labelled cases `cells_000` to `cells_003`, and `cells_004` and `cells_005` for testing."""
    from medunet.datasets import write_phantom_dataset

    return shared(tmp_path_factory, "cells", lambda folder: write_phantom_dataset(folder, **CELLS))


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 3D data set of six labelled cases, `ct_000` to `ct_005`, with five classes."""
    from medunet.datasets import write_phantom_dataset

    return shared(tmp_path_factory, "volumes", lambda folder: write_phantom_dataset(folder, **VOLUMES))


def alternating(data: Path) -> list[list[str]]:
    """Return a split in two folds: every other case."""
    from medunet.datasets import open_dataset

    names = [case.name for case in open_dataset(data).cases]
    return [names[0::2], names[1::2]]


def train(bundle: str, data: Path, folder: Path, *, tracked: bool = False) -> None:
    from small import SMALL_2D, SMALL_3D

    from medunet.bundle import find_bundle
    from medunet.runs import train_bundle

    changes = {**(SMALL_2D if bundle == "unet_2d" else SMALL_3D), "epochs": 2, "split": alternating(data)}
    uri = f"sqlite:///{folder}/mlruns.db" if tracked else ""
    train_bundle(find_bundle(bundle), data, folder / "run", changes=changes, device="cpu", tracking_uri=uri)


@pytest.fixture(scope="session")
def run_2d(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`unet_2d` trained on fold 0 of 2 of `cells` for two epochs; `mlruns.db` beside it has its MLflow run."""
    return shared(tmp_path_factory, "run_2d", lambda folder: train("unet_2d", cells, folder, tracked=True)) / "run"


@pytest.fixture(scope="session")
def run_3d(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`unet_3d` trained on fold 0 of 2 of `volumes` for two epochs, not tracked."""
    return shared(tmp_path_factory, "run_3d", lambda folder: train("unet_3d", volumes, folder)) / "run"


@pytest.fixture(scope="session")
def folds_2d(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a cross-validation of `unet_2d` in two folds of `cells`, one epoch each, not tracked."""
    from small import SMALL_2D

    from medunet.bundle import find_bundle
    from medunet.runs import train_folds

    def make(folder: Path) -> None:
        changes = {**SMALL_2D, "epochs": 1, "split": alternating(cells)}
        train_folds(find_bundle("unet_2d"), cells, folder / "out", changes=changes, device="cpu", tracking_uri="")

    return shared(tmp_path_factory, "folds_2d", make) / "out"


@pytest.fixture
def medunet() -> Callable[..., int]:
    """Run `medunet WORDS` in this process and return the exit code."""
    return run_medunet


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def fastest_format(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Each number format in turn as the one that "auto" takes, whatever this CPU multiplies."""
    dtype: torch.dtype = getattr(torch, request.param)
    # by import_module: the package has a function of the same name as this module
    module = importlib.import_module("medunet.runtime.autocast")
    monkeypatch.setattr(module, "fast_dtype", lambda device: dtype)
    return dtype


@pytest.fixture(scope="session")
def test_data(pytestconfig: pytest.Config) -> Path:
    """The folder of real images: MEDUNET_TEST_DATA, or ../shared/data beside the project."""
    folder = Path(os.environ.get("MEDUNET_TEST_DATA") or pytestconfig.rootpath.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("real images are absent: set MEDUNET_TEST_DATA")
    return folder


def save_dicom(header: FileDataset, path: Path) -> None:
    """Write a whole file as PS3.10 has it, with pydicom 3 or 2."""
    if int(pydicom.__version__.partition(".")[0]) >= 3:
        header.save_as(path, enforce_file_format=True)
    else:
        header.is_little_endian, header.is_implicit_VR = True, False
        header.save_as(path, write_like_original=False)


@pytest.fixture(scope="session")
def make_series() -> Callable[..., Path]:
    """Write a CT series of `slices` slices, `rows` x `columns`, into a folder; file names run against the positions."""

    def make(
        folder: Path,
        *,
        columns: int = 23,
        rows: int = 19,
        slices: int = 6,
        cosines: tuple[tuple[float, ...], ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
        origin: tuple[float, ...] = (-10.5, 20.25, -300.0),
        series_uid: str | None = None,
        **tags: object,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        along_row, along_column = (np.array(vector) for vector in cosines)
        normal = np.cross(along_row, along_column)
        study, series, frame = generate_uid(), series_uid or generate_uid(), generate_uid()
        for index in range(slices):
            meta = FileMetaDataset()
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            meta.MediaStorageSOPClassUID = CTImageStorage
            meta.MediaStorageSOPInstanceUID = generate_uid()
            path = folder / f"{series[-4:]}_{slices - index:03d}.dcm"
            header = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
            header.SpecificCharacterSet = "ISO_IR 100"
            header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
            header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = study, series, frame
            header.PatientName, header.PatientID = "Müller^Secret", "ID-4711"
            header.PatientBirthDate, header.PatientSex = "19500101", "F"
            header.StudyDate, header.StudyTime, header.StudyID = "20200102", "030405", "7"
            header.AccessionNumber, header.ReferringPhysicianName = "A1", "Doctor^Hidden"
            header.PositionReferenceIndicator = ""
            header.Modality, header.SeriesNumber, header.InstanceNumber = "CT", 3, index + 1
            header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
            header.Rows, header.Columns, header.PixelSpacing = rows, columns, [0.7, 0.9]
            header.SliceThickness = 2.5
            header.ImageOrientationPatient = [*along_row, *along_column]
            header.ImagePositionPatient = [f"{v:.6f}" for v in np.array(origin) + 2.5 * index * normal]
            header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
            header.BitsAllocated = header.BitsStored = 16
            header.HighBit, header.PixelRepresentation = 15, 1
            header.RescaleSlope, header.RescaleIntercept = 1, -1000
            header.PixelData = np.full((rows, columns), 1000 + index, "<i2").tobytes()
            for tag, value in tags.items():
                if value is None:
                    delattr(header, tag)
                else:
                    setattr(header, tag, value)
            save_dicom(header, path)
        return folder

    return make
