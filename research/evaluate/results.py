"""What an evaluation says: numbers that always carry their count and their interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

LOWER_IS_BETTER = frozenset({"loss_nats", "perplexity", "bits_per_byte"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number, how many items it rests on, and its 95 % interval (NaN where none exists)."""

    value: float
    count: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}] (n = {self.count})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The answer to one evaluator's question about one model.

    Attributes:
      metrics: in the evaluator's order; the first is the one that a report tests.
      slices: "field=value" -> the same metrics over the items of that slice.
      rows: one mapping an item: its "id", each metric's value for it, and under `<metric>_count`
        that value's weight (tokens, bytes, values) where it is not 1. Arms are paired by these.
    """

    name: str
    metrics: Mapping[str, Estimate]
    slices: Mapping[str, Mapping[str, Estimate]] = dataclasses.field(default_factory=dict)
    rows: tuple[Mapping[str, Any], ...] = ()

    def summary(self) -> dict[str, Any]:
        """Give everything but the rows as JSON, which has null for what is not finite."""
        return {
            "name": self.name,
            "metrics": _described(self.metrics),
            "slices": {name: _described(metrics) for name, metrics in self.slices.items()},
        }


def _described(metrics: Mapping[str, Estimate]) -> dict[str, Any]:
    return {
        name: {
            key: None if isinstance(number, float) and not math.isfinite(number) else number
            for key, number in dataclasses.asdict(estimate).items()
        }
        for name, estimate in metrics.items()
    }
