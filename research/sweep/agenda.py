"""What of a sweep is to be done next: a function of the run directories alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from research.experiment import Experiment
from research.sweep.halving import mean
from research.sweep.plan import Arm, Sweep, Told, by_seed, is_maximised, key_of
from research.sweep.standing import value_at


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One run, as far as it is to be run now.

    Attributes:
      until: the fraction of the run at which it is looked at again; 1: its end.
    """

    arm: Arm
    run: Experiment
    workdir: Path
    until: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """An arm that is not worth going on with.

    Attributes:
      rung: of how many (`rungs`), from 1.
      value: its mean over seeds at that rung, and `bar` what it would have had to reach.
    """

    arm: Arm
    rung: int
    rungs: int
    step: int
    value: float | None
    bar: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agenda:
    """What is to be done, what is not, and what came of the arms that are settled.

    Attributes:
      told: of every arm, once there is no task; then the next batch can be asked for.
    """

    tasks: tuple[Task, ...]
    verdicts: tuple[Verdict, ...]
    told: tuple[Told, ...]


class Judge:
    """Takes batch after batch through the rungs, and says what is left to do.

    Args:
      finished: whether a run in a folder came to its end, just as it is asked for.
      stopped: whether a run has ended by an error that is not tried again.
    """

    def __init__(
        self,
        sweep: Sweep,
        folder: Path,
        finished: Callable[[Experiment, Path], bool],
        stopped: Callable[[Path], bool],
    ):
        self._sweep, self._folder = sweep, folder
        self._finished, self._stopped = finished, stopped
        self._fractions = sweep.halving.fractions if sweep.halving else ()
        self._sign = 1.0 if is_maximised(sweep) else -1.0
        self._at_rung: list[list[float]] = [[] for _ in self._fractions]
        self._tasks: list[Task] = []
        self._verdicts: list[Verdict] = []

    def agenda(self, batches: Sequence[Sequence[Arm]]) -> Agenda:
        """Look at all batches, in order; one that is not settled ends the look."""
        for batch in batches:
            self._judge(batch)
            if self._tasks:
                return Agenda(tasks=tuple(self._tasks), verdicts=tuple(self._verdicts), told=())
        told = tuple(self._tell(arm) for batch in batches for arm in batch)
        return Agenda(tasks=(), verdicts=tuple(self._verdicts), told=told)

    def workdir(self, run: Experiment) -> Path:
        """Where a run goes."""
        return self._folder / key_of(run)

    def _judge(self, batch: Sequence[Arm]) -> None:
        """Take one batch up the rungs, as far as its runs have come."""
        alive = list(batch)
        for rung, fraction in enumerate((*self._fractions, 1.0)):
            coming = [
                Task(arm=arm, run=run, workdir=self.workdir(run), until=fraction)
                for arm, run in by_seed(alive)
                if not self._there(run, fraction) and not self._stopped(self.workdir(run))
            ]
            if coming:
                self._tasks += coming
                return
            if fraction < 1.0:
                alive = self._survivors(alive, rung, fraction)

    def _there(self, run: Experiment, fraction: float) -> bool:
        """Whether a run has come to a rung."""
        workdir = self.workdir(run)
        if self._finished(run, workdir):
            return True
        return fraction < 1.0 and value_at(workdir, fraction, self._sweep.metric) is not None

    def _survivors(self, alive: Sequence[Arm], rung: int, fraction: float) -> list[Arm]:
        """Compare arms that came to a rung with all that were there before; give the good ones."""
        assert self._sweep.halving is not None
        scores = [self._sign * self._mean_at(arm, fraction)[1] for arm in alive]
        scores = [score if math.isfinite(score) else -math.inf for score in scores]
        self._at_rung[rung] += scores
        bar = self._sweep.halving.bar(self._at_rung[rung]) if self._at_rung[rung] else -math.inf
        for arm, score in zip(alive, scores, strict=True):
            if score < bar:
                step, value = self._mean_at(arm, fraction)
                self._verdicts.append(
                    Verdict(
                        arm=arm,
                        rung=rung + 1,
                        rungs=len(self._fractions),
                        step=step,
                        value=value if math.isfinite(value) else None,
                        bar=self._sign * bar,
                    )
                )
        return [arm for arm, score in zip(alive, scores, strict=True) if score >= bar]

    def _mean_at(self, arm: Arm, fraction: float) -> tuple[int, float]:
        """Give (step, mean over seeds) of the metric; NaN where a seed has none."""
        found = [value_at(self.workdir(run), fraction, self._sweep.metric) for run in arm.runs]
        values = [math.nan if each is None else each[1] for each in found]
        steps = [each[0] for each in found if each is not None]
        whole = all(map(math.isfinite, values))
        return max(steps, default=0), mean(values) if whole else math.nan

    def _tell(self, arm: Arm) -> Told:
        """Say what came of an arm that is settled."""
        if not self._sweep.metric:
            return Told(arm=arm, value=None, rungs={})
        done = all(self._finished(run, self.workdir(run)) for run in arm.runs)
        value = self._mean_at(arm, 1.0)[1] if done else math.nan
        rungs = dict(self._mean_at(arm, fraction) for fraction in self._fractions)
        return Told(
            arm=arm,
            value=value if math.isfinite(value) else None,
            rungs={step: value for step, value in rungs.items() if step and math.isfinite(value)},
        )
