"""Checkpoints of third parties and of failing disks are read or rejected with a typed error."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from medunet.errors import DataError, MedunetError
from medunet.files import is_whole_zip
from medunet.networks import UNet
from medunet.runtime import load_checkpoint, load_weights


@pytest.mark.parametrize(
    "weights", [[1], None, "x", {1: torch.zeros(1)}, {"a": "x"}, {"a": {"b": 1}}], ids=lambda value: str(value)[:12]
)
def test_invalid_weights_are_rejected(weights: Any, tmp_path: Path) -> None:
    torch.save({"model": weights}, tmp_path / "model.pt")
    with pytest.raises(DataError, match="weights do not fit"):
        load_weights(UNet(2, 1, 2, channels=(4, 8)), tmp_path / "model.pt")


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_changed_byte_raises_no_untyped_error(is_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    content = {"model": {"a": torch.ones(3, 5), "b": torch.arange(4)}}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    whole = path.read_bytes()
    source = random.Random(2)
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([source.randrange(256)]) + whole[place + 1 :])
        is_whole_zip(path)
        try:
            load_checkpoint(path)
        except MedunetError:
            continue
