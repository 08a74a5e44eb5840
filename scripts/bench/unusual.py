"""What medunet and MONAI's readers do with images that are broken, odd, or merely unusual.

    python scripts.bench.unusual [--out scripts/results/io_rules.md] [--readme README.md]

Every case is made here, with voxels and placement known beforehand. Every reader runs in a process of its own, so that
a crash or a hang is a result too. "reads it" in a case that ought to be refused means that training or a
diagnosis would use it. Placements are compared after both are turned to the nearest axes of the patient.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np
from monai.data import ITKReader, NibabelReader, PILReader, PydicomReader
from monai.transforms import LoadImage

from medunet.datasets import Case as Pair
from medunet.datasets.check.check import check_pair
from medunet.errors import MedunetError
from medunet.io import read_volume

from .measure import RESULTS, write_between
from .unusual_cases import Case, dicom_cases, label_cases, nifti_cases
from .unusual_files import itk_cases, picture_cases, related_cases

README_MARKS = "<!-- io rules -->", "<!-- end of io rules -->"
SECONDS = 60
AFFINE_TOLERANCE_MM = 1e-3
READERS: dict[str, Any] = {r.__name__: r for r in (ITKReader, NibabelReader, PydicomReader, PILReader)}
SUITED = {
    "DICOM": ("ITKReader", "PydicomReader"),
    "DICOM 2D": ("ITKReader", "PydicomReader"),
    "NIfTI": ("ITKReader", "NibabelReader"),
    "ITK": ("ITKReader",),
    "picture": ("ITKReader", "PILReader"),
    "label": ("NibabelReader",),
}


def by_medunet(case: Case) -> str:
    """In words, what medunet does."""
    if isinstance(case.path, tuple):
        pair = Pair("case", (case.path[0],), case.path[1])
        findings = list(check_pair(pair, {"background": 0, "tumour": 1}, level="voxels"))
        errors = [f.cause for f in findings if f.severity == "error"]
        if errors:
            return f"refused: {errors[0]}"
        return "reads it" + (f", warns: {findings[0].cause}" if findings else "")
    try:
        volume = read_volume(case.path, spatial_dims=case.spatial_dims)
    except MedunetError as error:
        return f"refused: {error.cause}"
    found = compare(case, volume.image.numpy(), volume.record.geometry.affine)
    return found + (f", warns: {'; '.join(volume.record.warnings)}" if volume.record.warnings else "")


def by_monai(case: Case, reader: str) -> str:
    """In words, what a reader of MONAI does."""
    load = LoadImage(reader=READERS[reader](), image_only=True, ensure_channel_first=True)
    try:
        images = [load(path) for path in (case.path if isinstance(case.path, tuple) else (case.path,))]
    except Exception as error:
        cause = error.__cause__ or error
        return f"error: {type(cause).__name__}"
    image = images[-1]
    if case.kind == "label":
        return "reads it"
    return compare(case, np.asarray(image), np.asarray(image.affine))


def compare(case: Case, channels: np.ndarray, affine: np.ndarray) -> str:
    """Compare with the truth: pictures as they are, others turned to the nearest axes of the patient."""
    if case.kind in ("picture", "DICOM 2D") and case.truth is not None:
        if channels.shape[3:] == (1,):  # ITK reads a 2D image as a volume of one slice
            channels = channels[..., 0]
        if channels.shape != case.truth[0].shape:
            return f"wrong shape {channels.shape}"
        return "correct" if np.array_equal(channels, case.truth[0]) else "wrong voxels"
    voxels = channels[0]
    if case.truth is None:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        size = " x ".join(map(str, voxels.shape))
        return f"reads it: {size}, {' x '.join(f'{s:.4g}' for s in spacing)} mm"
    if voxels.ndim != 3 or affine.shape != (4, 4):
        return f"wrong shape {voxels.shape}"
    try:
        ours = nib.as_closest_canonical(nib.Nifti1Image(voxels.astype(np.float64), affine))
    except Exception:
        return "wrong placement"
    true = nib.as_closest_canonical(nib.Nifti1Image(*case.truth))
    if ours.shape != true.shape:
        return f"wrong shape {ours.shape}"
    wrong = []
    if not np.allclose(ours.get_fdata(), true.get_fdata(), rtol=1e-6, atol=1e-3):
        wrong.append("voxels")
    if not np.allclose(ours.affine, true.affine, atol=AFFINE_TOLERANCE_MM):
        wrong.append("placement")
    return "wrong " + " and ".join(wrong) if wrong else "correct"


class Worker:
    """A forked process that answers case after case: what kills or stops it is a result, and a new one starts."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection

    def ask(self, task: Callable[..., str], *args: Any) -> str:
        """The answer, or how the process ended."""
        if self._process is None:
            context = multiprocessing.get_context("fork")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        self._pipe.send((task, args))
        try:
            if self._pipe.poll(SECONDS):
                return str(self._pipe.recv())
            answer = f"hangs for more than {SECONDS} s"
        except EOFError:
            self._process.join()
            answer = f"process dies (signal {-(self._process.exitcode or 0)})"
        self._process.kill()
        self._process = None
        return answer


def _serve(pipe: Connection) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    warnings.simplefilter("ignore")
    while True:
        task, args = pipe.recv()
        try:
            answer = task(*args)
        except BaseException as error:
            answer = f"error: {type(error).__name__}"
        pipe.send(answer)


def verdict(rule: str, answer: str) -> bool:
    """Whether an answer obeys the rule."""
    if rule == "R":
        return answer.startswith(("refused", "error"))
    return answer.startswith(("correct", "reads it")) and (rule == "C" or "warns" in answer)


def in_short(answer: str) -> str:
    """The answer without its reasons, for the README."""
    for full, short in (("refused", "rejects"), ("error", "fails"), ("process dies", "crashes"), ("hangs", "hangs")):
        if answer.startswith(full):
            return short
    said = answer.split(",", maxsplit=1)[0].split(":", maxsplit=1)[0].split(" (", maxsplit=1)[0]
    return said + (", warns" if "warns" in answer else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "io_rules.md")
    parser.add_argument("--readme", type=Path, help="also replace the short table between its marks in this file")
    options = parser.parse_args()
    out = options.out
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cases = dicom_cases(root) + nifti_cases(root) + related_cases(root) + itk_cases(root)
        cases += picture_cases(root) + label_cases(root)
        rows, short, score = [], [], {name: [0, 0] for name in ("medunet", *READERS)}
        workers = {name: Worker() for name in score}
        for case in cases:
            answers = {"medunet": workers["medunet"].ask(by_medunet, case)}
            answers |= {name: workers[name].ask(by_monai, case, name) for name in SUITED[case.kind]}
            for name, answer in answers.items():
                score[name][0] += verdict(case.rule, answer)
                score[name][1] += 1
            shown = [answers.get(name, "-") for name in ("medunet", *READERS)]
            rows.append(f"| {case.kind}: {case.name} | {case.rule} | " + " | ".join(shown) + " |")
            short.append(f"| {case.kind}: {case.name} | {case.rule} | " + " | ".join(map(in_short, shown)) + " |")
            print(rows[-1], flush=True)
    totals = ", ".join(f"{name} {good} of {n}" for name, (good, n) in score.items())
    header = "| case | rule | " + " | ".join(("medunet", *READERS)) + " |"
    rule = "|" + " --- |" * (2 + 1 + len(READERS))
    lines = [
        "# What readers do with images that are broken, odd, or merely unusual",
        "",
        f"MONAI {monai.__version__}, Python {platform.python_version()}. Rules: R refuse with an error naming file,",
        "cause and remedy; W read and record a warning; C read correctly. For MONAI any error counts as a refusal, and",
        "a silent reading obeys no W. '-': a reader for other formats. Made by `scripts.bench.unusual`.",
        "",
        f"By the rules: {totals}.",
        "",
        header,
        rule,
        *rows,
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if options.readme:
        text = "\n".join([f"By the rules: {totals}.", "", header, rule, *short])
        write_between(options.readme, README_MARKS, text)
    print(f"written: {out}\n{totals}")


if __name__ == "__main__":
    main()
