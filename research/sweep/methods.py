"""Searches that learn nothing: all combinations, or independent draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from research.core.parts import part, require
from research.sweep.plan import Told
from research.sweep.space import Point, Range

MOST = 10_000  # trials; more is a mistake in the space


@part
class Grid:
    """Every combination of every choice; the last field changes fastest.

    Attributes:
      points: so many values of each range of numbers.
    """

    points: int = 3

    def __post_init__(self) -> None:
        require(self, (self.points > 0, f"points={self.points} must be positive"))

    @property
    def knows_all(self) -> bool:
        """Whether all points are known beforehand."""
        return True

    def propose(
        self, space: Mapping[str, Range], told: Sequence[Told], maximise: bool
    ) -> list[Point]:
        """Give all combinations at once."""
        axes = {path: range_.grid(self.points) for path, range_ in space.items()}
        count = math.prod(map(len, axes.values()))
        if count > MOST:
            raise ValueError(f"a grid of {count} trials; lower points, or search otherwise")
        every = itertools.product(*axes.values())
        return [] if told else [dict(zip(axes, values, strict=True)) for values in every]


@part
class Random:
    """Independent draws, all known beforehand.

    Law: trial n is the same however many trials there are.

    Attributes:
      trials: how many.
      seed: another seed draws other trials.
    """

    trials: int
    seed: int = 0

    def __post_init__(self) -> None:
        require(self, (self.trials > 0, f"trials={self.trials} must be positive"))

    @property
    def knows_all(self) -> bool:
        """Whether all points are known beforehand."""
        return True

    def propose(
        self, space: Mapping[str, Range], told: Sequence[Told], maximise: bool
    ) -> list[Point]:
        """Give all draws that have not been told of."""
        return [draw(space, self.seed, number) for number in range(len(told), self.trials)]


def draw(space: Mapping[str, Range], seed: int, number: int) -> Point:
    """Draw one point; it depends on the seed and its number alone."""
    shares = np.random.default_rng([seed, number]).random(len(space))
    return {
        path: range_.at(float(share))
        for (path, range_), share in zip(space.items(), shares, strict=True)
    }
