"""Freed memory that is kept is used again without new pages."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, sys
import torch
from medunet.runtime import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(1 << 26, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
kept = keep_freed_memory()
faults()
print(json.dumps([first, kept, faults()]))
"""


def run(**environment: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_a_large_tensor_costs_its_pages_once() -> None:
    before, kept, after = run()
    assert kept
    assert before > 4 * 10_000  # 64 MiB in pages of 4 KiB are 16,384
    assert after < 1_000


def test_the_environment_can_refuse() -> None:
    assert run(MEDUNET_KEEP_MEMORY="0")[1] is False
