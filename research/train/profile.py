"""Trace some steps of a run for xprof."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import jax

T = TypeVar("T")


def profiled(
    items: Iterable[T], first: int, steps: tuple[int, int] | None, folder: Path
) -> Iterator[T]:
    """Pass on the items of steps `first + 1, ...`, tracing those from `steps[0]` to `steps[1]`.

    The trace also ends with the items, so it never spans two cycles.
    """
    begin, end = (0, -1) if steps is None else steps
    tracing = False
    try:
        for number, item in enumerate(items, start=first + 1):
            if not tracing and begin <= number <= end:
                jax.profiler.start_trace(str(folder))
                tracing = True
            yield item
            if tracing and number >= end:
                jax.profiler.stop_trace()
                tracing = False
    finally:
        if tracing:
            jax.profiler.stop_trace()
