"""Contestants in turns: each in a process of its own, working only when asked."""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Run = Callable[[], Any]
PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "numpy")


def serve(pipe: Connection, build: Callable[[], Run]) -> None:
    """Build a contestant and warm it, then run as often as each message asks and send the times."""
    started = time.perf_counter()
    run = build()
    before_bytes = peak_bytes()
    result = run()
    run()
    pipe.send((time.perf_counter() - started, before_bytes, result))
    while count := pipe.recv():
        times = []
        for _ in range(count):
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            run()
            times.append((time.perf_counter() - wall_s, time.process_time() - cpu_s))
        pipe.send((times, peak_bytes()))


def peak_bytes() -> int:
    """Give the most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def race(builds: Mapping[str, Callable[[], Run]], rounds: int, runs: int) -> dict[str, Any]:
    """Let the contestants run in turns, the order reversed every other round.

    Args:
      builds: name -> a picklable function that gives what is timed.
      runs: in a row, every time it is a contestant's turn.

    Returns:
      name -> times of single runs, what the first run gave, and memory before it and at the peak.
    """
    spawn = multiprocessing.get_context("spawn")
    pipes, processes, seen = {}, {}, {}
    for name, build in builds.items():
        pipes[name], theirs = spawn.Pipe()
        processes[name] = spawn.Process(target=serve, args=(theirs, build), daemon=True)
        processes[name].start()
        theirs.close()
        start_s, before_bytes, result = pipes[name].recv()
        seen[name] = {"start_s": start_s, "rss_built_bytes": before_bytes, "result": result}
        seen[name] |= {"wall_s": [], "cpu_s": []}
    for turn in range(rounds):
        for name in list(builds) if turn % 2 == 0 else reversed(builds):
            pipes[name].send(runs)
            times, seen[name]["rss_peak_bytes"] = pipes[name].recv()
            seen[name]["wall_s"] += [wall_s for wall_s, _ in times]
            seen[name]["cpu_s"] += [cpu_s for _, cpu_s in times]
    for name in builds:
        pipes[name].send(0)
        processes[name].join()
    return seen


def summarise(values: list[float]) -> dict[str, float]:
    """Give minimum, quartiles and median."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"min": min(values), "q1": low, "median": middle, "q3": high}


def spread(clock: Mapping[str, float]) -> str:
    """Say a summary as `median (q1 - q3)`."""
    return f"{clock['median']:.3f} ({clock['q1']:.3f} - {clock['q3']:.3f})"


def write(out: Path, record: Mapping[str, Any]) -> None:
    """Write a record with the machine and the versions it was made with."""
    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "as it comes"),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine} | dict(record), indent=1) + "\n")
