"""Trace some steps of a run for xprof."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import jax

T = TypeVar("T")


def profiled(
    items: Iterable[T],
    first: int,
    steps: tuple[int, int] | None,
    folder: Path,
    wait: Callable[[], object],
) -> Iterator[T]:
    """Pass on the items of steps `first + 1, ...`, tracing those from `steps[0]` to `steps[1]`.

    The trace also ends with the items: what lies in the next cycle is a trace of its own.

    Args:
      wait: called before a trace ends, so that the devices have done what it is to show.
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
                wait()
                jax.profiler.stop_trace()
                tracing = False
    finally:
        if tracing:
            wait()
            jax.profiler.stop_trace()
