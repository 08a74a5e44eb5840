"""scripts/bench_export.py, tried in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "bench_export.py"


@pytest.mark.slow
def test_all_systems_take_turns_on_one_image(bundles: dict[str, Path], volume: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Mine\n<!-- export -->\n<!-- end of export -->\n")
    words = ["--case", bundles["padded"], volume, "--rounds", 1, "--results", tmp_path / "r.json", "--readme", readme]
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["system"]: row for row in json.loads((tmp_path / "r.json").read_text())["rows"]}
    assert rows.keys() == {"torch, float32", "medunet", "torchscript", "torch-export", "onnx", "openvino"}
    for name, row in rows.items():
        assert "absent" in row or row["unlike"] == 0 or name == "medunet"
    assert "| torch, float32 |" in readme.read_text()
