"""A cluster for each test that asks for one: machines die in them."""

from collections.abc import Iterator
from typing import Any

import pytest

from .ray_cluster import two_machines


@pytest.fixture
def cluster() -> Iterator[Any]:
    yield from two_machines()
