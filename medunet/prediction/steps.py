"""Some steps of a chain of transforms, with typed errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from monai.transforms import Compose

from medunet.errors import find_cause


@contextmanager
def typed_errors() -> Iterator[None]:
    """Raise the typed error that MONAI's transforms wrap into a RuntimeError."""
    try:
        yield
    except Exception as failure:
        cause = find_cause(failure)
        if cause is None or cause is failure:
            raise
        raise cause from failure


def steps_up_to(transform: Callable[..., Any], kinds: tuple[type, ...], *, last: bool) -> int:
    """Count the steps of a Compose through the last, or before the first, of some kinds; 0 or all without one."""
    steps = transform.transforms if isinstance(transform, Compose) else ()
    places = [index for index, step in enumerate(steps) if isinstance(step, kinds)]
    if last:
        return places[-1] + 1 if places else 0
    return places[0] if places else len(steps)


def run_steps(transform: Callable[..., Any], item: Any, *, start: int = 0, end: int | None = None) -> Any:
    """Run some steps of a Compose; anything else runs entirely, as step 0."""
    if isinstance(transform, Compose):
        return transform(item, start=start, end=end)
    return transform(item) if start == 0 and end is None else item
