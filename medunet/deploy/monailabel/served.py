"""A bundle as a label server offers it: a name, its labels, and a working copy that may be trained further."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunet.bundle.read import read_own
from medunet.config import read_json
from medunet.errors import ConfigError, DataError
from medunet.files import atomic_path, sha256_of, write_atomically
from medunet.io.segments import Segment, as_segments
from medunet.runs.ensemble import ENSEMBLE_FOLDS
from medunet.training import BEST_NAME
from medunet.trust import adopt, forget_weights, require_trust


@dataclass(frozen=True)
class ServedBundle:
    """A trained bundle by the name under which clients see it.

    Args:
        name: in URLs and menus.
        folder: of the bundle.
    """

    name: str
    folder: Path

    @property
    def config(self) -> dict[str, Any]:
        """Its unresolved ``inference.json``."""
        return read_own(self.folder, "inference")

    @property
    def metadata(self) -> dict[str, Any]:
        """Its ``metadata.json``, or nothing."""
        path = self.folder / "configs" / "metadata.json"
        return read_json(path) if path.is_file() else {}

    @property
    def weights(self) -> tuple[Path, ...]:
        """Its checkpoints: one, or one a fold."""
        folds = self.config.get(ENSEMBLE_FOLDS)
        names = [BEST_NAME] if folds is None else [f"fold_{fold}.pt" for fold in folds]
        return tuple(self.folder / "models" / name for name in names)

    @property
    def is_ensemble(self) -> bool:
        """Whether its network is the mean of folds; such a bundle is not trained further."""
        return ENSEMBLE_FOLDS in self.config

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return int(self.config["spatial_dims"])

    @property
    def labels(self) -> dict[str, int]:
        """Value in the result by name, without the background."""
        return {segment.name: segment.value for segment in self.segments}

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Names, values, colours and codes of its labels."""
        config = self.config
        names = dict(zip(config["label_names"], config["label_values"], strict=True))
        return as_segments(names, colors=config.get("label_colors"), codes=config.get("label_codes"))

    @property
    def description(self) -> str:
        """One sentence or two of its metadata."""
        return str(self.metadata.get("description") or f"medunet bundle {self.name}")

    @property
    def stamp(self) -> str:
        """Changes when its weights do."""
        return "-".join(f"{path.stat().st_mtime_ns:x}" for path in self.weights)

    def check(self) -> None:
        """Refuse a bundle that cannot predict.

        Raises:
            ConfigError: no or broken configs.
            DataError: no weights.
        """
        _ = self.spatial_dims, self.segments
        for path in self.weights:
            if not path.is_file():
                raise DataError("the bundle has no weights", file=path, remedy="train it by `medunet train`")

    def working_copy(self, folder: Path) -> ServedBundle:
        """A copy that training may change, under ``folder/<name>``.

        One that is there keeps its weights, unless the bundle has others by now or another bundle bore its name: then
        it begins anew. The bundle must have been judged: its copy is trusted as it is. Hashes of weights are left out
        of the copy.

        Raises:
            DataError: it cannot be written.
        """
        target, origin = folder / self.name, folder / f"{self.name}.origin"
        digest = " ".join(sha256_of(path) for path in self.weights)
        goes_on = origin.is_file() and origin.read_text(encoding="ascii") == digest
        for path in sorted([*self.folder.glob("configs/*"), *self.folder.glob("docs/*"), self.folder / "LICENSE"]):
            if path.is_file():
                _copy(path, target / path.relative_to(self.folder))
        forget_weights(target)
        for path in self.weights:
            new = target / path.relative_to(self.folder)
            if not (goes_on and new.is_file()):
                _copy(path, new)
        write_atomically(origin, digest)
        adopt(target)
        return ServedBundle(self.name, target)


def serve(folders: Sequence[Path]) -> tuple[ServedBundle, ...]:
    """Name bundles by their folders, each differently.

    Raises:
        ConfigError: none, or one of them twice.
        DataError: one without weights.

    Example:
        >>> [bundle.name for bundle in name_bundles([Path("a/run"), Path("b/run"), Path("c/liver 2")])]
        ['run', 'run_2', 'liver_2']
    """
    if not folders:
        raise ConfigError("no bundle to serve", expected="a run or a bundle with weights")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("a bundle is given twice", received=[os.fspath(folder) for folder in folders])
    bundles = name_bundles(folders)
    for bundle in bundles:
        bundle.check()
    return bundles


def judge_served(settings: Path) -> tuple[ServedBundle, ...]:
    """The bundles of a server's settings, each judged before anything of it is loaded.

    Args:
        settings: the file that :meth:`medunet.deploy.monailabel.LabelServer.prepare` writes.

    Raises:
        SecurityError: one that could run code of its own, and no `--trust`.
    """
    content = read_json(settings)
    bundles = tuple(ServedBundle(name, Path(folder)) for name, folder in content["bundles"])
    for bundle in bundles:
        require_trust(bundle.folder, trust=bool(content["trust"]))
    return bundles


def name_bundles(folders: Sequence[Path]) -> tuple[ServedBundle, ...]:
    """Bundles by names that differ and need no escape in a URL."""
    found: dict[str, ServedBundle] = {}
    for folder in folders:
        base = re.sub(r"[^A-Za-z0-9._-]+", "_", folder.resolve().name).strip("._") or "bundle"
        name, count = base, 1
        while name in found:
            count += 1
            name = f"{base}_{count}"
        found[name] = ServedBundle(name, folder)
    return tuple(found.values())


def order_label_info(
    present: Sequence[int], segments: Sequence[Segment], given: Sequence[Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    """What a DICOM SEG says of each label that is present, in the order of their values.

    MONAI Label pairs the labels that it finds in a mask with a list from the client by position, so that a missing
    organ would give its name to the next one. Here a label keeps its own name.

    Args:
        present: values of the mask, without 0.
        segments: the bundle's.
        given: the client's list, of all labels or of some; what it says of a name holds over the bundle's word.

    Example:
        >>> bundle = as_segments({"liver": 1, "spleen": 2, "kidney": 4})
        >>> [info["name"] for info in order_label_info([2, 4], bundle, [{"name": "liver"}, {"name": "spleen"}])]
        ['spleen', 'kidney']
    """
    by_value = {segment.value: segment for segment in segments}
    by_name = {str(info.get("name")): info for info in given or ()}
    ordered = []
    for value in sorted(present):
        segment = by_value.get(value) or as_segments(None, values=[value])[0]
        said = by_name.get(segment.name, {})
        ordered.append(
            {
                "name": segment.name,
                "segmentAttribute": {
                    "labelID": value,
                    "SegmentLabel": segment.name,
                    "SegmentDescription": str(said.get("description") or segment.name),
                    "SegmentAlgorithmType": "SEMIAUTOMATIC" if given else "AUTOMATIC",
                    "SegmentAlgorithmName": "medunet",
                    "SegmentedPropertyCategoryCodeSequence": _code(segment.category),
                    "SegmentedPropertyTypeCodeSequence": _code(segment.type),
                    "recommendedDisplayRGBValue": [int(part) for part in (said.get("color") or segment.color)[:3]],
                },
            }
        )
    return ordered


def _code(code: tuple[str, str, str]) -> dict[str, str]:
    value, scheme, meaning = code
    return {"CodeValue": value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning}


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
