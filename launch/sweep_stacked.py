"""Run a sweep with its runs stacked: those that can go together share one program and one base."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from launch.memory import keep_freed_memory
from launch.processes import Group, Notice, held
from launch.progress import Watches
from launch.runs import Rung
from launch.sweep import Scheduler, plainly
from launch.sweep_board import Board, Nobody
from launch.sweep_task import Outcome, attempt, came_of
from research.clock import Cycle
from research.sweep.agenda import Task
from research.sweep.plan import Sweep
from research.sweep.standing import unmark_hopeless
from research.train.loop import PreemptedError, Watch
from research.train.prepare import Prepared, prepare
from research.train.provenance import finish, open_workdir
from research.train.stacked import Arm, End, groups, train_stacked

WatchOf = Callable[[Task], Watch]


def run_stacked(
    sweep: Sweep, folder: Path, console: Console, *, most: int, command: Sequence[str], group: Group
) -> None:
    """Run a sweep in this process, up to `most` runs at once in one program.

    Runs that cannot go with others go alone, and it is said why.

    Args:
      group: this process, which is alone.

    Raises:
      ValueError, FileNotFoundError: the input of the first run is wrong; or there are several
        processes.
      PreemptedError: this process was asked to leave.
      SweepError: naming the runs that stopped, at the end.
    """
    if group.count > 1:
        raise ValueError(f"--stacked {most} is for one process, not for one of {group.count}")
    scheduler = Scheduler(sweep, folder, plainly(console))
    with Board(console, scheduler.rows) as board:

        def watch_of(task: Task) -> Watch:
            return Nobody() if board.is_live else Lines(console, scheduler.label(task))

        crew = Stacker(console, board, scheduler.label, watch_of, command, group)
        while (tasks := free_runs(scheduler)) is not None:
            if not tasks:
                time.sleep(1.0)
            for task, outcome in crew.run(tasks, most):
                scheduler.ended(task, outcome)
    scheduler.conclude()


def free_runs(scheduler: Scheduler) -> list[Task] | None:
    """Take all runs that can be begun or gone on with now; None: all is settled."""
    tasks: list[Task] = []
    while isinstance(task := scheduler.next(), Task):
        scheduler.begins(task)
        tasks.append(task)
    return None if task is None and not tasks else tasks


@dataclasses.dataclass(frozen=True)
class Seat:
    """A run in a stack, with the folder that it holds."""

    task: Task
    arm: Arm
    rung: Rung
    opened: contextlib.ExitStack

    def leave(self, end: End) -> Outcome:
        """Leave the folder, saying there how the run ended.

        Raises:
          PreemptedError: this process was asked to leave.
        """

        def say() -> None:
            with self.opened:
                if isinstance(end, PreemptedError) and not self.rung.preempted:
                    return  # at its rung
                if isinstance(end, Exception):
                    raise end
                finish(self.task.workdir, int(end.learner.step), self.task.run)

        return came_of(say)


@dataclasses.dataclass(frozen=True)
class Stacker:
    """Runs what a scheduler gives, stacked where that can be."""

    console: Console
    board: Board
    label: Callable[[Task], str]
    watch_of: WatchOf
    command: Sequence[str]
    group: Group

    def run(self, tasks: Sequence[Task], most: int) -> Iterator[tuple[Task, Outcome]]:
        """Run tasks; give what came of each, as it ends."""
        ready: list[tuple[Task, Prepared]] = []
        for task in tasks:
            try:
                ready.append((task, prepare(task.run)))
            except (ValueError, OSError) as error:
                yield task, Outcome("refused", str(error), error)
        for found in groups([prepared for _, prepared in ready]):
            for start in range(0, len(found.members), most):
                members = [ready[index] for index in found.members[start : start + most]]
                if members[1:]:
                    yield from self._together(members)
                else:
                    yield self._alone(members[0][0], found.alone)

    def _alone(self, task: Task, why: str) -> tuple[Task, Outcome]:
        self.board.line(f"{self.label(task)}{': alone, since ' if why else ''}{why}")
        outcome = attempt(
            task,
            self.console,
            command=self.command,
            quiet=True,
            group=self.group,
            watch=self.watch_of(task),
        )
        return task, outcome

    def _together(self, members: Sequence[tuple[Task, Prepared]]) -> Iterator[tuple[Task, Outcome]]:
        """Run a stack; a member whose folder cannot be had is left out.

        Raises:
          PreemptedError: this process was asked to leave; all have saved.
        """
        if members[0][1].place.platform == "cpu":
            keep_freed_memory()
        with Notice() as notice, contextlib.ExitStack() as opened:
            seats: list[Seat] = []
            for task, prepared in members:
                outcome = came_of(lambda: seats.append(self._seat(task, prepared, notice)))  # noqa: B023
                if outcome.kind == "done":
                    opened.enter_context(seats[-1].opened)
                else:
                    yield task, outcome
            names = ", ".join(self.label(seat.task) for seat in seats)
            self.board.line(f"{len(seats)} together: {names}")
            left: list[PreemptedError] = []
            for index, end in train_stacked([seat.arm for seat in seats]) if seats else ():
                try:
                    yield seats[index].task, seats[index].leave(end)
                except PreemptedError as error:
                    left.append(error)
            if left:
                raise left[0]

    def _seat(self, task: Task, prepared: Prepared, notice: Notice) -> Seat:
        """Hold a run's folder, and write down what begins there."""
        with contextlib.ExitStack() as opened:
            say = plainly(self.console)
            pulse = opened.enter_context(held(task.workdir, self.group, say))
            for line in open_workdir(prepared, task.workdir, list(self.command)):
                say(f"changed since this run began: {line}")
            unmark_hopeless(task.workdir)
            rung = Rung(task.until, notice)
            arm = Arm(
                prepared=prepared,
                workdir=task.workdir,
                watch=Watches(self.watch_of(task), pulse, rung),
                asked_to_leave=rung.asked,
            )
            return Seat(task, arm, rung, opened.pop_all())


class Lines(Nobody):
    """A watch that prints a line a cycle, with the run's name."""

    def __init__(self, console: Console, label: str):
        self._say, self._label = plainly(console), label

    def begins(self, prepared: Prepared, step: int) -> None:
        if step:
            steps = prepared.experiment.clock.steps
            self._say(f"{self._label}: resuming at step {step} of {steps}")

    def recorded(self, cycle: Cycle, metrics: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        self._say(f"{self._label}: step {cycle.last}  loss {metrics['loss_nats']:.4f} nats")
