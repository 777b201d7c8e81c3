"""The runs of a sweep as a live table, or as plain lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from research.clock import Cycle
from research.experiment import Experiment
from research.report.document import MISSING, duration
from research.sweep.plan import Arm
from research.sweep.standing import Standing, stand
from research.train.prepare import Prepared

Rows = Callable[[], Sequence[tuple[Arm, Experiment, Path]]]
AROUND = 6  # lines of a terminal that are not rows of the table
REFRESH_HZ = 1.0
# What is left out first where a terminal has too few lines.
RANKS = ("held", "stopped", "left", "finished", "hopeless", "waiting")
SAID = {"held": "running", "left": "to be gone on with"}
STYLES = {"held": "bold", "finished": "green", "stopped": "red", "hopeless": "dim"}


class Nobody:
    """A watch that sees nothing: the table reads files."""

    def begins(self, prepared: Prepared, step: int) -> None: ...
    def scoring(self, done: int, total: int) -> None: ...
    def evaluating(self, name: str, done: int, total: int) -> None: ...
    def recorded(
        self, cycle: Cycle, metrics: Mapping[str, Any], timing: Mapping[str, Any]
    ) -> None: ...


class Board:
    """Shows how runs stand, as their folders say: whoever runs them, they are all there."""

    def __init__(self, console: Console, rows: Rows):
        self._console, self._rows = console, rows
        self.is_live = console.is_terminal
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=REFRESH_HZ
        )

    def __enter__(self) -> Board:
        if self.is_live:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_live:
            self._live.stop()

    def line(self, text: str) -> None:
        """Print a line where there is no table that says it."""
        if text and not self.is_live:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def reached(self, workdir: Path) -> str:
        """Say in a line how a run stands that has just been left."""
        found = stand(workdir)
        loss = "" if found.loss_nats is None else f", loss {found.loss_nats:.4f} nats"
        state = SAID.get(found.state, found.state)
        return f"{state}, step {found.step} of {found.steps}{loss}, {evaluated(found.evaluation)}"

    def _render(self) -> Table:
        found = [(arm, run, stand(workdir)) for arm, run, workdir in self._rows()]
        return table(found, self._console.height - AROUND)


def table(rows: Sequence[tuple[Arm, Experiment, Standing]], room: int) -> Table:
    """Tabulate runs; where there is room for a few, those in which something happens."""
    made = Table(box=None, pad_edge=False, caption_justify="left", caption=counts(rows))
    for name in ("arm", "seed", "state", "step", "loss", "last evaluation", "tokens/s", "left"):
        text = name in ("arm", "state", "last evaluation")
        made.add_column(name, justify="left" if text else "right", no_wrap=True)
    ranked = sorted(range(len(rows)), key=lambda index: RANKS.index(rows[index][2].state))
    for index in sorted(ranked[: max(room, 1)]):
        arm, run, standing = rows[index]
        made.add_row(*cells(arm, run, standing), style=STYLES.get(standing.state))
    return made


def cells(arm: Arm, run: Experiment, standing: Standing) -> list[Text]:
    """Write one row."""
    running = standing.state == "held"
    doing = standing.doing if running and standing.doing != "training" else ""
    steps = standing.steps or run.clock.steps
    loss, rate = standing.loss_nats, standing.tokens_per_s
    words = (
        f"{run.name}  {arm.says}" if arm.says else run.name,
        str(run.seed),
        doing or SAID.get(standing.state, standing.state),
        f"{standing.step}/{steps}" if standing.step else f"{MISSING}/{steps}",
        MISSING if loss is None else f"{loss:.4f}",
        evaluated(standing.evaluation),
        f"{rate:,.0f}" if running and rate else MISSING,
        duration(standing.left_s) if running else MISSING,
    )
    return [Text(word) for word in words]


def evaluated(line: Mapping[str, Any] | None) -> str:
    """Say an evaluation's first metric."""
    if not line or not line["metrics"]:
        return MISSING
    name, found = next(iter(line["metrics"].items()))
    value = found["value"]
    return f"{line['name']}/{name} {MISSING if value is None else format(value, '.4g')}"


def counts(rows: Sequence[tuple[Arm, Experiment, Standing]]) -> str:
    """Say how many runs are in each state."""
    states = [standing.state for _, _, standing in rows]
    return ", ".join(
        f"{states.count(state)} {SAID.get(state, state)}" for state in RANKS if state in states
    )
