"""A trained bundle that stays in memory and predicts case after case."""

import copy
import json
import logging
import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch
from monai.transforms import Compose, LoadImaged, Orientation, Orientationd, Spacing, Spacingd

from medunet.errors import ConfigError, DataError, DeviceError, find_cause
from medunet.files import require_path
from medunet.io import SavePredictiond, output_name
from medunet.io.reader import PathLike
from medunet.io.segments import BACKGROUND
from medunet.resources import find_run
from medunet.runtime import EnsembleLogits, FastNetwork, Form, autocast, keep_freed_memory, resolve_device

from .configuration import check_same_input, class_values, content, load_network, parse_inference
from .device import infer, prepare_tiles, thread_count
from .foreign import check_loading, saved_by_medunet, savers_of
from .manifest import CaseFile
from .options import PredictOptions
from .pipeline import overlap
from .result import Prediction
from .review import Reviewer, measure_agreement
from .source import Source, existing_result, first_path, from_array, parts, result_files, unexpected
from .steps import as_compose, isolate_reading, preprocess_on, steps_up_to, typed_errors

logger = logging.getLogger(__name__)


class _Transforms(NamedTuple):
    """Transforms that only one case uses at a time.

    MONAI's transforms switch their own tracing off while they invert, so a case that is read during an inversion would
    lose its trace. All transforms are copied together, so that Invertd keeps pointing to the preprocessing beside it.
    """

    preprocessing: Compose
    postprocessing: Compose


@dataclass(kw_only=True)
class _Case(Prediction):
    """One case on its way through the stages."""

    transforms: _Transforms
    item: dict[Any, Any] = field(default_factory=dict)
    frames: list[str] = field(default_factory=list)  # DICOM files that were read
    written: list[str] = field(default_factory=list)  # files of the result

    @property
    def is_over(self) -> bool:
        return self.skipped or self.error is not None


class Predictor:
    """A bundle's ``inference.json``, run without MONAI's engine around it.

    Pre- and postprocessing, network and inferer are the bundle's own, so the result is that of
    ``python -m monai.bundle run inference``. The network is loaded once. Reading, network and writing of different
    cases overlap. A third-party bundle, such as one of MONAI's model zoo, keeps its own steps; medunet only writes its
    results.

    Args:
        bundle: folder of a bundle or run with weights in ``models/model.pt``.
        options: how images are read, predicted and written; None for the defaults.
        changes: single options by name, such as ``device="cpu"``. Without ``output_dir``, :meth:`decide` and
            :meth:`decide_array` work, but :meth:`predict` and :meth:`predict_case` do not.

    Raises:
        SecurityError: a bundle is not trusted.
        ConfigError: an invalid config or option, members of an ensemble that differ, or a missing device.
        DataError: no weights, or weights of a different network.
    """

    def __init__(self, bundle: PathLike, options: PredictOptions | None = None, **changes: Any) -> None:
        bundle = find_run(bundle)
        require_path(bundle)
        options = replace(options or PredictOptions(), **changes)
        self.options, self.bundle = options, Path(bundle)
        self.device = resolve_device(options.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self._parse = partial(parse_inference, device=self.device, overrides=options.changes, trust=options.trust)
        parser = self._parse(self.bundle, values=options.config_values)
        if options.tta is not None and "mirror_inferer" not in parser:
            raise ConfigError("test-time augmentation needs a bundle of medunet", file=bundle, received=options.tta)
        if options.objects and not parser.get("instances"):
            raise ConfigError("outlines of objects need a bundle of instances", file=bundle, received=options.objects)
        self.channels: int = content(parser, "in_channels")
        self.spatial_dims: int = content(parser, "spatial_dims")
        self.classes = class_values(parser)
        self.regions = dict(zip(parser.get("region_names") or [], parser.get("region_values") or [], strict=False))
        self.region_order: list[int] = content(parser, "region_order")
        named = {name: [value] for name, value in self.classes.items() if value and name != BACKGROUND}
        self.structures: dict[str, list[int]] = self.regions or named  # the values of each structure by name
        self.label_values: list[int] = parser.get("label_values") or []
        self.mirror_swaps: list[list[int]] = parser.get("mirror_swaps") or []
        # axes along which an image may be mirrored without a change of its anatomy that the network has never seen
        self.view_axes: list[int] = content(parser, "tta_axes") if "tta_axes" in parser else []
        if options.tta == "mirror" and not self.view_axes:
            raise ConfigError("the network was trained without mirrored patches", file=bundle, received="tta mirror")
        if options.review and parser.get("instances"):
            raise ConfigError("a review is for classes, and this bundle predicts objects", file=bundle)
        self.reviewer: Reviewer | None = Reviewer(self.bundle, self.structures) if options.review else None
        self.autocast_dtype: str = content(parser, "autocast_dtype")
        self.inferer = content(parser, "inferer")
        self.network = self._load(parser)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        with autocast(self.device, self.autocast_dtype):
            prepare_tiles(self.inferer, self.network, self.device, size=(self.channels, *[1] * self.spatial_dims))
        self.preprocessing = as_compose(content(parser, "preprocessing"))
        check_loading(self.preprocessing)
        if options.isolated is not None:
            isolate_reading(self.preprocessing, options.isolated)
        self.postprocessing = saved_by_medunet(as_compose(content(parser, "postprocessing")), parser)
        self.pseudonyms = options.pseudonyms
        for saver in savers_of(self.postprocessing):
            saver.pseudonyms = options.pseudonyms
            if options.measure:
                saver.structures = self.structures

    @property
    def needs_affine(self) -> bool:
        """Whether an image in memory must come with its affine."""
        kinds = (Orientation, Orientationd, Spacing, Spacingd)
        return self.spatial_dims == 3 or any(isinstance(step, kinds) for step in self.preprocessing.transforms)

    @property
    def forms(self) -> tuple[Form, ...]:
        """How each :class:`medunet.runtime.FastNetwork` of the bundle computes."""
        networks = (module for module in self.network.modules() if isinstance(module, FastNetwork))
        return tuple(network.form for network in networks if network.form is not None)

    def predict(
        self, sources: Iterable[Source], *, done: Callable[[Prediction], object] | None = None
    ) -> Generator[Prediction, None, None]:
        """Predict case after case, in order; a case that fails is reported and the others continue.

        After an early stop (``close()``, Ctrl-C) every file is complete: a file being written is written to its end.

        Args:
            sources: the images.
            done: called in the writing threads with every result, also with the last ones after an early stop, which
                are not yielded.

        Raises:
            ConfigError: no ``output_dir``, or one path instead of a list of sources.
        """
        self._require_output_dir()
        if isinstance(sources, str | os.PathLike):
            raise ConfigError("sources must be a list of images", received=sources)
        free: SimpleQueue[_Transforms] = SimpleQueue()
        threads = thread_count(self.device)
        in_flight = 2 * threads + 1  # read, written and computed; more would only need more memory
        for _ in range(in_flight):
            free.put(copy.deepcopy(self._transforms))

        def read(source: Source) -> _Case:
            return self._guarded(self._read, _Case(source, transforms=free.get()))

        def write(case: _Case) -> Prediction:
            self._guarded(self._write, case)
            free.put(case.transforms)
            self._describe_files(case)
            result = Prediction(**{part.name: getattr(case, part.name) for part in fields(Prediction)})
            if done is not None:
                done(result)
            return result

        compute = partial(self._guarded, self._compute)
        yield from overlap(sources, read=read, compute=compute, write=write, in_flight=in_flight, threads=threads)

    def predict_case(self, source: Source) -> Path:
        """Predict one case, an image or one image per channel, and return the path of its label map.

        Raises:
            ConfigError: no ``output_dir``.
            DataError: the image cannot be read, or the result exists and must not be replaced.
            GeometryError: invalid headers, or a result that this format cannot store on the image's grid.
        """
        self._require_output_dir()
        case = _Case(source, transforms=self._transforms)
        with typed_errors(self.device):
            for stage in (self._read, self._compute, self._write):
                if not case.is_over:
                    stage(case)
        assert case.path is not None  # `_write` sets it, and a skipped case has it
        return case.path

    def decide(self, source: Source) -> dict[Any, Any]:
        """Predict one case without writing it.

        Returns:
            The item with the label map under ``pred``, and probabilities if the bundle saves them.

        Raises:
            DataError: the image cannot be read.
            GeometryError: invalid headers.
        """
        case = _Case(source, transforms=self._transforms)
        with typed_errors(self.device):
            self._read(case, writes=False)
            return self._decided(case)

    def decide_array(
        self, image: npt.ArrayLike | torch.Tensor, *, affine: npt.ArrayLike | torch.Tensor | None = None
    ) -> dict[Any, Any]:
        """Predict one image in memory without writing it.

        Args:
            image: ``(C, *spatial)``, with the axes of :func:`medunet.io.read_volume`; for a picture ``(C, x, y)``.
            affine: 4x4, from voxel indices to RAS millimetres, as nibabel's ``affine``. A MetaTensor has its own; a 2D
                image whose bundle uses no spacing needs none.

        Raises:
            GeometryError: no affine, an invalid one, or an image with a different number of channels or axes.
        """
        case = _Case(Path(), transforms=self._transforms)
        if affine is None and isinstance(image, MetaTensor):
            affine = image.affine
        if affine is None and not self.needs_affine:
            affine = np.eye(4)  # as a PNG is read
        volume = from_array(image, affine, channels=self.channels, spatial_dims=self.spatial_dims)
        start = steps_up_to(self.preprocessing, LoadImaged, last=True)
        with typed_errors(self.device):
            case.item = self._preprocess(case, {"image": volume}, start=start)
            return self._decided(case)

    @torch.inference_mode()
    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """Run the inferer on a preprocessed image ``(C, *spatial)``.

        Returns:
            ``(classes, *spatial)``, float32, on the CPU, with the metadata of the image; an inferer that returns to the
            source grid gives its own result and metadata. If the memory of a GPU runs out, the image and its logits
            are kept in that of the CPU, and only windows are on the GPU.
        """
        with autocast(self.device, self.autocast_dtype):
            output = infer(self.inferer, image, self.network, self.device)
        if not isinstance(output, torch.Tensor):
            remedy = "let `inferer` or `network_def` in inference.json choose one, e.g. deep_supervision: false"
            raise ConfigError("the network must return one tensor", received=type(output).__name__, remedy=remedy)
        first: torch.Tensor = decollate_batch(output)[0] if getattr(output, "is_batch", False) else output[0]
        first = first.float().cpu() if first.is_floating_point() else first.cpu()
        if isinstance(image, MetaTensor) and not isinstance(first, MetaTensor):
            first = MetaTensor(first).copy_meta_from(image)
        return first

    @property
    def _transforms(self) -> _Transforms:
        return _Transforms(self.preprocessing, self.postprocessing)

    def _load(self, parser: ConfigParser) -> torch.nn.Module:
        """Return the network, or the mean of the ensemble, ready for inference."""
        network = load_network(parser)
        if self.options.ensemble:
            members = [network]
            for bundle in map(Path, self.options.ensemble):
                member = self._parse(bundle)
                check_same_input(parser, member, bundle=bundle)
                members.append(load_network(member))
            network = EnsembleLogits(members, activation=getattr(self.inferer, "activation", "softmax")).eval()
        for module in network.modules():
            if isinstance(module, FastNetwork):
                module.prepare(self.device, in_channels=self.channels, spatial_dims=self.spatial_dims)
        return network

    def _require_output_dir(self) -> None:
        if self.options.output_dir is None:
            raise ConfigError("output_dir is missing", expected="a folder for the label maps")

    def _read(self, case: _Case, *, writes: bool = True) -> None:
        images, name = parts(case.source)
        savers = savers_of(case.transforms.postprocessing) if writes else []
        if self.options.skip_done and savers:
            results = [(path, saver) for saver in savers if (path := existing_result(case.source, saver))]
            if len(results) == len(savers):
                case.path, case.skipped = results[0][0], True
                case.written = [file for path, saver in results for file in result_files(path, saver)]
                return
        item: Any = {"image": images, **({} if name is None else {"name": name})}
        preprocessing = case.transforms.preprocessing
        split = steps_up_to(preprocessing, LoadImaged, last=True)
        with case.stages.measure("read"):
            item = preprocessing(item, end=split)
            self._take_warnings(case, item["image"])
            if self.options.measure:
                item["measured"] = np.array(item["image"])  # a copy, because later steps may work in place
            for saver in savers:
                saver.check(item)
        with case.stages.measure("preprocess"):
            case.item = self._preprocess(case, item, start=split)

    def _take_warnings(self, case: _Case, image: Any) -> None:
        """Log the reader's warnings about a file, under the case's pseudonym if it has one."""
        meta = image.meta if isinstance(image, MetaTensor) else {}
        case.warnings = meta.get("reader_warnings", "").splitlines()
        case.frames = [file for file, _ in json.loads(meta.get("dicom_frames", "[]"))]
        if case.warnings:
            code = self._code(case.source)
            logger.warning("%s: %s", code or meta["filename_or_obj"], "; ".join(case.warnings))

    def _code(self, source: Source) -> str | None:
        """Return the pseudonym of a case, if it needs one."""
        return None if self.pseudonyms is None else self.pseudonyms.code(parts(source)[0])

    def _name(self, case: _Case) -> str:
        """Return the name of the result, or its pseudonym."""
        images, name = parts(case.source)
        return self._code(case.source) or name or output_name(images)

    def _describe_files(self, case: _Case) -> None:
        images, _ = parts(case.source)
        code, paths = self._code(case.source), [images] if isinstance(images, str) else images
        case.name = self._name(case)
        if not self.options.digests:
            case.inputs = [CaseFile(code or path) for path in paths]
            case.outputs = [CaseFile(path) for path in case.written]
            return
        case.inputs = [CaseFile.read(path, case.frames, shown=code, names=self.pseudonyms) for path in paths]
        case.outputs = [CaseFile.read(path) for path in case.written]

    def _preprocess(self, case: _Case, item: dict[Any, Any], *, start: int) -> Any:
        return preprocess_on(self.device, partial(case.transforms.preprocessing, start=start), item, self._stream)

    def _compute(self, case: _Case) -> None:
        image, stages = case.item["image"], case.stages
        if len(image) != self.channels:
            rule = "the preprocessed image must have the channels of the network first"
            expected = (self.channels, *"xyz"[: image.ndim - 1])
            raise DataError(rule, file=first_path(case.source), received=tuple(image.shape), expected=expected)
        is_split = self.options.benchmark
        with stages.measure_inferer(self.network, self.device) if is_split else stages.measure("network"):
            case.item["pred"] = self.logits(image)
        if self.reviewer is not None:
            with stages.measure("network"):
                case.item["agreement"] = measure_agreement(self, image)

    def _decided(self, case: _Case) -> dict[Any, Any]:
        self._compute(case)
        return self._restore(case)

    def _restore(self, case: _Case) -> dict[Any, Any]:
        """Run the postprocessing up to the first writer, and review the result."""
        steps, item, case.item = case.transforms.postprocessing, case.item, {}
        with case.stages.measure("restore"):
            item = steps(item, end=steps_up_to(steps, SavePredictiond, last=False))
            if self.reviewer is not None:
                item["review"] = self.reviewer.review(item, self._name(case))
        return item

    def _write(self, case: _Case) -> None:
        item, steps = self._restore(case), case.transforms.postprocessing
        case.review = item.get("review")
        with case.stages.measure("write"):
            item = steps(item, start=steps_up_to(steps, SavePredictiond, last=False))
        case.path, case.measurements = Path(item["pred_path"]), item.get("measurements", [])
        written = ((item[f"{key}_path"], saver) for saver in savers_of(steps) for key in saver.keys)
        case.written = [file for path, saver in written for file in result_files(path, saver)]

    def _guarded(self, stage: Callable[[_Case], None], case: _Case) -> _Case:
        """Run a stage; an exception ends this case only, unless the device rejects all further work."""
        if case.is_over:
            return case
        try:
            with typed_errors(self.device):
                stage(case)
        except DeviceError:
            raise
        except Exception as failure:
            case.item, case.path, case.written = {}, None, []
            case.error = find_cause(failure)
            codes, (images, _) = self.pseudonyms, parts(case.source)
            if case.error is None:  # not a fault of the input: the log gets the traceback
                name = case.source if codes is None else codes.code(images)
                logger.debug("%s: unexpected error", name, exc_info=codes is None)
                case.error = unexpected(failure, case.source)
            if codes is not None:
                case.error = codes.hide(case.error, images)
        return case
