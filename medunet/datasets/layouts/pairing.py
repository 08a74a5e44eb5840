"""Which files belong together, by name: the channels of one case, and image and label."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from medunet.datasets.check.finding import shown
from medunet.errors import DataError, MedunetError
from medunet.io import IMAGE_SUFFIXES, is_dicom, is_structure_file, split_channel, split_suffix

from .dataset import Case, collect

MAX_CHANNELS = 8  # with more numbers than this, the images of a case are frames of a sequence
FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"))


def find_folders(root: Path) -> tuple[str, str] | None:
    """Return the names of the folders of images and labels; None if the data set has no such folders."""
    return next((pair for pair in FOLDERS if (root / pair[0]).is_dir()), None)


def image_files(folder: Path) -> list[Path]:
    """Return the images in a folder, sorted: files of a known format and folders of DICOM slices."""
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [path for path in visible if path.name.lower().endswith(IMAGE_SUFFIXES) or is_dicom(path)]


def label_files(folder: Path) -> list[Path]:
    """Return the labels in a folder, sorted: images, and files of DICOM SEG and RTSTRUCT."""
    images = image_files(folder)
    others = set(folder.iterdir()) - set(images)
    structures = [p for p in others if p.is_file() and not p.name.startswith(".") and is_structure_file(p)]
    return sorted([*images, *structures])


def stem(path: Path) -> str:
    """Return a file's name without its ending, or a folder's full name."""
    return path.name if path.is_dir() else split_suffix(path.name)[0]


def group_channels(
    images: Iterable[Path], *, channels: int, whole: Collection[str] = (), is_strict: bool = True
) -> list[tuple[str, tuple[Path, ...]]]:
    """Return cases by name: ``(name, files)``, where `case_0000`, `case_0001`, ... of nnU-Net make one case.

    Numbers are channels if a case has exactly those of `channels`, or if they start again at 0000 in several cases.
    Otherwise they belong to the names, as do numbers of the stems in `whole`. If 0000 is the only number, each file has
    all channels. A case with other channels is an error if `is_strict`; otherwise its files are single images.
    """
    groups: dict[tuple[str, str], dict[int, Path]] = defaultdict(dict)
    named: list[tuple[str, tuple[Path, ...]]] = []
    for path in images:
        case, channel = split_channel(stem(path))
        if channel is None or stem(path) in whole:
            named.append((stem(path), (path,)))
        else:
            groups[case, split_suffix(path.name)[1]][channel] = path
    numbers = [0] if all(files.keys() == {0} for files in groups.values()) else list(range(channels))
    most = max(channels, MAX_CHANNELS)
    restarts = sum({0, 1} <= files.keys() and max(files) < most for files in groups.values())
    is_numbered = restarts > 1 or (channels > 1 and any(sorted(files) == numbers for files in groups.values()))
    for (case, _), files in groups.items():
        if sorted(files) == numbers:
            named.append((case, tuple(files[number] for number in numbers)))
        elif is_numbered and is_strict:
            raise DataError(
                f"case {case} has {_count(files, 'channel')}",
                file=next(iter(files.values())).parent,
                received=", ".join(files[number].name for number in sorted(files)),
                expected=f"{channels}: {', '.join(f'{case}_{number:04d}' for number in range(channels))}",
            )
        else:
            named.extend((stem(path), (path,)) for path in files.values())
    cases: dict[str, tuple[Path, ...]] = {}
    for name, paths in named:
        if name in cases:
            received = f"{paths[0].name} and {cases[name][0].name}"
            raise DataError("two images have the same name", file=paths[0], received=received, remedy="rename one")
        cases[name] = paths
    return sorted(cases.items())


def pair_folders(
    images: Path, labels: Path, *, channels: int = 1, partial: bool = False, problems: list[MedunetError] | None = None
) -> tuple[Case, ...]:
    """Return the cases of a folder of images and one of labels, paired by name; endings may differ.

    `partial` allows images without a label. `problems` collects the error about unpaired files.
    """
    by_name: dict[str, Path] = {}
    for path in label_files(labels) if labels.is_dir() else []:
        if stem(path) in by_name:
            raise DataError("two labels have the same name", file=path, remedy="remove one of them")
        by_name[stem(path)] = path
    cases = group_channels(image_files(images), channels=channels, whole=by_name, is_strict=not partial)
    names = {name for name, _ in cases}
    no_label = [] if partial else [paths[0].name for name, paths in cases if name not in by_name]
    no_image = [] if partial else [path.name for name, path in by_name.items() if name not in names]
    causes = [f"{_count(no_label, 'image')} without label: {shown(no_label)}"] if no_label else []
    causes += [f"{_count(no_image, 'label')} without image: {shown(no_image)}"] if no_image else []
    if causes:
        remedy = f"give pairs one name in {images.name} and {labels.name}"
        with collect(problems):
            raise DataError("; ".join(causes), file=images.parent, remedy=remedy)
        cases = [(name, paths) for name, paths in cases if name in by_name]
    return tuple(Case(name, paths, by_name.get(name)) for name, paths in cases)


def guess_channels(images: Path, labels: Path) -> int:
    """Return the number of files per case: nnU-Net's numbers are channels if the label names do not have them."""
    label_names = {stem(path) for path in label_files(labels)}
    counts = Counter(split_channel(stem(path))[0] for path in image_files(images) if stem(path) not in label_names)
    return max((count for case, count in counts.items() if case in label_names), default=1)


def _count(items: Collection[object], noun: str) -> str:
    return f"{len(items)} {noun}{'s' if len(items) > 1 else ''}"
