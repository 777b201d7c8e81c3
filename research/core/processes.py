"""The processes of one run: who of them writes, and what all of them agree on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


class RefusedElsewhereError(RuntimeError):
    """Another process cannot go on, so that none can."""


def is_first() -> bool:
    """Whether this process is the one that writes and speaks; alone, it is."""
    return jax.process_index() == 0


def any_of_all(flag: bool) -> bool:
    """Whether any process says so; all processes call this, and get the same answer."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.int32(flag))))


def wait_for_all(what: str) -> None:
    """Wait until every process has come to this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def told_by_first(ask: Callable[[], T]) -> T:
    """Let the first process ask, and tell all others what it learnt; all processes call this.

    What a file says may differ between hosts for a while; a decision must not.

    Args:
      ask: gives something that JSON can say.

    Raises:
      Exception: whatever `ask` raises, in the first process.
      RefusedElsewhereError: the same, in every other one.
    """
    if jax.process_count() == 1:
        return ask()
    error, said = None, {}
    if is_first():
        try:
            said = {"answer": ask()}
        except Exception as caught:  # the others must hear of it before it goes on its way
            error, said = caught, {"error": str(caught) or type(caught).__name__}
    said = _from_first(said)
    if error is not None:
        raise error
    if "error" in said:
        raise RefusedElsewhereError(f"process 0 stopped: {said['error']}")
    return said["answer"]


def done_by_all(do: Callable[[], T]) -> T:
    """Do the same in every process; where it fails in one, it fails in all.

    Raises:
      Exception: whatever `do` raises in this process.
      RefusedElsewhereError: naming the processes in which it failed, if not here.
    """
    if jax.process_count() == 1:
        return do()
    try:
        done = do()
    except Exception as error:
        from_all({"error": str(error) or type(error).__name__})
        raise
    failed = {x: said["error"] for x, said in enumerate(from_all({})) if "error" in said}
    if failed:
        first, *more = failed
        others = f" (and of {', '.join(map(str, more))})" if more else ""
        raise RefusedElsewhereError(f"an error of process {first}{others}: {failed[first]}")
    return done


def _from_first(value: dict) -> dict:
    """Send JSON from the first process to all: its length, then its bytes."""
    text = json.dumps(value).encode() if is_first() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    content = np.zeros(size, np.int32)
    content[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(content).astype(np.uint8)))


def from_all(value: dict) -> list[dict]:
    """Give what every process says of itself, in their order; all processes call this."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8).astype(np.int32)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(int(sizes.max()), np.int32)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(bytes(row[:size].astype(np.uint8)))
        for row, size in zip(rows, sizes, strict=True)
    ]


def require_here(tree: Any, what: str) -> None:
    """Check that this process holds all of each array.

    Raises:
      ValueError: some lie in other processes too.
    """
    leaves = jax.tree.leaves(tree)
    if any(isinstance(x, jax.Array) and not x.is_fully_addressable for x in leaves):
        raise ValueError(
            f"{what}: the arrays span several processes; write it from a checkpoint, in one "
            "process: maktab export WORKDIR --to FOLDER"
        )
