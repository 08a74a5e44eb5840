"""Damaged weights are a DataError, not a question of trust, and no message asks for less safety."""

import json
from pathlib import Path

import pytest
import torch

from medunet.errors import DataError
from medunet.files import sha256_of
from medunet.networks import UNet
from medunet.runtime import load_checkpoint, load_weights
from medunet.runtime.weights import save_weights
from medunet.trust import UntrustedBundleError, judge, require_trust

NETWORK = UNet(2, 1, 2, channels=[4, 8])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Write a bundle whose metadata record the hash of its weights."""
    save_weights(NETWORK.state_dict(), tmp_path / "models" / "model.pt")
    (tmp_path / "configs").mkdir()
    recorded = {"weights": {"model.pt": sha256_of(tmp_path / "models" / "model.pt")}}
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps(recorded))
    return tmp_path


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("kind", ["truncated", "empty", "flipped"])
def test_the_error_names_damaged_weights_and_their_copy(bundle: Path, kind: str, trust: bool) -> None:
    path = bundle / "models" / "model.pt"
    assert judge(bundle).is_trusted
    data = path.read_bytes()
    middle = data.index(b"data/0") + 200
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "flipped": flipped}[kind])
    for read in (lambda: require_trust(bundle, trust=trust), lambda: load_checkpoint(path)):
        with pytest.raises(DataError, match=r"model\.pt: the file is damaged: .*model\.safetensors beside it") as info:
            read()
        assert not {"--trust", "weights_only", "MEDUNET_TRUST"} & set(str(info.value).split())
    path.unlink()
    load_weights(NETWORK, path)  # as the message says
    assert require_trust(bundle).is_trusted


def test_intact_but_different_weights_need_trust(bundle: Path) -> None:
    torch.save({"model": NETWORK.state_dict()}, bundle / "models" / "model.pt")
    with pytest.raises(UntrustedBundleError, match=r"weights do not match metadata\.json"):
        require_trust(bundle)


def test_a_checkpoint_with_objects_is_rejected_without_suggesting_to_load_them(tmp_path: Path) -> None:
    torch.save({"model": Path("x")}, tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"must be a PyTorch file that contains only tensors .*pathlib") as info:
        load_checkpoint(tmp_path / "model.pt")
    assert "weights_only" not in str(info.value)
