"""Errors say what, where and what to do, in one line."""

from __future__ import annotations

import pytest
from monai.bundle import ConfigParser

from medunet.errors import ConfigError, DataError, MedunetError, find_cause


def test_message_is_one_line_with_file_values_and_remedy() -> None:
    error = DataError("wrong", file="a/b.png", received=3, expected=[0, 1], remedy="relabel")
    assert str(error) == "a/b.png: wrong (received 3, expected [0, 1]); remedy: relabel"
    assert (error.file, error.received, error.expected, error.remedy) == ("a/b.png", 3, [0, 1], "relabel")


def test_zero_and_empty_values_are_values() -> None:
    assert str(ConfigError("too few", received=0, expected=())) == "too few (received 0, expected ())"


def test_the_typed_error_is_found_behind_two_wrappers() -> None:
    with pytest.raises(RuntimeError) as info:
        try:
            try:
                raise ConfigError("inner")
            except ConfigError as error:
                raise ValueError("middle") from error
        except ValueError as error:
            raise RuntimeError("outer") from error
    assert isinstance(find_cause(info.value), ConfigError)


def test_an_error_without_typed_cause_has_none() -> None:
    assert find_cause(ValueError("x")) is None
    assert isinstance(find_cause(MedunetError("x")), MedunetError)


def test_a_wrong_argument_is_a_value_error_and_a_bad_file_is_not() -> None:
    assert issubclass(ConfigError, ValueError)
    assert not issubclass(DataError, ValueError)


def test_a_component_that_rejects_its_arguments_is_a_typed_error() -> None:
    parser = ConfigParser({"weight": {"_target_": "torch.optim.AdamW", "params": [], "lr": -1}})
    with pytest.raises(RuntimeError) as info:
        parser.get_parsed_content("weight")
    assert str(find_cause(info.value)).startswith("torch.optim.AdamW rejects its arguments: ")
    assert find_cause(RuntimeError("a fault of medunet")) is None
