"""A training ends when validation improves no more, and stays ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medunet.runtime import load_checkpoint
from medunet.training import LAST_NAME, Trainer


def test_training_ends_after_the_patience_and_does_not_go_on(
    tmp_path: Path, make_validated: Callable[..., Trainer]
) -> None:
    # with a learning rate of 0 the first validation stays the best; without averaging and with it
    trainer = make_validated(tmp_path, epochs=9, patience=2, learning_rate=0.0, decay=0.0)
    trainer.run()
    best = load_checkpoint(tmp_path / LAST_NAME)["best_epoch"]
    assert trainer.state.epoch == best + 2 < 9
    again = make_validated(tmp_path, epochs=9, patience=2, learning_rate=0.0, decay=0.0, resume=True)
    again.run()
    assert again.state.epoch == trainer.state.epoch
    assert load_checkpoint(tmp_path / LAST_NAME)["finished"]


def test_a_resumed_training_stops_where_an_uninterrupted_one_does(
    tmp_path: Path, make_validated: Callable[..., Trainer]
) -> None:
    through = make_validated(tmp_path / "a", epochs=9, patience=3, learning_rate=0.0)
    through.run()
    make_validated(tmp_path / "b", epochs=2, patience=3, learning_rate=0.0).run()
    parts = make_validated(tmp_path / "b", epochs=9, patience=3, learning_rate=0.0, resume=True)
    parts.run()
    assert parts.state.epoch == through.state.epoch < 9


def test_no_patience_means_no_stop(tmp_path: Path, make_validated: Callable[..., Trainer]) -> None:
    trainer = make_validated(tmp_path, epochs=5, patience=0, learning_rate=0.0)
    trainer.run()
    assert trainer.state.epoch == 5
