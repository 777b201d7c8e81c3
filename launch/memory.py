"""Let this process keep the memory that a CPU step frees, so that the next step finds it mapped."""

from __future__ import annotations

import ctypes
import platform

# glibc's mallopt(3) parameters, and what they are set to.
MMAP_MAX, TRIM_THRESHOLD, ARENA_MAX = -4, -1, -8
NEVER, ONE_ARENA = 2**31 - 1, 1


def keep_freed_memory() -> bool:
    """Tell malloc to hold on to large freed blocks; give whether it agreed.

    XLA takes the temporaries of a step from malloc and frees them at its end. glibc maps blocks of
    that size afresh each time, and the kernel clears every page again: 200,000 page faults, a third
    of the CPU time of a step at the shape of `benchmarks/step.py`. Afterwards the process keeps its
    peak until it ends. Arrays on accelerators are not touched by this.

    Only one arena may be used: the others are mapped blocks themselves.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, NEVER), (ARENA_MAX, ONE_ARENA))
    return all([mallopt(name, value) == 1 for name, value in settings])
