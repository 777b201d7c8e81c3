"""Run one experiment in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from launch.memory import keep_freed_memory
from launch.processes import ALONE, Group, Notice, held
from launch.progress import LiveWatch, Watches
from research.clock import Cycle
from research.core.processes import done_by_all, is_first, told_by_first
from research.data.inspect import overview
from research.experiment import Experiment
from research.sweep.halving import rung_step
from research.sweep.standing import unmark_hopeless
from research.train.loop import PreemptedError, Watch, train
from research.train.prepare import Prepared, prepare
from research.train.provenance import finish, open_workdir


def default_workdir(experiment: Experiment) -> Path:
    """Where a run goes unless told otherwise."""
    return Path("runs") / experiment.name / f"seed-{experiment.seed}"


def run(
    experiment: Experiment,
    workdir: Path,
    console: Console,
    *,
    command: Sequence[str],
    profile: tuple[int, int] | None = None,
    quiet: bool = False,
    group: Group = ALONE,
    until: float = 1.0,
    watch: Watch | None = None,
    notice: Notice | None = None,
) -> bool:
    """Prepare, say what will be trained on, and train.

    Args:
      group: the processes that run it together.
      until: leave, saved, at the first evaluation at or after this fraction of the run.
      watch: who looks on; None: bars or lines on the console.
      notice: hears SIGTERM, where that is for more than this run.

    Returns:
      Whether the run came to its end; if not, it left at `until`.

    Raises:
      HeldError: another process runs in the work directory.
      PreemptedError: a process was asked to leave, and the run has saved.
      ValueError, FileNotFoundError: what is wrong with the input, before a device is touched.
      NonFiniteError, ScoringError, CheckpointError: why the run stopped.
    """
    with Notice() if notice is None else contextlib.nullcontext(notice) as notice:
        with reading(console, watch):
            prepared = done_by_all(lambda: prepare(experiment))
        if prepared.place.platform == "cpu":
            keep_freed_memory()
        with held(workdir, group, console.print) as pulse:
            for line in told_by_first(lambda: open_workdir(prepared, workdir, list(command))):
                console.print(f"changed since this run began: {line}", markup=False)
            if is_first():
                unmark_hopeless(workdir)
            if not quiet:
                console.print(overview(prepared.pool))
                if prepared.leaks:
                    console.print(leak_line(prepared), markup=False)
            rung = Rung(until, notice)
            with interruption_told(console), looking_on(console, watch) as seen:
                watches = Watches(seen, pulse, rung)
                try:
                    state = train(
                        prepared, workdir, watches, profile=profile, asked_to_leave=rung.asked
                    )
                except PreemptedError:
                    if rung.preempted:
                        raise
                    return False
            if is_first():
                finish(workdir, int(state.learner.step), experiment)
    return True


@contextlib.contextmanager
def looking_on(console: Console, watch: Watch | None) -> Iterator[Watch]:
    """Give who looks on: bars on the console, unless someone else does."""
    if watch is not None:
        yield watch
        return
    with LiveWatch(console) as bars:
        yield bars


def reading(console: Console, watch: Watch | None) -> contextlib.AbstractContextManager[Any]:
    """Say that files are being read, where nobody else looks on."""
    return console.status("reading model and data") if watch is None else contextlib.nullcontext()


class Rung:
    """Asks a run to leave where it is to be compared with others; a watch of the loop.

    Attributes:
      preempted: whether it was asked to leave for another reason, such as SIGTERM.
    """

    def __init__(self, until: float, notice: Notice):
        self._until, self._notice = until, notice
        self._step, self._last = 0, 0
        self.preempted = False

    def asked(self) -> bool:
        """Whether the run is to leave; all processes ask, and hear the same."""
        self.preempted = self._notice()
        return self.preempted or (self._until < 1.0 and self._step >= self._last)

    def begins(self, prepared: Prepared, step: int) -> None:
        experiment, self._step = prepared.experiment, step
        self._last = rung_step(experiment.clock, experiment.curriculum.rounds, self._until)

    def scoring(self, done: int, total: int) -> None: ...

    def evaluating(self, name: str, done: int, total: int) -> None: ...

    def recorded(self, cycle: Cycle, metrics: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        self._step = cycle.last


@contextlib.contextmanager
def interruption_told(console: Console) -> Iterator[None]:
    """Say how to go on after a Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from the last checkpoint")
        raise


def leak_line(prepared: Prepared) -> str:
    """Say how much of the pool the evaluators' items nearly repeat."""
    first, pool = prepared.leaks[0], prepared.pool
    return (
        f"leakage: {len(prepared.leaks)} of {len(pool)} rows of the pool hold most of a test row's "
        f"text, such as {first.pool_id} of {first.test_id} ({first.share:.0%} of its 13-grams)"
    )
