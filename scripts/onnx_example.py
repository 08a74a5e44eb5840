"""Segment an image with an ONNX file of `medunet bundle export`: onnxruntime, numpy, nibabel and Pillow.

python scripts/onnx_example.py NETWORK.onnx IMAGE.nii.gz LABELS.nii.gz     (2D: IMAGE.png LABELS.png)
Objects are numbered by `medunet.transforms.objects_from_maps`; the page "Export a model" has a recipe without medunet.
"""

import itertools
import json
import sys

import nibabel as nib
import numpy as np
import onnxruntime as ort
import PIL.Image


def resample(image, size, ratio):  # channels (C, *spatial) linearly to another size: new voxel k is the old k * ratio
    for axis, (n, step) in enumerate(zip(size, ratio, strict=True), start=1):
        at = np.clip(np.arange(n) * step, 0, image.shape[axis] - 1)
        low, weight = at.astype(int), (at % 1).astype(np.float32).reshape(-1, *(1,) * (image.ndim - axis - 1))
        high = np.minimum(low + 1, image.shape[axis] - 1)
        image = image.take(low, axis) * (1 - weight) + image.take(high, axis) * weight
    return image


def normalise(image, step):
    if step["_target_"] == "ScaleIntensityRanged":  # CT
        return np.interp(image, [step["a_min"], step["a_max"]], [step["b_min"], step["b_max"]]).astype(np.float32)
    if step["_target_"] != "NormalizeIntensityd" or step.keys() - {"_target_", "keys", "channel_wise"}:
        raise SystemExit(f"this example does not know the step {step}")
    axes = tuple(range(1, image.ndim)) if step.get("channel_wise") else None
    return (image - image.mean(axes, keepdims=True)) / np.maximum(image.std(axes, keepdims=True), 1e-9)


def logits(session, image, tile, edge):  # each tile sees all that its answer depends on: tiles change no voxel
    halo, margin, stride, rest, multiple = (
        np.array(tile[key]) for key in ("halo", "margin", "stride", "remainder", "multiple")
    )
    size, step, found = np.array(image.shape[1:]), edge // stride * stride, None
    width = step + 2 * margin + (rest - step - 2 * margin) % multiple
    if margin.any():  # an unpadded network: the image is mirrored at its borders
        image = np.pad(image, [(0, 0), *((m, m + 2 * s) for m, s in zip(margin, step, strict=True))], "reflect")
    for start in map(np.array, itertools.product(*map(range, size * 0, size, step))):
        end = np.minimum(start + step, size)
        low = start if margin.any() else np.maximum(start - halo, 0)
        high = start + width if margin.any() else np.minimum(start + step + halo, size)
        answer = session.run(None, {"image": image[(None, slice(None), *map(slice, low, high))]})[0][0]
        found = np.empty((len(answer), *size), np.float32) if found is None else found
        found[(slice(None), *map(slice, start, end))] = answer[(slice(None), *map(slice, start - low, end - low))]
    return found


def read(source, about):  # channels (C, *spatial), and the image as given and as turned; a picture (rows, columns, C)
    if about["spatial_dims"] == 2:
        image = np.asarray(PIL.Image.open(source), np.float32).T
        return image[None] if image.ndim == 2 else image, None, None
    given = nib.load(source)
    turned = nib.as_closest_canonical(given) if about["orientation"] == "RAS" else given
    return turned.get_fdata(dtype=np.float32)[None], given, turned


def decide(maps, about):
    if about["objects"] is None:
        return np.array([label["value"] for label in about["labels"]], np.int16)[maps.argmax(0)]
    from medunet.transforms import objects_from_maps  # noqa: PLC0415 - optional

    share = np.exp(maps - maps.max(0))
    maps = 1 / (1 + np.exp(-maps)) if about["activation"] == "sigmoid" else share / share.sum(0)
    return objects_from_maps(maps, **about["objects"]).numbers


def main(network, source, target):
    session = ort.InferenceSession(network, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["medunet"])
    image, given, turned = read(source, about)
    unknown = [key for key in ("regions", "postprocessing", "mirror_axes", "view_scales") if about[key]]
    if unknown or len(image) != about["in_channels"] or (given and about["in_channels"] > 1):
        raise SystemExit(f"this example knows one channel, or those of a picture, and none of {unknown}")
    size, zooms = image.shape[1:], turned.header.get_zooms() if turned else (1, 1)
    ratio = np.divide(about["spacing_mm"] or zooms, zooms)
    for step in about["preprocessing"]:
        if step["_target_"] == "Spacingd":
            image = resample(image, [round((n - 1) / r + 1) for n, r in zip(size, ratio, strict=True)], ratio)
        elif step["_target_"] != "Orientationd":
            image = normalise(image, step)
    edge = 128 if about["tile"]["exact"] else max(image.shape) + 64  # instance norm sees the whole image
    labels = decide(resample(logits(session, image, about["tile"], edge), size, 1 / ratio), about)
    if given is None:
        PIL.Image.fromarray(labels.T.astype(np.uint16)).save(target)
        return
    back = nib.orientations.ornt_transform(nib.io_orientation(turned.affine), nib.io_orientation(given.affine))
    nib.save(nib.Nifti1Image(labels, turned.affine).as_reoriented(back), target)


if __name__ == "__main__":
    main(*sys.argv[1:])
