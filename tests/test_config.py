"""Values by config id."""

from pathlib import Path
from typing import Any

import pytest

from medunet.config import apply, apply_all, parse_settings, parse_yaml, read_yaml, to_json
from medunet.errors import ConfigError


@pytest.mark.parametrize("text", ["1e-3", "-2E+4", "1.5e3", ".5e1", "1.e2"])
def test_every_spelling_of_a_float_is_parsed_as_a_number(text: str, tmp_path: Path) -> None:
    assert parse_yaml(f"[{text}]") == [float(text)]
    assert parse_settings([f"x={text}"]) == {"x": float(text)}
    (tmp_path / "a.yaml").write_text(f"learning_rate: {text}\n")
    assert read_yaml(tmp_path / "a.yaml") == {"learning_rate": float(text)}


@pytest.mark.parametrize("text", ["e3", "1.2.3", "1e", "nan", "2e4x", "-e1", "$torch.device('cpu')", "@x", "cpu", ""])
def test_other_values_stay_strings(text: str) -> None:
    assert parse_settings([f"x={text}"]) == {"x": text}


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", None])
def test_an_error_in_a_yaml_source_names_its_file(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "broken.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("new", "old"), [("fast", 0.003), (True, 0.003), ("fast", 60), (False, 1), (1, True), ("yes please", False)]
)
def test_a_value_of_another_type_is_rejected(new: Any, old: Any) -> None:
    expected = "true or false" if isinstance(old, bool) else "a number"
    with pytest.raises(ConfigError, match=rf"learning_rate must be {expected} \(received {new}\)"):
        apply({"learning_rate": old}, {"learning_rate": new})


@pytest.mark.parametrize(
    ("new", "old"),
    [(1, 0.5), (0.5, 1), ("$@x", 1), ("@x", True), ([1, 2], 2), (None, 12.0), (True, False), (3, "auto"), ("a", None)],
)
def test_a_value_of_a_compatible_type_is_accepted(new: Any, old: Any) -> None:
    assert apply({"id": old}, {"id": new}) == {"id": new}


def test_an_overlay_changes_a_copy_in_every_config_that_has_the_id() -> None:
    configs = {"train": {"a": {"x": 1, "y": [1, 2]}, "b": 1}, "inference": {"a": {"x": 1}}}
    changed = apply_all(configs, {"a#x": 3, "a::y": [3], "b": 2})
    assert changed == {"train": {"a": {"x": 3, "y": [3]}, "b": 2}, "inference": {"a": {"x": 3}}}
    assert configs == {"train": {"a": {"x": 1, "y": [1, 2]}, "b": 1}, "inference": {"a": {"x": 1}}}


def test_a_component_is_replaced_as_one_value_and_takes_further_arguments() -> None:
    config = {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 1, "weight_decay": 0.1}}
    other = {"_target_": "torch.optim.SGD", "lr": 2}
    assert apply(config, {"optimizer": other}) == {"optimizer": other}
    assert apply(config, {"optimizer::betas": [0, 1]})["optimizer"]["betas"] == [0, 1]


def test_an_unknown_id_is_rejected_unless_an_overlay_may_define_it() -> None:
    config = {"steps": {"load": 1}, "epochs": 3}
    for id_, similar in (("epoch", "epochs"), ("steps::laod", "steps::load"), ("a::b", "ids of the config")):
        with pytest.raises(ConfigError, match=f"unknown config key.*{id_}.*{similar}"):
            apply(config, {id_: 1})
    assert apply(config, {"steps::save": 2, "lr": 1}, define=True)["steps"] == {"load": 1, "save": 2}
    with pytest.raises(ConfigError, match="unknown config key"):
        apply(config, {"absent::save": 2}, define=True)


def test_short_lists_are_written_on_one_line() -> None:
    assert to_json({"a": [1, 2], "b": {"c": ["x"]}}) == '{\n  "a": [1, 2],\n  "b": {\n    "c": ["x"]\n  }\n}\n'
