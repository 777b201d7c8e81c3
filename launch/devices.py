"""The devices of this machine, divided among workers that each run something of their own.

Nothing here imports jax: a device that is visible when it starts is taken.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

MEMORY = 0.9  # of a GPU's, for all the workers on it; jax alone would take 0.75
# Chips of a process -> their arrangement on one host. Source: docs.cloud.google.com/tpu, "run
# multiple processes on one host".
BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}


@dataclasses.dataclass(frozen=True)
class Share:
    """What one worker has.

    Attributes:
      name: for people.
      env: variables by which it sees its devices only.
      cores: the processor cores it runs on; (): all.
    """

    name: str
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cores: tuple[int, ...] = ()


def divide(jobs: int, env: Mapping[str, str], devices: Path = Path("/dev")) -> list[Share]:
    """Divide accelerators, or the cores where there are none, among so many workers.

    Args:
      env: the environment, which may show a part of the devices only.

    Raises:
      ValueError: the TPU chips of a host cannot be divided so.
    """
    if env.get("JAX_PLATFORMS", "").split(",")[0] != "cpu":
        if gpus := listed(env, "CUDA_VISIBLE_DEVICES", devices, "nvidia"):
            return [gpu_share(worker, jobs, gpus, env) for worker in range(jobs)]
        if chips := listed(env, "TPU_VISIBLE_CHIPS", devices, "accel", "vfio/"):
            return [chip_share(worker, jobs, chips) for worker in range(jobs)]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [core_share(worker, jobs, cores) for worker in range(jobs)]


def listed(env: Mapping[str, str], variable: str, devices: Path, *names: str) -> list[str]:
    """List the devices that a variable shows, else those that there are, by number."""
    if variable in env:
        return [word for word in env[variable].split(",") if word]
    pattern = re.compile(f"({'|'.join(names)})[0-9]+")
    files = [
        file.relative_to(devices).as_posix() for name in names for file in devices.glob(f"{name}*")
    ]
    return [str(number) for number in range(sum(map(bool, map(pattern.fullmatch, files))))]


def gpu_share(worker: int, jobs: int, gpus: Sequence[str], env: Mapping[str, str]) -> Share:
    """Give a worker its GPUs; where there are fewer than workers, several share one."""
    own = slice_of(worker, jobs, gpus)
    shown = {"CUDA_VISIBLE_DEVICES": ",".join(own)}
    if jobs > len(gpus) and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in env:
        each = MEMORY / math.ceil(jobs / len(gpus))
        shown["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{each:.3f}"
    return Share(f"GPU {','.join(own)}", shown)


def chip_share(worker: int, jobs: int, chips: Sequence[str]) -> Share:
    """Give a worker its TPU chips.

    Raises:
      ValueError: there are fewer chips than workers, or a number of them that is no block.
    """
    own = slice_of(worker, jobs, chips)
    if jobs > len(chips) or len(own) not in BOUNDS:
        raise ValueError(
            f"--jobs {jobs}: {len(chips)} TPU chips cannot be divided so; a chip has one process, "
            f"and a process 1, 2, 4 or 8 of them"
        )
    shown = {
        "TPU_VISIBLE_CHIPS": ",".join(own),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": BOUNDS[len(own)],
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }
    return Share(f"TPU chip {','.join(own)}", shown)


def core_share(worker: int, jobs: int, cores: Sequence[int]) -> Share:
    """Give a worker its cores; where there are fewer than workers, several share one."""
    own = tuple(slice_of(worker, jobs, cores)) if cores else ()
    return Share(f"cores {','.join(map(str, own))}" if own else f"worker {worker}", {}, own)


def slice_of(worker: int, jobs: int, things: Sequence[T]) -> Sequence[T]:
    """Give the things of one worker: as many for each, or one that it shares with others."""
    each = len(things) // jobs
    if not each:
        return things[worker % len(things) :][:1]
    return things[worker * each : (worker + 1) * each]
