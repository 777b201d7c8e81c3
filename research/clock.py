"""Three nested units of time: steps, cycles between looks of the host, rounds between scorings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from research.core.parts import part, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cycle:
    """Steps `first` to `last` (exclusive), run without looking at the host."""

    first: int
    last: int
    round: int
    round_first: int
    round_last: int
    number: int
    opens_round: bool
    saves: bool
    evaluates: bool

    @property
    def num_steps(self) -> int:
        """How many updates the cycle makes."""
        return self.last - self.first


@part
class Clock:
    """How long a run is, and how often the host looks.

    Attributes:
      steps: optimiser updates of the whole run.
      cycle_steps: steps between two host synchronisations; a round's last cycle may be shorter.
      save_every: cycles between saves; the run's last cycle always saves. 0: only the last.
      evaluate_every: cycles between evaluations, likewise.
      evaluate_first: the starting weights are evaluated too; False spares it in a sweep whose runs
        all start from the same.
    """

    steps: int
    cycle_steps: int = 20
    save_every: int = 1
    evaluate_every: int = 0
    evaluate_first: bool = True

    def __post_init__(self) -> None:
        require(
            self,
            (self.steps > 0, f"steps={self.steps} must be positive"),
            (self.cycle_steps > 0, f"cycle_steps={self.cycle_steps} must be positive"),
            (self.save_every >= 0, f"save_every={self.save_every} must not be negative"),
            (self.evaluate_every >= 0, f"evaluate_every={self.evaluate_every} must be >= 0"),
        )

    def cycles(self, *, rounds: int, after: int = 0) -> Iterator[Cycle]:
        """Walk the cycles from step `after` on; the first is what is left of the one it lies in.

        Rounds divide the steps as evenly as integers allow. The walk is the same wherever it is
        entered, so a resumed run sees the cycles that it would have seen.
        """
        number = 0
        for round_ in range(rounds):
            first, last = round_ * self.steps // rounds, (round_ + 1) * self.steps // rounds
            for start in range(first, last, self.cycle_steps):
                end = min(start + self.cycle_steps, last)
                number += 1
                begin = max(start, after)
                if begin < end:
                    yield Cycle(
                        first=begin,
                        last=end,
                        round=round_,
                        round_first=first,
                        round_last=last,
                        number=number - 1,
                        opens_round=begin == first,
                        saves=self._due(number, end, self.save_every),
                        evaluates=self._due(number, end, self.evaluate_every),
                    )

    def _due(self, number: int, end: int, every: int) -> bool:
        return end == self.steps or (every > 0 and number % every == 0)
