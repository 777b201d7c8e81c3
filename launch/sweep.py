"""Run a sweep: what is to be done next is read from its folder, whoever has worked there."""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from launch.processes import ALONE, Group, Notice
from launch.sweep_board import Board, Nobody
from launch.sweep_task import Outcome, attempt, task_of, told
from research.core.processes import told_by_first
from research.experiment import Experiment
from research.sweep.agenda import Agenda, Judge, Task, Verdict
from research.sweep.halving import Halving
from research.sweep.plan import Arm, Arms, Search, Sweep, by_seed, is_maximised, key_of
from research.sweep.standing import described_in, holder, mark_hopeless, stop
from research.train.loop import PreemptedError
from research.train.provenance import is_finished

WAIT_S = 1.0  # between looks at a folder in which others work
HELD_S = 15.0  # after which a run that another machine holds is tried again
LOSSES = 3  # processes that a run may lose, such as to the kernel's memory killer


class SweepError(RuntimeError):
    """Some runs of a sweep stopped; the others came to their end."""


class Scheduler:
    """Says which run is next. What it knows is in the folder, but for what this command has tried.

    Several of them may work in one folder: a run that another one's process holds is passed over
    and looked at again, and one that stopped while this command runs is not tried again, whoever
    ran it.
    """

    def __init__(self, sweep: Sweep, folder: Path, say: Callable[[str], None]):
        self._sweep, self._folder, self._say = sweep, folder, say
        self._running: set[Path] = set()
        self._later: dict[Path, float] = {}
        self._stops: dict[Path, str] = {}
        self._losses: collections.Counter[Path] = collections.Counter()
        self._done: set[Path] = set()
        self._judged: set[Path] = set()
        self._begun = False
        self._before: dict[Path, tuple[str, str] | None] = {}
        self.batches: list[list[Arm]] = []
        self._open(sweep.batch((), self._held))

    def next(self) -> Task | float | None:
        """Give a run to begin or go on with, or seconds to wait, or None: all is settled."""
        while True:
            agenda = self._look()
            if agenda.tasks:
                return self._choose(agenda.tasks)
            batch = self._sweep.batch(agenda.told, self._held)
            if not batch:
                return None
            self._open(batch)

    def begins(self, task: Task) -> None:
        """A run is given to a process."""
        self._running.add(task.workdir)

    def ended(self, task: Task, outcome: Outcome) -> None:
        """Take in what came of a run.

        Raises:
          Exception: the input of the very first run is wrong; that of others may be, too.
        """
        self._running.discard(task.workdir)
        label = self.label(task)
        match outcome.kind:
            case "held":
                self._later[task.workdir] = time.monotonic() + HELD_S
            case "lost" if self._losses[task.workdir] + 1 < LOSSES:
                self._losses[task.workdir] += 1
                self._say(f"{label}: {outcome.says}; it is gone on with")
            case "refused" if not self._begun:
                raise outcome.error or ValueError(f"{task.workdir}: {outcome.says}")
            case "stopped" | "refused" | "lost":
                self._stops[task.workdir] = outcome.says
                self._say(f"{label}: stopped: {outcome.says}")
        self._begun |= outcome.kind in ("done", "stopped")

    def label(self, task: Task) -> str:
        """Name a run to people."""
        keys = [key_of(run) for run in self.runs]
        says = f" ({task.arm.says})" if task.arm.says else ""
        number = keys.index(key_of(task.run)) + 1
        return f"[{number}/{len(keys)}] {task.run.name}, seed {task.run.seed}{says}"

    @property
    def runs(self) -> list[Experiment]:
        """All runs that are known so far."""
        return [run for _, run, _ in self.rows()]

    def rows(self) -> list[tuple[Arm, Experiment, Path]]:
        """All runs that are known so far, with their arms and folders."""
        found = [each for batch in list(self.batches) for each in by_seed(batch)]
        return [(arm, run, self._folder / key_of(run)) for arm, run in found]

    def conclude(self) -> None:
        """Say which arm was best, if that was asked.

        Raises:
          SweepError: naming the runs that stopped, as far as the folder tells.
        """
        self._say_best(self._look())
        stopped = {
            workdir: self._stops.get(workdir) or (stop(workdir) or ("", ""))[1]
            for _, _, workdir in self.rows()
            if self._stopped(workdir)
        }
        if stopped:
            lines = "\n  ".join(f"{workdir}: {why}" for workdir, why in stopped.items())
            raise SweepError(f"{len(stopped)} of {len(self.runs)} runs stopped:\n  {lines}")

    def _look(self) -> Agenda:
        judge = Judge(self._sweep, self._folder, self._finished, self._stopped)
        agenda = judge.agenda(self.batches)
        for verdict in agenda.verdicts:
            self._leave(verdict)
        return agenda

    def _choose(self, tasks: Sequence[Task]) -> Task | float:
        """Take the first run that nobody holds; else one whose holder, elsewhere, may be gone."""
        now = time.monotonic()
        doubtful = None
        for task in tasks:
            if task.workdir in self._running or self._later.get(task.workdir, now) > now:
                continue
            held = holder(task.workdir)
            if held == "nobody":
                return task
            doubtful = doubtful or (task if held == "elsewhere" else None)
        return WAIT_S if self._running or doubtful is None else doubtful

    def _open(self, batch: list[Arm]) -> None:
        """Take in a batch, with what is known of its runs before this command does anything."""
        self.batches.append(batch)
        keys = [key_of(run) for run in self.runs]
        for _, run in by_seed(batch):
            workdir = self._folder / key_of(run)
            self._before[workdir] = stop(workdir)
            if self._finished(run, workdir):
                number = f"[{keys.index(key_of(run)) + 1}/{len(keys)}]"
                self._say(f"{number} {run.name}, seed {run.seed}: finished before")

    def _finished(self, run: Experiment, workdir: Path) -> bool:
        if workdir not in self._done and is_finished(workdir, run):
            self._done.add(workdir)
        return workdir in self._done

    def _stopped(self, workdir: Path) -> bool:
        """Whether a run has stopped since this command looked at it first."""
        found = stop(workdir)
        return workdir in self._stops or (found is not None and found != self._before.get(workdir))

    def _held(self, name: str) -> Any:
        """Give what experiment was begun in an arm's folder, if any was."""
        for folder in sorted((self._folder / name).glob("seed-*")):
            if (described := described_in(folder)) is not None:
                return described["experiment"]
        return None

    def _leave(self, verdict: Verdict) -> None:
        """Mark the runs of a hopeless arm, and say so once."""
        for run in verdict.arm.runs:
            workdir = self._folder / key_of(run)
            if workdir in self._judged or self._finished(run, workdir) or self._stopped(workdir):
                continue
            self._judged.add(workdir)
            said = {"rung": verdict.rung, "rungs": verdict.rungs, "step": verdict.step}
            said |= {"metric": self._sweep.metric, "value": verdict.value, "bar": verdict.bar}
            mark_hopeless(workdir, said)
            value = "nothing finite" if verdict.value is None else f"{verdict.value:.4g}"
            self._say(
                f"{run.name}, seed {run.seed}: hopeless at rung {verdict.rung} of {verdict.rungs} "
                f"(step {verdict.step}): {self._sweep.metric} {value}, {verdict.bar:.4g} goes on"
            )

    def _say_best(self, agenda: Agenda) -> None:
        sign = 1.0 if is_maximised(self._sweep) else -1.0
        found = [(sign * each.value, each.arm) for each in agenda.told if each.value is not None]
        if found:
            value, arm = max(found, key=lambda each: each[0])
            says = f" ({arm.says})" if arm.says else ""
            self._say(
                f"best of {len(agenda.told)}: {arm.name}{says}: {self._sweep.metric} "
                f"{sign * value:.4g}"
            )


def run_sweep(
    sweep: Sweep,
    folder: Path,
    console: Console,
    *,
    command: Sequence[str],
    group: Group = ALONE,
) -> None:
    """Run a sweep in this process, one run after the other.

    Runs whose experiments differ in numbers alone share compiled programs. A run that stops, such
    as one that diverges, does not keep the others from running.

    Args:
      group: the processes that run each of them together.

    Raises:
      ValueError, FileNotFoundError: the input of the first run is wrong.
      PreemptedError: this process was asked to leave.
      SweepError: naming the runs that stopped, at the end.
    """
    scheduler = Scheduler(sweep, folder, plainly(console) if group.speaks else silently)
    quiet = False
    with Notice() as notice, Board(console, scheduler.rows) as board:
        while (said := told_by_first(functools.partial(next_told, scheduler))) is not None:
            if notice():  # also where the last run came to its end before it could leave
                raise PreemptedError("asked to leave, as by SIGTERM; the same command goes on")
            if isinstance(said, (int, float)):
                time.sleep(said)
                continue
            task = task_of(sweep, folder, said)
            board.line(scheduler.label(task) if group.speaks else "")
            watch = Nobody() if board.is_live else None
            outcome = attempt(
                task,
                console,
                command=command,
                quiet=quiet,
                group=group,
                watch=watch,
                notice=notice,
            )
            quiet = True
            told_by_first(functools.partial(scheduler.ended, task, outcome))
    told_by_first(scheduler.conclude)


def adapted(sweep: Sweep, *, eta: int, rungs: int, metric: str, only: Sequence[str]) -> Sweep:
    """Apply what the command line says of a sweep.

    Args:
      eta: halve with this one; 0: as the file says.
      metric: another metric; "": as the file says.
      only: keys of the runs to run, NAME/seed-N; (): all.

    Raises:
      ValueError: halving lacks a metric, or `only` names no run, or not all of an arm that is to be
        compared with others.
    """
    if metric:
        sweep = dataclasses.replace(sweep, metric=metric)  # type: ignore[type-var]
    if eta:
        if not sweep.metric:
            raise ValueError(
                "--halving needs --metric EVALUATOR/METRIC, by which arms are compared"
            )
        halving = Halving(eta=eta, rungs=rungs)
        sweep = dataclasses.replace(sweep, halving=halving)  # type: ignore[type-var]
    return Arms(runs=chosen(sweep, only)) if only else sweep


def chosen(sweep: Sweep, only: Sequence[str]) -> tuple[Experiment, ...]:
    """Give runs by their keys.

    Raises:
      ValueError: one is no run of the sweep, or depends on what comes of others.
    """
    runs = known(sweep)
    unknown = sorted(set(only) - runs.keys())
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no run of this sweep; it has {', '.join(runs)}")
    return tuple(runs[key] for key in only)


def known(sweep: Sweep) -> dict[str, Experiment]:
    """Give all runs of a sweep by their keys.

    Raises:
      ValueError: which runs there are depends on what comes of others.
    """
    if sweep.halving or (isinstance(sweep, Search) and not sweep.method.knows_all):
        raise ValueError(
            "which runs there are depends on what comes of others (halving, Tpe), so none can be "
            "run alone; run `maktab sweep` as a whole, on one machine with --jobs or on several "
            "that share its folder"
        )
    arms = sweep.batch((), lambda _: None)
    return {key_of(run): run for arm in arms for run in arm.runs}


def next_told(scheduler: Scheduler) -> Mapping[str, Any] | float | None:
    """Say what is next as JSON, for all processes of a group."""
    task = scheduler.next()
    return told(task) if isinstance(task, Task) else task


def plainly(console: Console) -> Callable[[str], None]:
    """Print lines as they are."""
    return functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)


def silently(text: str) -> None:
    """Say nothing: another process of the group speaks."""
