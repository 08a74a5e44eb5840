"""StarDist and Cellpose 3 for `scripts.bench.instances`, which starts this file in their environment.

    PYTHON instance_programs.py stardist|cellpose TRAIN TEST WORK MINUTES

Both are trained from scratch with the defaults and the augmentation of their own examples. What their defaults say in
epochs is scaled to the minutes: StarDist halves the learning rate after a tenth of the epochs without progress, and an
epoch of Cellpose is one batch, so that its warm-up and its final decay fit. A step of Cellpose with its 8 images takes
25 seconds of a core, so it gets batches of 2 and a quarter of its learning rate. The minutes are CPU time of this
process, which has one thread, so that other programs on the machine do not matter.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZE, REPEATS = 2048, 3  # pixels and times of the image whose seconds are measured
Predict = Callable[[np.ndarray], np.ndarray]
Images = list[np.ndarray]


def augment(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn, mirror, scale the intensities and add noise, as StarDist's training example does."""
    turns, mirrored = np.random.randint(4), np.random.randint(2)  # the generator that StarDist seeds
    image, label = np.rot90(image, turns), np.rot90(label, turns)
    image, label = (image[::-1], label[::-1]) if mirrored else (image, label)
    image = image * np.random.uniform(0.6, 2) + np.random.uniform(-0.2, 0.2)
    return image + 0.02 * np.random.uniform() * np.random.normal(size=image.shape), label


def stardist(images: Images, labels: Images, work: Path, minutes: float) -> tuple[Predict, float]:
    """Return the trained StarDist as a function, and its CPU minutes of training."""
    from csbdeep.utils import normalize  # noqa: PLC0415
    from stardist.models import Config2D, StarDist2D  # noqa: PLC0415
    from tensorflow.keras.callbacks import LambdaCallback  # noqa: PLC0415

    images = [normalize(image, 1, 99.8, axis=(0, 1)) for image in images]
    config = Config2D(
        n_rays=32,
        grid=(2, 2),
        n_channel_in=images[0].shape[-1],
        train_steps_per_epoch=20,
        train_reduce_lr={"factor": 0.5, "patience": 4, "min_delta": 0},
        train_tensorboard=False,
    )
    model = StarDist2D(config, name="stardist", basedir=str(work))
    model.prepare_for_training()
    end, steps = time.process_time() + 60 * minutes, 0

    def stop(*_: Any, **__: Any) -> None:
        nonlocal steps
        steps += 1
        model.keras_model.stop_training = time.process_time() > end

    model.callbacks.append(LambdaCallback(on_train_batch_end=stop))
    held = images[::10], labels[::10]
    rest = [k for k in range(len(images)) if k % 10]
    model.train(
        [images[k] for k in rest], [labels[k] for k in rest], validation_data=held, epochs=10_000, augmenter=augment
    )
    used = minutes + (time.process_time() - end) / 60
    print("steps", steps, "CPU minutes", used, flush=True)
    model.optimize_thresholds(*held)
    return lambda image: model.predict_instances(normalize(image, 1, 99.8, axis=(0, 1)))[0], used


def cellpose(images: Images, labels: Images, work: Path, minutes: float) -> tuple[Predict, float]:
    """Return the trained Cellpose as a function, and its CPU minutes of training."""
    import torch  # noqa: PLC0415
    from cellpose import io  # noqa: PLC0415
    from cellpose.dynamics import labels_to_flows  # noqa: PLC0415
    from cellpose.models import CellposeModel  # noqa: PLC0415
    from cellpose.train import train_seg  # noqa: PLC0415

    io.logger_setup()
    torch.manual_seed(0)
    kept = [k for k, label in enumerate(labels) if label.any()]
    images = [images[k].mean(axis=-1) for k in kept]
    flows = labels_to_flows([labels[k] for k in kept], device=torch.device("cpu"))
    options: dict[str, Any] = {"channels": [0, 0], "min_train_masks": 1, "batch_size": 2, "nimg_per_epoch": 2}
    options |= {"learning_rate": 0.05, "weight_decay": 1e-5, "SGD": True}
    options |= {"save_path": str(work), "save_every": 25, "save_each": True}

    def train(steps: int) -> tuple[Any, Path, float]:
        begun = time.process_time()
        model = CellposeModel(gpu=False, pretrained_model=False)
        file = train_seg(model.net, images, flows, n_epochs=steps, model_name="cellpose", **options)[0]
        return model, file, (time.process_time() - begun) / 60

    few, more = train(5)[2], train(45)[2]  # the difference is free of the preparation
    step = (more - few) / 40
    steps = int((minutes - few) / step)
    print("steps", steps, "of CPU seconds", 60 * step, flush=True)
    _, file, used = train(steps)
    print("CPU minutes", used, flush=True)
    return cellpose_of(file), used


def cellpose_of(file: Path) -> Predict:
    """Return a trained model as a function; the diameter is Cellpose's default, the mean of the training labels."""
    from cellpose.models import CellposeModel  # noqa: PLC0415

    model = CellposeModel(gpu=False, pretrained_model=str(file))
    return lambda image: model.eval(image.mean(axis=-1), channels=[0, 0], diameter=model.diam_labels)[0]


def read(path: Path) -> np.ndarray:
    """Return an image, `(rows, columns, channels)`."""
    from skimage.io import imread  # noqa: PLC0415

    image = imread(path).astype(np.float32)
    return image[..., :3] if image.ndim == 3 else image[..., None]


def predict_all(predict: Predict, test: Path, work: Path) -> None:
    """Predict the test images, and measure the seconds of a large image."""
    from skimage.io import imsave  # noqa: PLC0415

    (work / "pred").mkdir(exist_ok=True)
    files = sorted((test / "images").iterdir())
    for path in files:
        imsave(work / "pred" / f"{path.stem}.tif", predict(read(path)).astype(np.uint16), check_contrast=False)
    image = read(files[0])
    times = -(-SIZE // np.array(image.shape[:2]))
    large = np.tile(image, (*times, 1))[:SIZE, :SIZE].squeeze().astype(np.uint8)
    imsave(work / "large.png", large, check_contrast=False)
    seconds = []
    for _ in range(REPEATS):
        begun = time.process_time()
        imsave(work / "large.tif", predict(read(work / "large.png")).astype(np.uint16), check_contrast=False)
        seconds.append(time.process_time() - begun)
    (work / "seconds.json").write_text(json.dumps({"seconds": statistics.median(seconds)}))


def main() -> None:
    """Train and predict."""
    from skimage.io import imread  # noqa: PLC0415

    system, *folders, minutes = sys.argv[1:]
    train, test, work = map(Path, folders)
    images = [read(path) for path in sorted((train / "images").iterdir())]
    labels = [imread(path).astype(np.int32) for path in sorted((train / "labels").iterdir())]
    begun = time.process_time()
    predict, used = {"stardist": stardist, "cellpose": cellpose}[system](images, labels, work, float(minutes))
    document = {"training": used, "all": (time.process_time() - begun) / 60}
    (work / "minutes.json").write_text(json.dumps(document))
    predict_all(predict, test, work)


if __name__ == "__main__":
    main()
