"""Merging by name, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from medunet.bundle.config import accepted_arguments, check_config, known_part, load_yaml, merge
from medunet.errors import ConfigError


def test_inner_keys_merge_and_lists_are_replaced() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 1}
    assert merge(base, {"a": {"y": [3]}}) == {"a": {"x": 1, "y": [3]}, "b": 1}
    assert base == {"a": {"x": 1, "y": [1, 2]}, "b": 1}


def test_arguments_of_an_old_target_do_not_survive_a_new_one() -> None:
    base = {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 1, "weight_decay": 0.1}}
    overlay = {"optimizer": {"_target_": "torch.optim.SGD", "lr": 2}}
    assert merge(base, overlay) == overlay


def test_unknown_keys_are_found_at_any_depth() -> None:
    known, unknown = known_part({"a": {"x": 1}, "b": 2}, {"a": {"x": 3, "z": 4}, "c": 5})
    assert known == {"a": {"x": 3}}
    assert unknown == {"a::z", "c"}


def test_a_misspelt_argument_is_an_error_that_names_the_right_one() -> None:
    config = {"network_def": {"_target_": "medunet.networks.UNet", "spatal_dims": 2}}
    with pytest.raises(ConfigError, match=r"spatal_dims.*spatial_dims"):
        check_config(config, source="train.json")


def test_a_reference_to_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="@devise"):
        check_config({"device": "cpu", "network": "$@devise"}, source="train.json")
    check_config({"device": "cpu", "network": "$@device", "t": {"x": 1}, "y": "@t#x"}, source="train.json")


def test_a_target_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ConfigError, match="NoSuchTransformd"):
        check_config({"t": {"_target_": "NoSuchTransformd"}}, source="train.json")


def test_arguments_of_base_classes_count_where_they_are_passed_on() -> None:
    accepted = accepted_arguments("medunet.training.Trainer")
    assert accepted is not None
    assert {"clip_grad_norm", "max_epochs"} <= accepted


def test_a_number_without_a_point_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("learning_rate: 1e-3\nrates: [0, -1E+2]\n")
    assert load_yaml(path) == {"learning_rate": 0.001, "rates": [0, -100.0]}


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n"])
def test_a_broken_source_names_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_yaml(path)
