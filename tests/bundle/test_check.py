"""References, targets and arguments of a config."""

from typing import Any

import pytest

from medunet.bundle.check import accepted_arguments, check_config
from medunet.errors import ConfigError


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"network_def": {"_target_": "medunet.networks.UNet", "spatal_dims": 2}}, r"spatal_dims.*spatial_dims"),
        ({"steps": [{"_target_": "DataLoader", "dataset": None, "batchsize": 2}]}, "steps::0::batchsize"),
        ({"device": "cpu", "network": "$@devise"}, "network: @devise.*device"),
        ({"t": {"_target_": "NoSuchTransformd"}}, "NoSuchTransformd"),
    ],
)
def test_a_fault_is_named_by_id_with_the_closest_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config(config, source="train.json")


def test_inner_ids_and_arguments_of_base_classes_are_known() -> None:
    load = {"_target_": "LoadImaged", "keys": "image", "as_closest_canonical": True}  # passed to the reader
    check_config({"device": "cpu", "network": "$@device", "t": {"x": 1}, "y": "@t#x", "load": load}, source="")
    assert {"clip_grad_norm", "max_epochs"} <= (accepted_arguments("medunet.training.Trainer") or set())
