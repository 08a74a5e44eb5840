"""The SHA-256 of a bundle's weights, in its metadata."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medunet.files import sha256_of, write_atomically

from .scan import WEIGHTS

WEIGHT_SUFFIXES = (".pt", ".safetensors")
METADATA = Path("configs") / "metadata.json"


def record_weights(bundle: Path, *, exclude: tuple[str, ...] = (), to_text: Callable[[Mapping[str, Any]], str]) -> None:
    """Write the SHA-256 of the final weights, except the files in `exclude`, into metadata.json, if it exists."""
    metadata = _read(bundle)
    if metadata is not None:
        paths = sorted(path for path in (bundle / "models").glob("*") if path.suffix in WEIGHT_SUFFIXES)
        hashes = {path.name: sha256_of(path) for path in paths if path.name not in exclude and path.name[0] != "."}
        write_atomically(bundle / METADATA, to_text({**metadata, WEIGHTS: hashes}))


def forget_weights(bundle: Path) -> None:
    """Remove recorded hashes before weights change."""
    metadata = _read(bundle)
    if metadata is not None and metadata.pop(WEIGHTS, None) is not None:
        write_atomically(bundle / METADATA, json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")


def _read(bundle: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((bundle / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
