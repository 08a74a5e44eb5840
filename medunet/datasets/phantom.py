"""Synthetic images with exact labels: a CT-like body, and touching cells in 2D.

Shapes are drawn in coordinates from -1 to 1 across the field of view and smoothly deformed.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial import cKDTree

from medunet.errors import ConfigError
from medunet.files import write_atomically
from medunet.geometry import flip_ras_lps
from medunet.io import write_volume

from .layouts.manifest import MANIFEST

Kind = Literal["ct", "cells"]
Floats = npt.NDArray[np.float32]

CT_LABELS = {"background": 0, "lungs": 1, "liver": 2, "spleen": 3, "kidneys": 4, "spine": 5}
CELL_LABELS = {"background": 0, "cell": 255}

DEFAULT_SIZES: dict[str, tuple[int, ...]] = {"ct": (64, 64, 48), "cells": (128, 128)}

# range of the spacing along each axis; the field of view is the size times the middle of the range
_SPACINGS_MM = ((2.5, 3.0), (2.5, 3.0), (4.0, 5.0))

_PARTIAL_VOLUME_SIGMA = 0.5  # blur in voxels, as scanners average over a voxel and a little more
_CELL_DIAMETER = 22.0  # mean distance of neighbouring cells in pixels
_MEMBRANE_WIDTH = 2.5  # pixels; at least two, so that cells do not touch over a corner


class Phantom(NamedTuple):
    """A synthetic case."""

    image: Floats  # (*spatial): Hounsfield units, or grey values from 0 to 255
    label: npt.NDArray[np.uint8]  # (*spatial), exactly the shapes of the image
    affine: npt.NDArray[np.float64]  # 4x4, RAS mm
    labels: dict[str, int]  # value by name


def make_phantom(kind: Kind, *, seed: int | Sequence[int], size: Sequence[int] | None = None) -> Phantom:
    """Make one case.

    Args:
        kind: 'ct', or 'cells' (255 inside a cell, 0 on membranes and between cells).
        seed: determines everything; a sequence of numbers if the cases of a set are numbered.
        size: number of voxels along each axis, by default about 64 x 64 x 48 in 3D; CT is up to a tenth larger or
            smaller, because its spacing is drawn from a range.

    Raises:
        ConfigError: unknown kind, or a size that does not fit it.

    Examples:
        >>> phantom = make_phantom("ct", seed=0)
        >>> phantom.image.ndim, sorted(set(phantom.label.ravel().tolist()))
        (3, [0, 1, 2, 3, 4, 5])
    """
    if kind not in DEFAULT_SIZES:
        raise ConfigError("unknown kind of phantom", received=kind, expected=", ".join(DEFAULT_SIZES))
    nominal = tuple(DEFAULT_SIZES[kind] if size is None else size)
    if len(nominal) != len(DEFAULT_SIZES[kind]) or min(nominal) < 16:
        expected = f"{len(DEFAULT_SIZES[kind])} numbers of at least 16"
        raise ConfigError("invalid size of a phantom", received=nominal, expected=expected)
    rng = np.random.default_rng(seed)
    if kind == "cells":
        return _cells(rng, nominal)
    spacing = [round(float(rng.uniform(*bounds)), 3) for bounds in _SPACINGS_MM]
    middle = [sum(bounds) / 2 for bounds in _SPACINGS_MM]
    shape = tuple(round(n * mean / step) for n, mean, step in zip(nominal, middle, spacing, strict=True))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(shape, spacing, strict=True)]  # the centre is 0, 0, 0
    return _body(rng, shape, flip_ras_lps(affine))


def write_phantom_dataset(
    root: str | os.PathLike[str],
    *,
    kind: Kind = "ct",
    cases: int = 16,
    test_cases: int = 0,
    seed: int = 0,
    size: Sequence[int] | None = None,
) -> Path:
    """Write a synthetic data set in the layout of the Medical Segmentation Decathlon.

    Volumes are int16 `.nii.gz`, cells are PNG. The same arguments write equal bytes.

    Args:
        root: folder to write to; files of the same names are replaced.
        kind: 'ct' or 'cells'.
        cases: number of labelled cases for training.
        test_cases: number of further cases; their labels are listed too.
        seed: case n is made from (seed, n).
        size: number of voxels along each axis, as in `make_phantom`.

    Returns:
        The path of `dataset.json`.
    """
    folder = Path(root)
    planar = kind == "cells"
    ending = ".png" if planar else ".nii.gz"
    labels: dict[str, int] = {}
    entries: dict[str, list[dict[str, str]]] = {"Tr": [], "Ts": []}
    for number in range(cases + test_cases):
        phantom = make_phantom(kind, seed=(seed, number), size=size)
        part, labels = "Tr" if number < cases else "Ts", phantom.labels
        image, label = (f"./{what}{part}/{kind}_{number:03d}{ending}" for what in ("images", "labels"))
        stored = np.rint(phantom.image).astype(np.uint8 if planar else np.int16)
        write_volume(stored, folder / image, affine=phantom.affine)
        write_volume(phantom.label, folder / label, affine=phantom.affine)
        entries[part].append({"image": image, "label": label})
    manifest = {
        "name": f"phantom_{kind}",
        "description": "synthetic, by medunet.datasets.phantom; no patient",
        "tensorImageSize": "2D" if planar else "3D",
        "modality": {"0": "microscopy" if planar else "CT"},
        "labels": {str(value): name for name, value in labels.items()},
        "numTraining": cases,
        "numTest": test_cases,
        "training": entries["Tr"],
        "test": entries["Ts"],
    }
    return write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _body(rng: np.random.Generator, shape: tuple[int, ...], affine: npt.NDArray[np.float64]) -> Phantom:
    """A trunk with organs; axes are LPS, as in most CT files."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    x, y, z = (axis + np.float32(0.05) * _smooth_noise(rng, shape, nodes=5) for axis in grid)

    def organ(centre: Sequence[float], radii: Sequence[float]) -> npt.NDArray[np.bool_]:
        cx, cy, cz = np.asarray(centre) + rng.uniform(-0.03, 0.03, 3)
        rx, ry, rz = np.asarray(radii) * rng.uniform(0.9, 1.1, 3)
        return np.asarray(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 < 1)

    width, depth = 0.9 * rng.uniform(0.94, 1.04), 0.72 * rng.uniform(0.94, 1.04)
    radius = np.sqrt((x / width) ** 2 + (y / depth) ** 2)
    hounsfield = np.full(shape, -1000, dtype=np.float32)
    hounsfield[radius < 1] = -100  # fat
    hounsfield[radius < 0.9] = 40  # muscle and bowel
    label = np.zeros(shape, dtype=np.uint8)
    organs: list[tuple[str, float, list[npt.NDArray[np.bool_]]]] = [
        # later ones cover earlier ones
        ("lungs", rng.uniform(-850, -750), [organ((side * 0.42, -0.02, 0.55), (0.3, 0.46, 0.6)) for side in (-1, 1)]),
        ("liver", rng.uniform(100, 120), [organ((-0.38, -0.08, -0.3), (0.42, 0.42, 0.38))]),
        ("spleen", rng.uniform(120, 140), [organ((0.52, 0.1, -0.25), (0.22, 0.26, 0.32))]),
        ("kidneys", rng.uniform(180, 220), [organ((side * 0.34, 0.36, -0.62), (0.16, 0.16, 0.28)) for side in (-1, 1)]),
        ("spine", rng.uniform(350, 450), [organ((0.0, 0.46, 0.0), (0.15, 0.15, 9.0))]),
    ]
    for name, value, masks in organs:
        inside = np.logical_or.reduce(masks) & (radius < 0.95)
        label[inside] = CT_LABELS[name]
        hounsfield[inside] = value
    spine = label == CT_LABELS["spine"]  # vertebrae and discs alternate
    hounsfield[spine] += 80 * np.sin(16 * z[spine] + rng.uniform(0, 2 * np.pi))
    hounsfield += np.where(radius < 1, 10 * _smooth_noise(rng, shape, nodes=9), 0)
    hounsfield = gaussian_filter(hounsfield, _PARTIAL_VOLUME_SIGMA)
    hounsfield += rng.normal(0, rng.uniform(15, 25), shape)
    image = np.clip(hounsfield, -1024, 3071).astype(np.float32)  # 12 bits, as scanners store
    return Phantom(image, label, affine, dict(CT_LABELS))


def _cells(rng: np.random.Generator, shape: tuple[int, ...]) -> Phantom:
    """Warped Voronoi regions of a jittered grid, separated by dark membranes; some cells are missing."""
    rows, columns = shape
    warp = [3.0 * _smooth_noise(rng, shape, nodes=max(6, n // 16)) for n in shape]
    grid = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    pixels = np.stack([axis + shift for axis, shift in zip(grid, warp, strict=True)], axis=-1)
    ticks = [np.arange(-_CELL_DIAMETER, n + _CELL_DIAMETER, _CELL_DIAMETER) for n in shape]
    lattice = np.stack(np.meshgrid(*ticks, indexing="ij"), axis=-1)
    lattice[1::2, :, 1] += _CELL_DIAMETER / 2  # staggered like honeycomb
    centres = lattice.reshape(-1, 2) + rng.uniform(-0.22, 0.22, (lattice.size // 2, 2)) * _CELL_DIAMETER
    (near, far), (first, second) = (np.moveaxis(pair, -1, 0) for pair in cKDTree(centres).query(pixels, k=2))
    # distance to the edge between two regions: (d2^2 - d1^2) / (2 |c2 - c1|)
    edge = (far**2 - near**2) / (2 * np.linalg.norm(centres[first] - centres[second], axis=-1))
    present = rng.random(len(centres)) > 0.12
    inside = (edge > _MEMBRANE_WIDTH / 2) & present[first]
    membrane = (edge <= _MEMBRANE_WIDTH / 2) & (present[first] | present[second])
    brightness = rng.normal(170, 12, len(centres))
    grey = np.where(present[first], brightness[first], 105.0)
    grey += 12 * _smooth_noise(rng, shape, nodes=max(8, rows // 4)) * inside  # organelles
    grey[membrane] = rng.uniform(55, 75)
    grey = gaussian_filter(grey, 0.7) + rng.normal(0, 10, shape)
    image = np.clip(grey, 0, 255).astype(np.float32)
    return Phantom(image, np.where(inside, 255, 0).astype(np.uint8), np.eye(4), dict(CELL_LABELS))


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], *, nodes: int) -> Floats:
    """Return noise of about unit variance: cubic interpolation between normal values at `nodes` points per axis."""
    field = rng.standard_normal((nodes,) * len(shape)).astype(np.float32)
    for axis, n in enumerate(shape):  # one axis at a time by a small matrix: ten times faster than zooming the volume
        matrix = zoom(np.eye(nodes, dtype=np.float32), (n / nodes, 1), order=3, mode="nearest", grid_mode=True)
        field = np.moveaxis(np.tensordot(matrix, field, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(field)
