"""Successive halving: which arms are worth going on with, asked at a few rungs of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from research.clock import Clock
from research.core.parts import part, require

WORST = -math.inf


@part
class Halving:
    """Keep the best 1/eta of the arms at each rung; rungs lie at eta^-rungs, ..., eta^-1 of a run.

    So each rung costs about the same in all: eta times the steps for 1/eta of the arms.

    Source: Jamieson & Talwalkar 2016, "Non-stochastic best arm identification"; arms that come
      later are compared with all that were at the rung before, as in Li et al. 2020, "ASHA".
    """

    eta: int = 2
    rungs: int = 2

    def __post_init__(self) -> None:
        require(
            self,
            (self.eta > 1, f"eta={self.eta} must be at least 2: 1/eta of the arms are kept"),
            (self.rungs > 0, f"rungs={self.rungs} must be positive"),
        )

    @property
    def fractions(self) -> tuple[float, ...]:
        """How much of a run is done at each rung."""
        return tuple(float(self.eta) ** -rung for rung in range(self.rungs, 0, -1))

    def bar(self, seen: Sequence[float]) -> float:
        """Give what an arm must reach to go on, of all that came to the rung; more is better.

        Law: at least 1/eta of them reach it, and equal ones share a fate.
        """
        return sorted(seen, reverse=True)[math.ceil(len(seen) / self.eta) - 1]


def rung_step(clock: Clock, rounds: int, fraction: float) -> int:
    """Give the first step at or after a fraction of the run at which there is an evaluation."""
    return next(
        cycle.last
        for cycle in clock.cycles(rounds=rounds)
        if cycle.evaluates and cycle.last >= fraction * clock.steps - 1e-6
    )


def require_rungs(clock: Clock, rounds: int, halving: Halving, name: str) -> None:
    """Check that a run is evaluated at its rungs.

    Raises:
      ValueError: two rungs, or a rung and the end, fall on one evaluation.
    """
    steps = [rung_step(clock, rounds, fraction) for fraction in (*halving.fractions, 1.0)]
    if len(set(steps)) < len(steps):
        wanted = ", ".join(f"{fraction:.3g}" for fraction in halving.fractions)
        raise ValueError(
            f"{name}: halving compares arms at {wanted} of a run, but the evaluations of "
            f"clock.steps={clock.steps}, cycle_steps={clock.cycle_steps}, evaluate_every="
            f"{clock.evaluate_every} come at steps {steps} next; evaluate more often, or halve "
            "at fewer rungs"
        )


def mean(values: Sequence[float]) -> float:
    """Give the mean over seeds; a value that is not finite makes it the worst there is."""
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else WORST
