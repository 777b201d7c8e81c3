"""What a person sees while a run goes on: live bars, or a line a cycle in a log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from research.clock import Cycle
from research.train.prepare import Prepared


class LiveWatch:
    """Progress bars for steps, scoring and evaluation, on a terminal or as plain lines in a log."""

    def __init__(self, console: Console):
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> LiveWatch:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begins(self, prepared: Prepared, step: int) -> None:
        steps = prepared.experiment.clock.steps
        if step:
            self._console.print(f"resuming at step {step} of {steps}")
        self._update("steps", step, steps)

    def scoring(self, done: int, total: int) -> None:
        self._update("scoring the pool", done, total)

    def evaluating(self, name: str, done: int, total: int) -> None:
        self._update(f"evaluating {name}", done, total)

    def recorded(self, cycle: Cycle, metrics: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        note = (
            f"loss {metrics['loss_nats']:.4f} nats  {timing['tokens_per_s']:,.0f} trained tokens/s"
        )
        if "mfu" in timing:
            note += f"  MFU {timing['mfu']:.1%}"
        total = self._progress.tasks[self._tasks["steps"]].total if "steps" in self._tasks else 0
        self._update("steps", cycle.last, int(total or cycle.last), note)
        if not self._console.is_terminal:
            self._console.print(f"step {cycle.last}  round {cycle.round}  {note}", highlight=False)

    def _update(self, name: str, done: int, total: int, note: str = "") -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, note=note)
        self._progress.update(self._tasks[name], completed=done, total=total)
        if note:
            self._progress.update(self._tasks[name], note=note)
