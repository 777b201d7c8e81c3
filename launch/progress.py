"""What a person sees while something goes on: live bars, or a line a cycle in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from research.clock import Cycle
from research.train.loop import Watch
from research.train.prepare import Prepared

Advance = Callable[[int, int], None]  # (done, total)


def bars(console: Console) -> Progress:
    """Make the bars of one command; nothing is drawn where there is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )


@contextlib.contextmanager
def bar(console: Console, what: str, unit: str = "rows", *, before: int = 0) -> Iterator[Advance]:
    """Draw one bar; it is moved by calls of (done, total) and shows what is done a second.

    Args:
      before: what was done already when this began.
    """
    with bars(console) as progress:
        task, start = progress.add_task(what, total=None, note=""), time.perf_counter()

        def advance(done: int, total: int) -> None:
            note = f"{(done - before) / (time.perf_counter() - start):,.1f} {unit}/s"
            progress.update(task, completed=done, total=total, note=note)

        yield advance


class LiveWatch:
    """Progress bars for steps, scoring and evaluation, on a terminal or as plain lines in a log."""

    def __init__(self, console: Console):
        self._console, self._progress = console, bars(console)
        self._tasks: dict[str, TaskID] = {}
        self._steps = 0

    def __enter__(self) -> LiveWatch:
        self._progress.start()
        self._update("loading weights", 0, None)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begins(self, prepared: Prepared, step: int) -> None:
        self._progress.remove_task(self._tasks.pop("loading weights"))
        self._steps = prepared.experiment.clock.steps
        if step:
            self._console.print(f"resuming at step {step} of {self._steps}", highlight=False)
        note = "the first cycle compiles" if step < self._steps else ""
        self._update("steps", step, self._steps, note)

    def scoring(self, done: int, total: int) -> None:
        self._update("scoring the pool", done, total)

    def evaluating(self, name: str, done: int, total: int) -> None:
        self._update(f"evaluating {name}", done, total)

    def recorded(self, cycle: Cycle, metrics: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        note = f"loss {metrics['loss_nats']:.4f} nats  {timing['tokens_per_s']:,.0f} tokens/s"
        if "mfu" in timing:
            note += f"  MFU {timing['mfu']:.1%}"
        self._update("steps", cycle.last, self._steps, note)
        if not self._console.is_terminal:
            self._console.print(f"step {cycle.last}  round {cycle.round}  {note}", highlight=False)

    def _update(self, name: str, done: int, total: int | None, note: str = "") -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, note=note)
        goes_on = total is None or done < total or name == "steps"
        self._progress.update(self._tasks[name], completed=done, total=total, visible=goes_on)
        if note:
            self._progress.update(self._tasks[name], note=note)


class Watches:
    """Several who look on, as one."""

    def __init__(self, *watches: Watch):
        self._watches = watches

    def begins(self, prepared: Prepared, step: int) -> None:
        for watch in self._watches:
            watch.begins(prepared, step)

    def scoring(self, done: int, total: int) -> None:
        for watch in self._watches:
            watch.scoring(done, total)

    def evaluating(self, name: str, done: int, total: int) -> None:
        for watch in self._watches:
            watch.evaluating(name, done, total)

    def recorded(self, cycle: Cycle, metrics: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        for watch in self._watches:
            watch.recorded(cycle, metrics, timing)
