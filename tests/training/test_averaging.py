"""The average of weights is what is validated and kept; training goes on with the newest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ignite.engine import Events

from medunet.errors import ConfigError
from medunet.runtime import load_checkpoint
from medunet.training import BEST_NAME, LAST_NAME, Trainer, WeightAverage


def snapshot(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_average_is_that_of_a_loop_over_all_steps(tmp_path: Path, make_validated: Callable[..., Trainer]) -> None:
    trainer = make_validated(tmp_path, epochs=2, decay=0.3)
    steps: list[dict[str, torch.Tensor]] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: steps.append(snapshot(engine.network)))
    trainer.run()
    expected = {name: tensor.double() for name, tensor in steps[0].items()}
    for n, weights in enumerate(steps[1:], start=1):
        decay = min(0.3, (1 + n) / (10 + n))
        expected = {name: decay * expected[name] + (1 - decay) * weights[name].double() for name in expected}
    found = load_checkpoint(tmp_path / LAST_NAME)["average"]
    assert found["steps"] == len(steps) == 8
    assert found["average"].keys() == expected.keys() - {"1.num_batches_tracked"}
    for name, tensor in found["average"].items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_the_validator_sees_the_average_and_the_trainer_the_newest(
    tmp_path: Path, make_validated: Callable[..., Trainer]
) -> None:
    trainer = make_validated(tmp_path, epochs=1)
    average = next(h for h in (f[0] for f in trainer._event_handlers[Events.ITERATION_COMPLETED]) if _is_update(h))
    validator = average.__self__.validator
    seen: dict[str, dict[str, torch.Tensor]] = {}
    validator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.update(validated=snapshot(engine.network))
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.update(trained=snapshot(engine.network)))
    trainer.run()
    best, last = (load_checkpoint(tmp_path / name) for name in (BEST_NAME, LAST_NAME))
    assert same(best["model"], seen["validated"])
    assert same(last["model"], seen["trained"])
    assert same(snapshot(trainer.network), seen["trained"])
    assert not same(seen["validated"], seen["trained"])


def _is_update(handler: object) -> bool:
    return isinstance(getattr(handler, "__self__", None), WeightAverage)


@pytest.mark.parametrize("decay", [0.0, 0.99])
def test_a_resumed_training_ends_with_the_weights_and_the_average_of_one_that_ran_through(
    tmp_path: Path, make_validated: Callable[..., Trainer], decay: float
) -> None:
    make_validated(tmp_path / "through", epochs=4, decay=decay).run()
    make_validated(tmp_path / "parts", epochs=2, decay=decay).run()
    make_validated(tmp_path / "parts", epochs=4, decay=decay, resume=True).run()
    through, parts = (load_checkpoint(tmp_path / name / LAST_NAME) for name in ("through", "parts"))
    assert same(parts["model"], through["model"])
    assert ("average" in through) == (decay > 0)
    if decay:
        assert parts["average"]["steps"] == through["average"]["steps"]
        assert same(parts["average"]["average"], through["average"]["average"])
    assert same(*(load_checkpoint(tmp_path / name / BEST_NAME)["model"] for name in ("through", "parts")))


def test_without_averaging_the_newest_weights_are_kept(tmp_path: Path, make_validated: Callable[..., Trainer]) -> None:
    trainer = make_validated(tmp_path, epochs=1, decay=0.0)
    trainer.run()
    assert same(load_checkpoint(tmp_path / BEST_NAME)["model"], snapshot(trainer.network))


def test_the_warm_up_follows_closely_at_first() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, decay=0.999)
    for step in range(100):
        torch.nn.init.constant_(network.weight, float(step))
        average.update()
    # a plain decay of 0.999 would still lie near the first weights: about 5
    assert average.weights()["weight"].item() > 85


def test_a_decay_that_is_no_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="ema_decay"):
        WeightAverage(torch.nn.Linear(1, 1), decay=1.0)
