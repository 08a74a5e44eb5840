import pytest
from monai.bundle import ConfigParser

from medunet.errors import ConfigError, find_cause


def test_zero_and_empty_values_are_printed() -> None:
    assert str(ConfigError("too few", received=0, expected=())) == "too few (received 0, expected ())"


def test_find_cause_unwraps_nested_errors() -> None:
    with pytest.raises(RuntimeError) as info:
        try:
            try:
                raise ConfigError("inner")
            except ConfigError as error:
                raise ValueError("middle") from error
        except ValueError as error:
            raise RuntimeError("outer") from error
    assert isinstance(find_cause(info.value), ConfigError)
    assert find_cause(RuntimeError("a bug of medunet")) is None


def test_a_component_that_rejects_its_arguments_is_a_typed_error() -> None:
    parser = ConfigParser({"weight": {"_target_": "torch.optim.AdamW", "params": [], "lr": -1}})
    with pytest.raises(RuntimeError) as info:
        parser.get_parsed_content("weight")
    assert str(find_cause(info.value)).startswith("torch.optim.AdamW rejects its arguments: ")
