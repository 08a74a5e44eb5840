"""Training steps: medunet's with one part left out at a time, beside a plain step of MONAI."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss

from medunet.training import Muon, Trainer
from scripts.gpu.measure import Job
from scripts.gpu.networks import NARROW, WIDE, network


class Unmeasured(Trainer):
    """A trainer whose kernels cuDNN does not measure."""

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> list[dict[str, Any]]:
        return self._step(engine, batchdata)


def steps(job: Job) -> None:
    """Seconds per step for large and for small patches; batches are on the device."""
    sizes = {"2 x 128^3": (WIDE, 2, (128, 128, 128)), "9 x 40 x 56 x 40": (NARROW, 9, (40, 56, 40))}
    for size, (channels, batch, patch) in list(sizes.items())[: job.size(None, 1)]:
        made = _settings(job, channels, *job.size((batch, patch), (2, (16, 16, 16))))
        for name, make in made.items():
            job.attempt(f"{size}: {name}", partial(_step, job, f"{size}: {name}", make))


def _settings(job: Job, channels: list[int], batch: int, patch: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    items = []
    for _ in range(job.size(20, 3)):
        image = torch.randn(batch, 1, *patch, device=job.device)
        items.append({"image": image, "label": (image > 1).to(torch.uint8)})

    def make(kind: type[SupervisedTrainer] = Trainer, *, last: bool = True, muon: bool = True, **options: Any) -> Any:
        layout = torch.channels_last_3d if last else torch.contiguous_format
        module = network(job, channels).to(device=job.device, memory_format=layout)  # type: ignore[call-overload]
        return kind(
            device=job.device,
            max_epochs=2,
            train_data_loader=items,
            network=module,
            optimizer=Muon(module.parameters()) if muon else torch.optim.AdamW(module.parameters(), fused=True),
            loss_function=DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True),
            **options,
        )

    clip = {"clip_grad_norm": 12.0}
    found: dict[str, Callable[[], Any]] = {
        "medunet": lambda: make(**clip),
        "medunet, fused AdamW": lambda: make(muon=False, **clip),
        "medunet, kernels not measured": lambda: make(Unmeasured, **clip),
        "medunet, channels first": lambda: make(last=False, **clip),
        "medunet, float32": lambda: make(autocast_dtype="float32", **clip),
        "MONAI's SupervisedTrainer with amp": lambda: make(SupervisedTrainer, last=False, muon=False, amp=True),
    }
    if not job.pretend:  # a simulated device cannot compile
        found["medunet, compiled"] = lambda: make(compile_network=True, **clip)
        found["medunet, compiled with CUDA graphs"] = lambda: make(compile_network="graphs", **clip)
    return found


def _step(job: Job, name: str, make: Callable[[], Any]) -> None:
    """Time a step in the second epoch."""
    trainer = make()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    trainer.add_event_handler(Events.EPOCH_STARTED(once=2), lambda _: events[0].record())
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda _: events[1].record())
    trainer.run()
    torch.cuda.synchronize()
    milliseconds = 0.0 if job.pretend else events[0].elapsed_time(events[1])
    job.emit(name, milliseconds / trainer.state.epoch_length, "ms")
