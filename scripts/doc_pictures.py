"""Draw the pictures of the documentation from real images and measured results: `python scripts/doc_pictures.py DATA`.

DATA holds `DSB2018_nuclei` (CC0), `Task04_Hippocampus` (CC BY-SA 4.0) and `CT_Spleen_cropped` (MSD, CC BY-SA 4.0).
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import torch
from matplotlib.patches import Rectangle
from skimage.io import imread
from skimage.segmentation import find_boundaries

from medunet.transforms import BorderWeightMapd, RandDeformd

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "images"
NUCLEI = "00ae65c1c663"
HIPPOCAMPUS = "hippocampus_001.nii.gz"
plt.rcParams.update({"font.size": 9, "axes.titlesize": 9})


def save(figure: plt.Figure, name: str) -> None:
    """Write a figure into the folder of the pictures."""
    figure.savefig(PICTURES / f"{name}.png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def panels(count: int, *, width: float = 3.2, height: float = 3.2) -> tuple[plt.Figure, list[plt.Axes]]:
    """Return a figure with a row of axes without ticks."""
    figure, axes = plt.subplots(1, count, figsize=(width * count, height), squeeze=False)
    for axis in axes[0]:
        axis.set_axis_off()
    return figure, list(axes[0])


def overlap_tile(data: Path) -> None:
    """An image with mirrored borders, the input of one tile and its smaller output."""
    image = imread(data / "DSB2018_nuclei" / "images" / f"{NUCLEI}.png")[..., 0]
    halo = 92  # of the network in the paper: (572 - 388) / 2
    figure, (axis,) = panels(1, width=5, height=5)
    axis.imshow(np.pad(image, halo, mode="reflect"), cmap="gray", alpha=0.55)
    axis.imshow(image, cmap="gray", extent=(halo, halo + image.shape[1], halo + image.shape[0], halo))
    axis.set(xlim=(0, image.shape[1] + 2 * halo), ylim=(image.shape[0] + 2 * halo, 0))
    tile = image.shape[0] // 2
    axis.add_patch(Rectangle((halo, halo), tile, tile, fill=False, color="yellow", linewidth=2))
    axis.add_patch(Rectangle((1, 1), tile + 2 * halo, tile + 2 * halo, fill=False, color="deepskyblue", linewidth=2))
    save(figure, "overlap_tile")


def elastic(data: Path) -> None:
    """A slice with a grid, before and after three random deformations."""
    volume = nib.load(data / "Task04_Hippocampus" / "imagesTr" / HIPPOCAMPUS).get_fdata(dtype="float32")
    label = nib.load(data / "Task04_Hippocampus" / "labelsTr" / HIPPOCAMPUS).get_fdata(dtype="float32")
    middle = volume.shape[2] // 2
    item = {
        "image": torch.from_numpy(volume[None, :, :, middle] / volume.max()),
        "label": torch.from_numpy(label[None, :, :, middle]),
    }
    item = {key: torch.nn.functional.interpolate(value[None], scale_factor=6)[0] for key, value in item.items()}
    item["image"][:, ::24] = item["image"][:, :, ::24] = 1
    options = {"rotate_range": 0.3, "elastic_sigma": 14.0, "control_points": 5}
    transform = RandDeformd(("image", "label"), mode=("bilinear", "nearest"), **options)
    transform.set_random_state(seed=3)
    figure, axes = panels(4, width=2.4, height=3.4)
    for number, axis in enumerate(axes):
        shown = transform(item) if number else item
        axis.imshow(np.asarray(shown["image"][0]).T, cmap="gray", origin="lower", vmin=0, vmax=1)
        axis.contour(np.asarray(shown["label"][0]).T, levels=[0.5, 1.5], colors=["tab:orange", "tab:cyan"])
        axis.set_title("image with a grid" if number == 0 else f"deformed {number}")
    save(figure, "elastic")


def border_weights(data: Path) -> None:
    """Nuclei, their numbers and the weight of each pixel."""
    window = np.s_[:128, :128]
    image = imread(data / "DSB2018_nuclei" / "images" / f"{NUCLEI}.png")[window]
    numbers = imread(data / "DSB2018_nuclei" / "labels" / f"{NUCLEI}.png")[window].astype("int32")
    # gaps between touching nuclei, as in the paper
    numbers[find_boundaries(numbers, mode="inner") & find_boundaries(numbers, mode="outer")] = 0
    transform = BorderWeightMapd(keys="label", output_key="weight")
    weight = np.asarray(transform({"label": torch.from_numpy(numbers[None])})["weight"])[0]
    figure, axes = panels(3)
    axes[0].imshow(image)
    axes[0].set_title("image")
    axes[1].imshow(np.where(numbers == 0, np.nan, numbers % 17), cmap="tab20", interpolation="nearest")
    axes[1].set_title("one number per nucleus")
    shown = axes[2].imshow(weight, cmap="inferno")
    axes[2].set_title("weight of each pixel")
    figure.colorbar(shown, ax=axes[2], fraction=0.046)
    save(figure, "border_weights")


def anisotropic(data: Path) -> None:
    """A CT with thick slices from the front: voxels as stored, and in millimetres."""
    path = next(path for path in (data / "CT_Spleen_cropped").rglob("*.nii.gz") if "label" not in str(path))
    image = nib.load(path)
    plane = image.get_fdata(dtype="float32")[:, image.shape[1] // 2, :].T
    width, _, depth = image.header.get_zooms()[:3]
    figure, axes = panels(2, width=3.6, height=3)
    for axis, aspect, title in zip(axes, (1, depth / width), ("voxels", "millimetres"), strict=True):
        axis.imshow(plane, cmap="gray", origin="lower", vmin=-150, vmax=250, aspect=aspect, interpolation="nearest")
        axis.set_title(f"{title}: slices of {depth:g} mm, pixels of {width:.2g} mm")
    save(figure, "anisotropic")


def sparse(data: Path) -> None:
    """A volume in which three slices are annotated and the others ignored."""
    volume = nib.load(data / "Task04_Hippocampus" / "imagesTr" / HIPPOCAMPUS).get_fdata(dtype="float32")
    label = nib.load(data / "Task04_Hippocampus" / "labelsTr" / HIPPOCAMPUS).get_fdata(dtype="float32")
    annotated = [round(share * volume.shape[2]) for share in (0.35, 0.5, 0.65)]
    x = int(np.argmax((label > 0).sum(axis=(1, 2))))
    ignored = np.ones(volume.shape[1:], dtype=bool)
    ignored[:, annotated] = False
    figure, axes = panels(2, width=3.6)
    for axis in axes:
        axis.imshow(volume[x].T, cmap="gray", origin="lower")
    axes[0].contour(label[x].T, levels=[0.5, 1.5], colors=["tab:orange", "tab:cyan"])
    axes[0].set_title("every voxel annotated")
    shown = np.where(ignored, 3, label[x])
    axes[1].imshow(np.ma.masked_equal(shown, 0).T, cmap="Set2", alpha=0.6, origin="lower", interpolation="nearest")
    axes[1].set_title("three slices annotated, the others are 'ignore'")
    save(figure, "sparse")


def few_images() -> None:
    """Dice against the number of training cases."""
    rows = json.loads((ROOT / "scripts" / "results" / "quality_few.json").read_text())["rows"]
    figure, axis = plt.subplots(figsize=(5, 3))
    for name, marker in (("few", "o"), ("few, without elastic deformation", "x")):
        points = [
            (int(key.split()[0]), row["metrics"]["mean_dice"])
            for key, row in rows.items()
            if key.split(", ", 2)[2:] == [name]
        ]
        axis.plot(*zip(*sorted(points), strict=True), marker, label=f"--preset {name}", alpha=0.7)
    axis.set(xlabel="training cases (each point is one training run)", ylabel="mean Dice of 40 held-out cases")
    axis.set_xticks(sorted({int(key.split()[0]) for key in rows}))
    axis.legend()
    axis.grid(alpha=0.3)
    save(figure, "few_images")


def speed() -> None:
    """Seconds from image to labels, by system."""
    systems = json.loads((ROOT / "scripts" / "results" / "inference.json").read_text())["sections"]["systems"]
    names = ["MONAI, zoo setting", "nnU-Net, no mirroring", "medunet, exact fp32", "medunet"]
    rows = [row for row in systems.values() if row["volume"] == "CT, full size" and row["system"] in names]
    seconds = {row["system"]: statistics.median(row["seconds"]) for row in rows}
    figure, axis = plt.subplots(figsize=(6, 1.9))
    bars = axis.barh(names, [seconds[name] for name in names], color=["0.6", "0.6", "tab:blue", "tab:blue"])
    axis.bar_label(bars, fmt="%.1f s", padding=3)
    axis.set_xlabel("CT of 512 x 512 x 134 voxels: seconds from memory to labels, two CPU cores")
    axis.spines[["top", "right"]].set_visible(False)
    save(figure, "speed")


def main() -> None:
    """Draw all pictures."""
    data = Path(sys.argv[1])
    for draw in (overlap_tile, elastic, border_weights, anisotropic, sparse):
        draw(data)
    few_images()
    speed()


if __name__ == "__main__":
    main()
