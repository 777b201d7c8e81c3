"""One run of a sweep: how a process is told of it, and what comes of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from launch.processes import Group, Notice
from launch.runs import run
from research.checkpoint import CheckpointError
from research.core.processes import RefusedElsewhereError
from research.score.pool import ScoringError
from research.sweep.agenda import Task
from research.sweep.plan import Sweep, key_of
from research.train.loop import NonFiniteError, Watch
from research.train.watchdog import HeldError

STOPS = (NonFiniteError, ScoringError, CheckpointError, RefusedElsewhereError)
Kind = Literal["done", "held", "stopped", "refused", "left", "lost"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a task.

    Attributes:
      kind: "done": it is where it was to come; "held": another process runs it; "stopped": by an
        error of its own; "refused": its input is wrong; "left": the process was asked to leave;
        "lost": the process is gone.
      error: of one that was refused in this process.
    """

    kind: Kind
    says: str = ""
    error: Exception | None = None


def told(task: Task) -> dict[str, Any]:
    """Say a task as JSON; whoever has the same sweep can make it out."""
    point = None if task.arm.point is None else dict(task.arm.point)
    return {"arm": task.arm.name, "seed": task.run.seed, "point": point, "until": task.until}


def task_of(sweep: Sweep, folder: Path, said: Mapping[str, Any]) -> Task:
    """Make out a task of a sweep."""
    arm = sweep.arm(said["arm"], said["point"])
    run = next(run for run in arm.runs if run.seed == said["seed"])
    return Task(arm=arm, run=run, workdir=folder / key_of(run), until=said["until"])


def attempt(
    task: Task,
    console: Console,
    *,
    command: Sequence[str],
    quiet: bool,
    group: Group,
    watch: Watch | None,
    notice: Notice | None = None,
) -> Outcome:
    """Run a task in this process, as far as it is to be run.

    Raises:
      PreemptedError: this process was asked to leave.
    """
    return came_of(
        functools.partial(
            run,
            task.run,
            task.workdir,
            console,
            command=command,
            quiet=quiet,
            group=group,
            until=task.until,
            watch=watch,
            notice=notice,
        )
    )


def came_of(do: Callable[[], Any]) -> Outcome:
    """Do something with a run, and tell what came of it.

    Raises:
      PreemptedError: this process was asked to leave.
    """
    try:
        do()
    except HeldError as error:
        return Outcome("held", str(error))
    except STOPS as error:
        return Outcome("stopped", str(error))
    except (ValueError, OSError) as error:
        return Outcome("refused", str(error), error)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Outcome("stopped", f"out of memory: {error}")
    return Outcome("done")
