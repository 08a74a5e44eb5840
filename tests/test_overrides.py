"""Values that a user gives by config id."""

from __future__ import annotations

from typing import Any

import pytest

from medunet.errors import ConfigError
from medunet.overrides import check_type, parse_yaml


@pytest.mark.parametrize("text", ["1e-3", "-2E+4", "1.5e3", ".5e1", "1.e2"])
def test_every_spelling_of_a_float_is_a_number(text: str) -> None:
    assert parse_yaml(text) == float(text)
    assert parse_yaml(f"[{text}]") == [float(text)]


@pytest.mark.parametrize("text", ["e3", "1.2.3", "1e", "nan", "2e4x", "-e1"])
def test_other_texts_stay_texts(text: str) -> None:
    assert parse_yaml(text) == text


@pytest.mark.parametrize(
    ("new", "old"), [("fast", 0.003), (True, 0.003), ("fast", 60), (False, 1), (1, True), ("yes please", False)]
)
def test_a_value_of_another_type_is_rejected_by_id_type_and_value(new: Any, old: Any) -> None:
    expected = "true or false" if isinstance(old, bool) else "a number"
    with pytest.raises(ConfigError, match=rf"learning_rate must be {expected} \(received {new}\)"):
        check_type("learning_rate", new, old)


@pytest.mark.parametrize(
    ("new", "old"),
    [(1, 0.5), (0.5, 1), ("$@x", 1), ("@x", True), ([1, 2], 2), (None, 12.0), (True, False), (3, "auto"), ("a", None)],
)
def test_a_value_that_can_mean_something_is_accepted(new: Any, old: Any) -> None:
    check_type("id", new, old)
