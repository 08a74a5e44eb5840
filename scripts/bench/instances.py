"""Objects in microscopy: medunet beside StarDist and Cellpose 3, trained from scratch for the same minutes.

    python -m scripts.bench.instances nuclei --data DATA/DSB2018_nuclei [--minutes 30] [--python OTHER/bin/python]
    python -m scripts.bench.instances hela   --data DATA/CellTracking/DIC-C2DH-HeLa [--minutes 30] [--frames 20]
    python -m scripts.bench.instances speed  --data DATA/DSB2018_nuclei

`nuclei` holds out every fifth image in the order of a permutation with seed 0, `hela` the frames 63 to 83. StarDist and
Cellpose need NumPy below 2.1 and about 2 GB, so they run in an environment of their own (`pip install stardist
tensorflow-cpu 'cellpose<4'`), which --python names. `speed` times runs that `nuclei` has trained. Results go to
scripts/results/instances.json and are printed as a table. Give it the machine to itself.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SEED, HELD_OUT, FIRST_FRAME = 0, 5, 63
SIZE, REPEATS = 2048, 3  # pixels of the image that `speed` times
SYSTEMS = ("medunet", "stardist", "cellpose")
SCORES = ("ap_50", "mean_ap", "f1", "seg", "aji")


def split(data: Path, work: Path, held_out: Sequence[str], frames: int | None = None) -> tuple[Path, Path]:
    """Write training and test folders of links to the images; a folder that exists is kept."""
    folders = work / "train", work / "test"
    images = {path.stem: path for path in sorted((data / "images").iterdir())}
    labels = {path.stem: path for path in sorted((data / "labels").iterdir())}
    trained = [name for name in images if name not in held_out]
    kept = trained if frames is None else [trained[int(k)] for k in np.linspace(0, len(trained) - 1, frames)]
    for folder, names in zip(folders, (kept, held_out), strict=True):
        for kind, files in (("images", images), ("labels", labels)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            for name in names:
                target = folder / kind / files[name].name
                if not target.exists():
                    target.symlink_to(files[name].resolve())
        (folder / "dataset.json").write_text('{"instances": true}')
    return folders


def run_medunet(train: Path, test: Path, work: Path, *, minutes: float, sets: Sequence[str]) -> Path:
    """Plan, train and predict with the commands of a user; return the folder of label maps."""
    words = [word for value in sets for word in ("--set", value)]
    program = [sys.executable, "-m", "medunet"]
    for command in (
        ["plan", train, "--output", work / "bundle", "--time", f"{minutes}min"],
        ["train", work / "bundle", "--data", train, "--output", work / "run", *words],
        ["predict", work / "run", test / "images", "--output", work / "pred", "--force"],
    ):
        subprocess.run([*program, *map(str, command)], check=True)
    return work / "pred"


def run_other(system: str, train: Path, test: Path, work: Path, *, python: str, minutes: float) -> Path:
    """Train and predict in another environment; return the folder of label maps."""
    command = [python, __file__, "worker", system, train, test, work, minutes]
    subprocess.run([str(word) for word in command], check=True)
    return work / "pred"


def worker(system: str, train: Path, test: Path, work: Path, minutes: float) -> None:
    """Train one of the other programs with its own defaults until the minutes are over, and predict the test images."""
    from skimage.io import imread, imsave  # noqa: PLC0415

    def grey(path: Path) -> np.ndarray:
        image = imread(path).astype(np.float32)
        return image[..., :3].mean(axis=-1) if image.ndim == 3 else image

    images = [grey(path) for path in sorted((train / "images").iterdir())]
    labels = [imread(path).astype(np.int32) for path in sorted((train / "labels").iterdir())]
    model: Any
    end = time.perf_counter() + 60 * minutes
    if system == "stardist":
        from csbdeep.utils import normalize  # noqa: PLC0415
        from stardist.models import Config2D, StarDist2D  # noqa: PLC0415

        images = [normalize(image, 1, 99.8) for image in images]
        count = max(1, len(images) // 10)  # StarDist chooses weights and thresholds on a tenth of the training images
        config = Config2D(
            n_rays=32,
            grid=(2, 2),
            n_channel_in=1,
            train_patch_size=(256, 256),
            train_steps_per_epoch=20,
            train_tensorboard=False,
        )
        model = StarDist2D(config, name="stardist", basedir=str(work))
        model.prepare_for_training()
        from tensorflow.keras.callbacks import LambdaCallback  # noqa: PLC0415

        def stop(*_: Any, **__: Any) -> None:
            model.keras_model.stop_training = time.perf_counter() > end

        model.callbacks.append(LambdaCallback(on_train_batch_end=stop))
        held = images[:count], labels[:count]
        model.train(images[count:], labels[count:], validation_data=held, epochs=10_000, augmenter=flips)
        model.optimize_thresholds(*held)

        def predict(image: np.ndarray) -> np.ndarray:
            return model.predict_instances(normalize(image, 1, 99.8))[0]
    else:
        from cellpose.models import CellposeModel  # noqa: PLC0415
        from cellpose.train import train_seg  # noqa: PLC0415

        model, epochs = CellposeModel(gpu=False, pretrained_model=None), 1
        begun = time.perf_counter()
        options = {"channels": [0, 0], "learning_rate": 0.2, "weight_decay": 1e-5, "SGD": True, "min_train_masks": 1}
        options |= {"save_path": str(work), "nimg_per_epoch": len(images)}
        train_seg(model.net, images, labels, n_epochs=1, **options)  # measures an epoch; training then starts anew
        epochs = max(1, int((end - time.perf_counter()) / (time.perf_counter() - begun)))
        model = CellposeModel(gpu=False, pretrained_model=None)
        train_seg(model.net, images, labels, n_epochs=epochs, **options)
        diameters = [
            2 * np.sqrt(np.median(np.unique(one[one > 0], return_counts=True)[1]) / np.pi)
            for one in labels
            if one.any()
        ]
        diameter = float(np.median(diameters))

        def predict(image: np.ndarray) -> np.ndarray:
            return model.eval(image, channels=[0, 0], diameter=diameter)[0]

    (work / "pred").mkdir(parents=True, exist_ok=True)
    for path in sorted((test / "images").iterdir()):
        imsave(work / "pred" / f"{path.stem}.tif", predict(grey(path)).astype(np.uint16), check_contrast=False)
    side = -(-SIZE // min(images[0].shape))
    large = np.tile(grey(next(iter(sorted((test / "images").iterdir())))), (side, side))[:SIZE, :SIZE]
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        predict(large)
        times.append(time.perf_counter() - begun)
    (work / "seconds.json").write_text(json.dumps(times))


def flips(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a random turn or mirror image, as in StarDist's examples."""
    turns, mirrored = np.random.randint(4), np.random.randint(2)  # the generator that StarDist seeds
    image, label = (np.rot90(one, turns) for one in (image, label))
    return (image[::-1], label[::-1]) if mirrored else (image, label)


def main() -> None:
    """Measure what the command line asks for."""
    if sys.argv[1:2] == ["worker"]:
        system, train, test, work, minutes = sys.argv[2:]
        worker(system, Path(train), Path(test), Path(work), float(minutes))
        return
    from medunet.runs import evaluate_folders  # noqa: PLC0415 # the other environment has no medunet

    from .measure import RESULTS, describe, machine, read_json, table, write_json  # noqa: PLC0415

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("nuclei", "hela", "speed"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--frames", type=int, help="of hela: train on so many frames")
    parser.add_argument("--set", action="append", default=[], metavar="ID=VALUE", help="of medunet's training")
    parser.add_argument("--python", default=sys.executable, help="interpreter with StarDist and Cellpose")
    parser.add_argument("--only", nargs="+", default=SYSTEMS, choices=SYSTEMS)
    parser.add_argument("--work", type=Path, default=Path("runs/instances"))
    parser.add_argument("--name", default="", help="row of the results, such as a variant of --set")
    options = parser.parse_args()
    file = RESULTS / "instances.json"
    document = read_json(file)
    names = sorted(path.stem for path in (options.data / "images").iterdir())
    if options.question == "hela":
        held_out = [name for name in names if int("".join(filter(str.isdigit, name))[-3:]) >= FIRST_FRAME]
    else:
        order = np.random.default_rng(SEED).permutation(names)
        held_out = sorted(map(str, order[::HELD_OUT]))
    work = options.work / options.question
    train, test = split(options.data, work / f"data_{options.frames or 'all'}", held_out, options.frames)
    for system in options.only:
        row = " ".join(filter(None, (system, options.name, options.frames and f"{options.frames} frames")))
        own = work / row.replace(" ", "_")
        own.mkdir(parents=True, exist_ok=True)
        if options.question == "speed":
            seconds = (
                time_medunet(test, own, work.parent / "nuclei" / "medunet" / "run") if system == "medunet" else None
            )
            other = work.parent / "nuclei" / system / "seconds.json"
            times = seconds or json.loads(other.read_text())
            document.setdefault("speed", {})[row] = {"seconds": statistics.median(times), "machine": machine()}
        else:
            begun = time.perf_counter()
            if system == "medunet":
                pred = run_medunet(train, test, own, minutes=options.minutes, sets=options.set)
            else:
                pred = run_other(system, train, test, own, python=options.python, minutes=options.minutes)
            minutes = (time.perf_counter() - begun) / 60
            scores = evaluate_folders(pred, test / "labels", own / "evaluation", instances=True)
            pooled = scores["objects"]["object"]["pooled"]
            means = {key: scores["classes"]["object"]["scores"][key]["mean"] for key in SCORES}
            result = {"minutes": options.minutes, "minutes in all": minutes, "pooled": pooled, "means": means}
            document.setdefault(options.question, {})[row] = {**result, "machine": machine()}
        write_json(file, document)
    if options.question == "speed":
        print(
            table(
                ["", f"seconds per {SIZE} x {SIZE}"],
                [[name, f"{one['seconds']:.2f}"] for name, one in document["speed"].items()],
            )
        )
    else:
        rows = [
            [name, f"{one['minutes']:g}", *(f"{one['means'][key]:.3f} ({one['pooled'][key]:.3f})" for key in SCORES)]
            for name, one in document[options.question].items()
        ]
        print(table(["", "minutes", *(f"{key}, mean (pooled)" for key in SCORES)], rows))
    print(describe(machine()))


def time_medunet(test: Path, work: Path, run: Path) -> list[float]:
    """Return the seconds from a file of `SIZE` x `SIZE` pixels to the file with its numbered objects."""
    from medunet.io import read_volume, write_volume  # noqa: PLC0415
    from medunet.prediction import Predictor  # noqa: PLC0415

    image = np.asarray(read_volume(next(iter(sorted((test / "images").iterdir())))).image)
    side = -(-SIZE // min(image.shape[1:]))
    large = np.tile(image, (1, side, side))[:, :SIZE, :SIZE].astype(np.uint8)
    files = [write_volume(one, work / f"large_{number}.png") for number, one in enumerate(large)]
    predictor = Predictor(run, output_dir=work / "pred", overwrite=True)
    times = []
    for _ in range(REPEATS + 1):
        shutil.rmtree(work / "pred", ignore_errors=True)
        begun = time.perf_counter()
        predictor.predict_case(tuple(files) if len(files) > 1 else files[0])
        times.append(time.perf_counter() - begun)
    return times[1:]


if __name__ == "__main__":
    main()
