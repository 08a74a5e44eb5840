"""MONAI's engines with autocast on any device, gradient clipping, weight maps and errors for non-finite losses."""

import os
import shutil
from collections.abc import Sequence
from typing import Any

import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys as Keys

from medunet.errors import ConfigError, DataError
from medunet.runtime import autocast, keep_freed_memory, resolve_dtype


class Trainer(SupervisedTrainer):
    """MONAI's ``SupervisedTrainer`` with five additions.

    Args:
        autocast_dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``; MONAI's engine supports CUDA only.
            The loss is always computed in float32.
        clip_grad_norm: largest Euclidean norm of the gradient; ``None`` does not clip.
        loss_keys: batch keys that the loss gets after prediction and label, e.g. ``["weight"]`` for
            :class:`medunet.losses.BorderWeightedCELoss`.
        compile_network: use ``torch.compile``, which fuses the operations between convolutions. It needs half a minute
            once, a C++ compiler, and patches of one size.
        **kwargs: arguments of ``monai.engines.SupervisedTrainer`` except ``amp``, ``compile`` and
            ``accumulation_steps``, which need CUDA or its own iteration.

    Raises:
        ConfigError: There is no compiler.
        DataError: During ``run()``: the loss is not finite; the error names the cases of the batch.
    """

    def __init__(
        self,
        *,
        autocast_dtype: str = "auto",
        clip_grad_norm: float | None = None,
        loss_keys: Sequence[str] = (),
        compile_network: bool = False,
        **kwargs: Any,
    ) -> None:
        if rejected := {"amp", "compile", "accumulation_steps"} & kwargs.keys():
            expected = "autocast_dtype and compile_network"
            raise ConfigError("not an argument of medunet's trainer", received=sorted(rejected), expected=expected)
        super().__init__(**kwargs)
        compilers = filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++", "cl"))
        if compile_network and not any(map(shutil.which, compilers)):
            raise ConfigError("torch.compile needs a C++ compiler", expected="one of CXX, g++, clang++")
        # both have the same weights; checkpoints, averages and validation use the network itself
        self._forward = torch.compile(self.network, dynamic=False) if compile_network else self.network
        self.autocast_dtype = autocast_dtype
        self.clip_grad_norm = clip_grad_norm
        self.loss_keys = tuple(loss_keys)
        uses_float16 = resolve_dtype(self.state.device, autocast_dtype) is torch.float16
        self.grad_scaler = torch.amp.GradScaler(self.state.device.type, enabled=uses_float16)
        if self.state.device.type == "cpu":
            keep_freed_memory()

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        if batchdata is None:
            raise DataError("the data loader returned an empty batch")
        inputs, targets = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        extra = [batchdata[key].to(engine.state.device, non_blocking=engine.non_blocking) for key in self.loss_keys]
        output = engine.state.output = {Keys.IMAGE: inputs, Keys.LABEL: targets}

        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        with autocast(engine.state.device, self.autocast_dtype):
            logits = engine.inferer(inputs, self._forward)
        # deep supervision has a list of logits
        output[Keys.PRED] = [x.float() for x in logits] if isinstance(logits, list | tuple) else logits.float()
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        output[Keys.LOSS] = loss = engine.loss_function(output[Keys.PRED], targets, *extra).mean()
        if not torch.isfinite(loss):
            finite = bool(torch.isfinite(batchdata[Keys.IMAGE]).all())
            raise DataError(
                f"loss is {float(loss.detach())} in iteration {self.state.iteration}, the batch has "
                f"{'finite voxels' if finite else 'voxels that are not finite'}: "
                f"{', '.join(map(str, batchdata.get('name', ['unknown'])))}",
                remedy="lower learning_rate" if finite else "check these cases with `medunet check`",
            )
        engine.fire_event(IterationEvents.LOSS_COMPLETED)

        self.grad_scaler.scale(loss).backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if self.clip_grad_norm is not None:
            self.grad_scaler.unscale_(engine.optimizer)
            torch.nn.utils.clip_grad_norm_(engine.network.parameters(), self.clip_grad_norm)
        self.grad_scaler.step(engine.optimizer)
        self.grad_scaler.update()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)  # decollates into one output per case, if that is on
        return engine.state.output


class Evaluator(SupervisedEvaluator):
    """MONAI's ``SupervisedEvaluator`` with autocast on any device.

    Args:
        autocast_dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        **kwargs: arguments of ``monai.engines.SupervisedEvaluator``.
    """

    def __init__(self, *, autocast_dtype: str = "auto", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.autocast_dtype = autocast_dtype
        if self.state.device.type == "cpu":
            keep_freed_memory()

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        with autocast(engine.state.device, self.autocast_dtype):
            return super()._iteration(engine, batchdata)
