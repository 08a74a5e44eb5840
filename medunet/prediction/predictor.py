"""A trained bundle that stays resident and predicts case after case."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor, decollate_batch
from monai.transforms import Compose, LoadImage, LoadImaged, Orientation, Orientationd, Spacing, Spacingd

from medunet.errors import ConfigError, MedunetError, find_cause
from medunet.io import Pseudonyms, ReadOptions, ResultFormat, SavePredictiond
from medunet.io.reader import PathLike
from medunet.runtime import EnsembleLogits, FastNetwork, Form, autocast, keep_freed_memory, resolve_device

from .configuration import check_same_input, content, load_network, parse_inference
from .existing import existing_result
from .foreign import check_loading, only_tensor, saved_by_medunet
from .isolation import isolate_reading
from .pipeline import overlap
from .source import Source, as_if_read, as_text, check_channels, parts, unexpected
from .steps import run_steps, steps_up_to, typed_errors
from .timing import StageSeconds, Stopwatch
from .transfer import batch_on, pinned, preprocess_on

logger = logging.getLogger(__name__)

IN_FLIGHT = 3
"""Cases between reading and the written file at once: one a stage. More would only hold more volumes in memory."""


@dataclass(frozen=True)
class Prediction:
    """What became of one case.

    Args:
        source: the image, or its channels.
        path: the label map that was written, or was there before; ``None`` when the case failed.
        error: why it failed.
        seconds: of work on this case, from reading to the written file, without waiting for other cases.
        stages: the same by stage.
        skipped: whether the case was done before.
    """

    source: Source
    path: Path | None
    error: MedunetError | None
    seconds: float
    stages: StageSeconds = field(default_factory=StageSeconds)
    skipped: bool = False


@dataclass(frozen=True)
class _Way:
    """Transforms that no other case uses at the same time.

    MONAI's transforms switch their own tracing off while they invert, so that a case being read beside one being
    inverted would lose its trace. Copied together, Invertd keeps pointing to the preprocessing beside it.
    """

    preprocessing: Callable[..., Any]
    postprocessing: Callable[..., Any]

    @property
    def savers(self) -> tuple[SavePredictiond, ...]:
        steps = getattr(self.postprocessing, "transforms", ())
        return tuple(step for step in steps if isinstance(step, SavePredictiond))


@dataclass
class _Case:
    """One case between the stages; what is no longer needed is let go at once."""

    source: Source
    way: _Way
    watch: Stopwatch = field(default_factory=Stopwatch)
    item: dict[Any, Any] = field(default_factory=dict)
    path: Path | None = None
    error: MedunetError | None = None
    skipped: bool = False

    @property
    def is_over(self) -> bool:
        return self.skipped or self.error is not None


class Predictor:
    """A bundle's ``inference.json``, run without MONAI's engine around it.

    Pre- and postprocessing, network and inferer are the bundle's own, so the result is that of
    ``python -m monai.bundle run inference``. The network is loaded when the predictor is made and stays. Reading,
    network and writing of different cases overlap. A bundle that medunet did not make, such as one of MONAI's model
    zoo, keeps its own steps; only its results are written by medunet.

    Args:
        bundle: folder of a bundle or run with weights in ``models/model.pt``.
        output_dir: where label maps are written. Without it :meth:`decide` and :meth:`decide_array` work, and
            :meth:`predict` and :meth:`predict_case` do not.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        probabilities: also write class probabilities.
        result_format: of the label maps, see :class:`medunet.io.SavePredictiond`.
        overwrite: replace results that exist; otherwise such a case is refused before the network runs.
        read: how to read images that can be interpreted in more than one way, such as ``ReadOptions(phase=1)``.
        overrides: values by config id, for the members of an ensemble too.
        skip_done: pass over cases whose results exist, without reading them.
        ensemble: further bundles, such as other folds; the class probabilities of all networks are averaged, in one
            pass of reading. They must agree in preprocessing, labels and sizes.
        benchmark: measure the forward passes apart from the inferer around them, see :class:`StageSeconds`.
        in_flight: cases between reading and the written file at once; 1 overlaps nothing.
        trust: run bundles that could run code of their own, see :func:`medunet.trust.require_trust`.
        isolated: decode images in a child process, see :mod:`medunet.io.isolation`; None: as the environment says.
        pseudonyms: names for cases in place of their own, in files, DICOM results, errors and logs.

    Raises:
        SecurityError: a bundle is not trusted.
        ConfigError: a config that cannot be used, members that differ, or a device that is not there.
        DataError: no weights, or weights of another network.
    """

    def __init__(
        self,
        bundle: PathLike,
        *,
        output_dir: PathLike | None = None,
        device: str = "auto",
        probabilities: bool = False,
        result_format: ResultFormat = "auto",
        overwrite: bool = False,
        read: ReadOptions | None = None,
        overrides: Mapping[str, Any] | None = None,
        skip_done: bool = False,
        ensemble: Sequence[PathLike] = (),
        benchmark: bool = False,
        in_flight: int = IN_FLIGHT,
        trust: bool = False,
        isolated: bool | None = None,
        pseudonyms: Pseudonyms | None = None,
    ) -> None:
        if overwrite and skip_done:
            raise ConfigError("results are either replaced or skipped", received="overwrite and skip_done")
        if in_flight < 1:
            raise ConfigError("impossible in_flight", received=in_flight, expected="1 or more")
        overrides = {**(read.chosen if read else {}), **(overrides or {})}
        bundle, members = Path(bundle), [Path(member) for member in ensemble]
        self.device = resolve_device(device)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.skip_done = skip_done
        self.benchmark = benchmark
        self.in_flight = in_flight
        options = {
            **({} if output_dir is None else {"prediction_dir": os.fspath(output_dir)}),
            "save_probabilities": probabilities,
            "result_format": result_format,
            # a case that is not done may still have one of its files, from a run that was interrupted between the two
            "overwrite": overwrite or skip_done,
        }
        parser = parse_inference(bundle, device=self.device, options=options, overrides=overrides, trust=trust)
        self.channels: int = content(parser, "in_channels")
        self.spatial_dims: int = content(parser, "spatial_dims")
        self.network = load_network(parser)
        self.inferer = content(parser, "inferer")
        if members:
            self.network = self._join(parser, members, overrides, trust=trust)
        if self.device.type == "cpu":
            keep_freed_memory()
        for module in self.network.modules():
            if isinstance(module, FastNetwork):
                module.prepare(self.device, in_channels=self.channels, spatial_dims=self.spatial_dims)
        self.preprocessing = content(parser, "preprocessing")
        if isolated is not None:
            isolate_reading(self.preprocessing, isolated)
        self.postprocessing = content(parser, "postprocessing")
        if not _Way(self.preprocessing, self.postprocessing).savers:
            check_loading(self.preprocessing)
            self.postprocessing = saved_by_medunet(self.postprocessing, parser)
        self.savers = _Way(self.preprocessing, self.postprocessing).savers
        self.pseudonyms = pseudonyms
        for saver in self.savers:
            saver.pseudonyms = pseudonyms
        # bundles made before regions lack the id
        known = "region_order" in parser
        self.region_order: list[int] = content(parser, "region_order") if known else []
        self.regions: list[list[int]] = content(parser, "region_indices") if known else []
        self.autocast_dtype: str = content(parser, "autocast_dtype")

    @property
    def needs_affine(self) -> bool:
        """Whether an image in memory must come with its affine."""
        steps = self.preprocessing.transforms if isinstance(self.preprocessing, Compose) else ()
        on_grid = any(isinstance(step, Orientation | Orientationd | Spacing | Spacingd) for step in steps)
        return self.spatial_dims == 3 or on_grid

    @property
    def forms(self) -> tuple[Form, ...]:
        """How each :class:`medunet.runtime.FastNetwork` of the bundle computes."""
        found = (module.form for module in self.network.modules() if isinstance(module, FastNetwork))
        return tuple(form for form in found if form is not None)

    def predict(self, sources: Iterable[Source]) -> Generator[Prediction, None, None]:
        """Predict case after case, in order; a case that fails is reported and the others are still predicted.

        After an early stop (``close()``, Ctrl-C) every file is complete: a file being written is written to its end.

        Raises:
            ConfigError: no ``output_dir``, or one path in place of a list of sources.
        """
        self._require_output_dir()
        if isinstance(sources, str | os.PathLike):
            raise ConfigError("sources must be a list of images", received=sources, remedy="use predict_case")
        original = _Way(self.preprocessing, self.postprocessing)
        ways: SimpleQueue[_Way] = SimpleQueue()
        for _ in range(self.in_flight):
            ways.put(copy.deepcopy(original))

        def read_ahead(case: _Case) -> None:
            self._read(case)
            if not case.is_over:
                case.item["image"] = pinned(case.item["image"], self.device)

        def read(source: Source) -> _Case:
            return self._guarded(read_ahead, _Case(source, ways.get()))

        def compute(case: _Case) -> _Case:
            return self._guarded(self._compute, case)

        def write(case: _Case) -> Prediction:
            self._guarded(self._write, case)
            ways.put(case.way)
            stages = case.watch.seconds
            return Prediction(case.source, case.path, case.error, stages.total, stages, case.skipped)

        yield from overlap(sources, read=read, compute=compute, write=write, in_flight=self.in_flight)

    def predict_case(self, source: Source) -> Path:
        """Predict one case and return the label map's path.

        Args:
            source: an image, or one image a channel.

        Raises:
            ConfigError: no ``output_dir``.
            DataError: the image cannot be read, or the result exists and may not be replaced.
            GeometryError: the image's headers are wrong, or the result cannot lie on its grid in this format.
        """
        self._require_output_dir()
        case = _Case(source, _Way(self.preprocessing, self.postprocessing))
        with typed_errors():
            for stage in (self._read, self._compute, self._write):
                if not case.is_over:
                    stage(case)
        assert case.path is not None  # `_write` sets it, and a skipped case has it
        return case.path

    def decide(self, source: Source) -> dict[Any, Any]:
        """Predict one case without writing it.

        Returns:
            The item with the label map under ``pred``, and with probabilities if the bundle is to save them.

        Raises:
            MedunetError: as :meth:`predict_case`.
        """
        case = _Case(source, _Way(self.preprocessing, self.postprocessing))
        with typed_errors():
            self._read(case, writes=False)
            return self._decided(case)

    def decide_array(
        self, image: npt.ArrayLike | torch.Tensor, *, affine: npt.ArrayLike | torch.Tensor | None = None
    ) -> dict[Any, Any]:
        """Decide one image in memory, as :meth:`decide` does for a file.

        Args:
            image: ``(C, *spatial)``, with the axes of :func:`medunet.io.read_volume`; of a picture ``(C, x, y)``.
            affine: 4x4, from voxel indices to millimetres towards right, anterior and superior (RAS), as nibabel's
                ``affine``. A MetaTensor has its own; an image in the plane whose bundle uses no spacing needs none.

        Raises:
            GeometryError: no affine, an invalid one, or an image of another number of channels or axes.
        """
        way = _Way(self.preprocessing, self.postprocessing)
        case = _Case(Path(), way)
        split = steps_up_to(way.preprocessing, (LoadImage, LoadImaged), last=True)
        if affine is None and isinstance(image, MetaTensor):
            affine = image.affine
        if affine is None and not self.needs_affine:
            affine = np.eye(4)  # as a PNG is read
        volume = as_if_read(image, affine, channels=self.channels, spatial_dims=self.spatial_dims)
        with typed_errors():
            case.item = self._preprocess(way, {"image": volume}, start=split)
            return self._decided(case)

    def _decided(self, case: _Case) -> dict[Any, Any]:
        self._compute(case)
        end = steps_up_to(self.postprocessing, (SavePredictiond,), last=False)
        decided: dict[Any, Any] = run_steps(self.postprocessing, case.item, end=end)
        return decided

    def _require_output_dir(self) -> None:
        if self.output_dir is None:
            raise ConfigError("output_dir is missing", expected="a folder for the label maps")

    @torch.inference_mode()
    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """The inferer's answer for a preprocessed image ``(C, *spatial)``.

        Returns:
            ``(classes, *spatial)``, float32, on the CPU, with the metadata of the image; of an inferer that goes back
            to the source grid what it gives, with its own metadata.
        """
        with autocast(self.device, self.autocast_dtype):
            output = only_tensor(self.inferer(batch_on(image, self.device), self.network))
        first: torch.Tensor = decollate_batch(output)[0] if getattr(output, "is_batch", False) else output[0]
        first = first.cpu() if not first.is_floating_point() else first.float().cpu()
        if isinstance(image, MetaTensor) and not isinstance(first, MetaTensor):
            first = MetaTensor(first).copy_meta_from(image)
        return first

    def _read(self, case: _Case, *, writes: bool = True) -> None:
        images, name = parts(case.source)
        savers = case.way.savers if writes else ()
        if self.skip_done and savers:
            found = [existing_result(images, saver, name=name) for saver in savers]
            if all(path is not None for path in found):
                case.path, case.skipped = found[0], True
                return
        item: Any = {"image": as_text(images), **({} if name is None else {"name": name})}
        split = steps_up_to(case.way.preprocessing, (LoadImage, LoadImaged), last=True)
        with case.watch.measure("read"):
            item = run_steps(case.way.preprocessing, item, end=split) if split else item
            self._report_warnings(item.get("image"), images)
            for saver in savers if split else ():
                saver.check(item)
        with case.watch.measure("preprocess"):
            item = self._preprocess(case.way, item, start=split)
            for saver in () if split else savers:
                saver.check(item)
        case.item = item

    def _report_warnings(self, image: Any, images: Any) -> None:
        """Log what the reader noticed in a file, under the case's name if cases have other names."""
        meta = image.meta if isinstance(image, MetaTensor) else {}
        for warning in meta.get("reader_warnings", "").splitlines():
            shown = meta["filename_or_obj"] if self.pseudonyms is None else self.pseudonyms.code(images)
            logger.warning("%s: %s", shown, warning)

    def _preprocess(self, way: _Way, item: dict[Any, Any], *, start: int) -> Any:
        return preprocess_on(self.device, lambda given: run_steps(way.preprocessing, given, start=start), item)

    def _compute(self, case: _Case) -> None:
        check_channels(case.item["image"], self.channels, case.source)
        watch = case.watch
        with watch.measure_inferer(self.network, self.device) if self.benchmark else watch.measure("network"):
            case.item["pred"] = self.logits(case.item["image"])

    def _write(self, case: _Case) -> None:
        item, case.item = case.item, {}
        split = steps_up_to(case.way.postprocessing, (SavePredictiond,), last=False)
        with case.watch.measure("restore"):
            item = run_steps(case.way.postprocessing, item, end=split)
        with case.watch.measure("write"):
            item = run_steps(case.way.postprocessing, item, start=split)
        case.path = Path(item["pred_path"])

    def _guarded(self, stage: Callable[[_Case], None], case: _Case) -> _Case:
        """Run a stage; what it raises ends this case only."""
        if case.is_over:
            return case
        try:
            stage(case)
        except Exception as failure:
            case.item, case.path = {}, None
            case.error = find_cause(failure)
            hidden, (images, _) = self.pseudonyms, parts(case.source)
            if case.error is None:  # no fault of the input that was foreseen: the traceback belongs into the log
                shown = case.source if hidden is None else hidden.code(images)
                logger.debug("%s: unexpected error", shown, exc_info=hidden is None)
                case.error = unexpected(failure, case.source)
            if hidden is not None:
                case.error = hidden.hide(case.error, images)
        return case

    def _join(
        self, parser: Any, others: Sequence[Path], overrides: Mapping[str, Any] | None, *, trust: bool
    ) -> torch.nn.Module:
        members = [self.network]
        for bundle in others:
            member = parse_inference(bundle, device=self.device, overrides=overrides, trust=trust)
            check_same_input(parser, member, bundle=bundle)
            members.append(load_network(member))
        return EnsembleLogits(members, activation=getattr(self.inferer, "activation", "softmax")).eval()
