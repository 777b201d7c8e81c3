"""Run experiments in this process: one, or a sweep one after the other."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from launch.memory import keep_freed_memory
from launch.processes import ALONE, Group, Notice, held
from launch.progress import LiveWatch, Watches
from research.checkpoint import CheckpointError
from research.core.processes import done_by_all, is_first, told_by_first
from research.core.records import State
from research.data.inspect import overview
from research.experiment import Experiment
from research.score.pool import ScoringError
from research.train.loop import NonFiniteError, train
from research.train.prepare import Prepared, prepare
from research.train.provenance import finish, is_finished, open_workdir

STOPS = (NonFiniteError, ScoringError, CheckpointError)


class SweepError(RuntimeError):
    """Some runs of a sweep stopped; the others came to their end."""


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
) -> State:
    """Prepare, say what will be trained on, and train.

    Args:
      group: the processes that run it together.

    Raises:
      HeldError: another process runs in the work directory.
      PreemptedError: a process was asked to leave, and the run has saved.
      ValueError, FileNotFoundError: what is wrong with the input, before a device is touched.
      NonFiniteError, ScoringError, CheckpointError: why the run stopped.
    """
    with Notice() as notice:
        with console.status("reading model and data"):
            prepared = done_by_all(lambda: prepare(experiment))
        if prepared.place.platform == "cpu":
            keep_freed_memory()
        with held(workdir, group, console.print) as pulse:
            for line in told_by_first(lambda: open_workdir(prepared, workdir, list(command))):
                console.print(f"changed since this run began: {line}", markup=False)
            if not quiet:
                console.print(overview(prepared.pool))
                if prepared.leaks:
                    console.print(leak_line(prepared), markup=False)
            with interruption_told(console), LiveWatch(console) as bars:
                watch = Watches(bars, pulse)
                state = train(prepared, workdir, watch, profile=profile, asked_to_leave=notice)
            if is_first():
                finish(workdir, int(state.learner.step), experiment)
    return state


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


def run_sweep(
    experiments: Sequence[Experiment],
    folder: Path,
    console: Console,
    *,
    command: Sequence[str],
    group: Group = ALONE,
) -> None:
    """Run experiments in turn; finished ones are passed over, the others resumed.

    A run that stops, such as one that diverges, does not keep the others from running.

    Raises:
      ValueError, FileNotFoundError: the first run whose input is wrong.
      SweepError: naming the runs that stopped, at the end.
    """
    stopped: list[str] = []
    for number, experiment in enumerate(experiments, start=1):
        workdir = folder / experiment.name / f"seed-{experiment.seed}"
        label = f"[{number}/{len(experiments)}] {experiment.name}, seed {experiment.seed}"
        if told_by_first(functools.partial(is_finished, workdir, experiment)):
            console.print(f"{label}: finished before", markup=False, highlight=False)
            continue
        console.print(label, markup=False, highlight=False)
        try:
            run(experiment, workdir, console, command=command, quiet=number > 1, group=group)
        except STOPS as error:
            stopped.append(f"{workdir}: {error}")
            console.print(f"{label}: stopped: {error}", markup=False, highlight=False)
    if stopped:
        raise SweepError(
            f"{len(stopped)} of {len(experiments)} runs stopped:\n  " + "\n  ".join(stopped)
        )
