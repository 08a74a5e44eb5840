"""MONAI's engines with autocast on any device, gradient clipping, weight maps and errors for non-finite losses."""

import importlib.util
import logging
import math
import os
import shutil
from collections.abc import Sequence
from typing import Any

import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys as Keys

from medunet.errors import ConfigError, DataError, first_lines
from medunet.networks.arguments import choose
from medunet.runtime import autocast, keep_freed_memory, resolve_dtype
from medunet.runtime.cuda import timed_kernels

logger = logging.getLogger(__name__)

MAX_OVERFLOWS = 20  # consecutive steps that float16 overflows may skip; the loss scale halves at each
COMPILE_STEPS = 5000  # of a run on a GPU from which the minute that compiling takes is worth it


class Trainer(SupervisedTrainer):
    """MONAI's ``SupervisedTrainer`` with five additions.

    On a GPU no step waits for the GPU: the loss in ``state.output`` stays there, and whether it is finite is checked
    when the next step has been submitted, or at the end of the epoch. In float16 a loss that overflows skips its step.

    Args:
        autocast_dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``; MONAI's engine supports CUDA only.
            The loss is always computed in float32.
        clip_grad_norm: largest Euclidean norm of the gradient; ``None`` does not clip.
        loss_keys: batch keys that the loss gets after prediction and label, e.g. ``["weight"]`` for
            :class:`medunet.losses.BorderWeightedCELoss`.
        compile_network: use ``torch.compile``, which fuses the operations between convolutions. It needs half a minute
            once, a C++ compiler, and patches of one size. None compiles runs of `COMPILE_STEPS` on a GPU with Triton;
            "graphs" compiles with CUDA graphs, for patches so small that starting kernels takes longer than they run.
        **kwargs: arguments of ``monai.engines.SupervisedTrainer`` except ``amp``, ``compile`` and
            ``accumulation_steps``, which need CUDA or its own iteration. Outputs are decollated only for
            ``postprocessing`` and ``key_train_metric``.

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
        compile_network: bool | str | None = False,
        **kwargs: Any,
    ) -> None:
        if rejected := {"amp", "compile", "accumulation_steps"} & kwargs.keys():
            expected = "autocast_dtype and compile_network"
            raise ConfigError("not an argument of medunet's trainer", received=sorted(rejected), expected=expected)
        kwargs.setdefault("decollate", bool({"postprocessing", "key_train_metric"} & kwargs.keys()))
        choose("compile_network", compile_network, [None, False, True, "graphs"])
        super().__init__(**kwargs)
        has_compiler = any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++", "cl"))))
        if compile_network and not has_compiler:
            raise ConfigError("torch.compile needs a C++ compiler", expected="one of CXX, g++, clang++")
        self._on_gpu = self.state.device.type == "cuda"
        if compile_network is None and self._on_gpu and has_compiler and importlib.util.find_spec("triton"):
            compile_network = self.state.max_epochs * self.state.epoch_length >= COMPILE_STEPS
        # both have the same weights; checkpoints and validation use the network itself
        mode = "reduce-overhead" if compile_network == "graphs" else None
        self._forward = torch.compile(self.network, dynamic=False, mode=mode) if compile_network else self.network
        self.autocast_dtype = autocast_dtype
        self.clip_grad_norm = clip_grad_norm
        self.loss_keys = tuple(loss_keys)
        uses_float16 = resolve_dtype(self.state.device, autocast_dtype) is torch.float16
        self.grad_scaler = torch.amp.GradScaler(self.state.device.type, enabled=uses_float16)
        self._unchecked: list[tuple[torch.Tensor, Any, int, dict[str, Any]]] = []
        self._overflows = 0
        if not self._on_gpu:
            keep_freed_memory()

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> list[dict[str, Any]]:
        with timed_kernels(self._on_gpu):  # patches have one size
            try:
                return self._step(engine, batchdata)
            except RuntimeError as error:
                if self._forward is self.network or not isinstance(error, torch._dynamo.exc.TorchDynamoException):
                    raise
                logger.warning("torch.compile failed; the network runs without it: %s", first_lines(error, 2))
                self._forward = self.network
                return self._step(engine, batchdata)

    def _step(self, engine: Any, batchdata: dict[str, Any]) -> list[dict[str, Any]]:
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
        self._check_losses(loss.detach(), batchdata)
        engine.fire_event(IterationEvents.LOSS_COMPLETED)

        self.grad_scaler.scale(loss).backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if self.clip_grad_norm is not None:
            self.grad_scaler.unscale_(engine.optimizer)
            torch.nn.utils.clip_grad_norm_(engine.network.parameters(), self.clip_grad_norm)
        self.grad_scaler.step(engine.optimizer)
        self.grad_scaler.update()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)  # decollates into one output per case, if that is on
        # a list in any case, as MONAI's handlers expect
        return engine.state.output if isinstance(engine.state.output, list) else [engine.state.output]

    def _check_losses(self, loss: torch.Tensor, batch: dict[str, Any]) -> None:
        """Check the loss of this step, or on a GPU that of the step before, whose copy has arrived by now."""
        state, copied = self.state, None
        loss = loss.to("cpu", non_blocking=True)  # into pinned memory
        if self._on_gpu:
            copied = torch.cuda.Event()
            copied.record()
        self._unchecked.append((loss, copied, state.iteration, batch))
        is_last = state.iteration % state.epoch_length == 0
        while len(self._unchecked) > (self._on_gpu and not is_last):
            self._check_loss(*self._unchecked.pop(0))

    def _check_loss(self, loss: torch.Tensor, copied: Any, iteration: int, batch: dict[str, Any]) -> None:
        if copied is not None:
            copied.synchronize()
        if math.isfinite(loss):
            self._overflows = 0
            return
        self._overflows += 1
        finite, scaled = bool(torch.isfinite(batch[Keys.IMAGE]).all()), self.grad_scaler.is_enabled()
        # statistics of batch norm would not recover
        recovers = all(bool(buffer.isfinite().all()) for buffer in self.network.buffers())
        if finite and scaled and recovers and self._overflows <= MAX_OVERFLOWS:
            return  # the scaler skips the step if a gradient is not finite either
        remedy = "set autocast_dtype to float32" if scaled else "lower learning_rate"
        remedy = remedy if finite else "check these cases with `medunet check`"
        voxels = "finite voxels" if finite else "voxels that are not finite"
        names = ", ".join(map(str, batch.get("name", ["unknown"])))
        cause = f"loss is {float(loss)} in iteration {iteration}, the batch has {voxels}: {names}"
        raise DataError(cause, remedy=remedy)


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

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> list[dict[str, Any]]:
        with autocast(engine.state.device, self.autocast_dtype):
            return super()._iteration(engine, batchdata)
