"""Difficulty as the data states it: a grade, a level, a human's time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from research.core.parts import part, require


@part
class Given:
    """Score by a field of the row (not nats): a number, or a word with a place in `levels`.

    Attributes:
      field: its name; `meta.level` looks inside a nested one.
      levels: words from easy to hard, scored 0, 1, 2, ...; empty: the field is a number.

    Source: curricula by stated difficulty: Bengio et al. 2009, doi 10.1145/1553374.1553380.
    Law: static: the same in every round, whatever the model.
    """

    field: str = "difficulty"
    levels: tuple[str, ...] = ()

    views = ()

    def __post_init__(self) -> None:
        require(
            self,
            (bool(self.field), "field is empty; name the one that says how hard a row is"),
            (
                len(set(self.levels)) == len(self.levels) != 1,
                f"levels={self.levels}: expected at least two words, each once, easy first",
            ),
        )

    def of_row(self, row: Mapping[str, Any]) -> float:
        """Read the field.

        Raises:
          ValueError: it is not there, not one of the levels, or not a number.
        """
        value: Any = row
        for step in self.field.split("."):
            if not isinstance(value, Mapping) or step not in value:
                raise ValueError(f"field {self.field!r} is missing; the row has {sorted(row)}")
            value = value[step]
        if self.levels:
            if str(value) not in self.levels:
                raise ValueError(f"{self.field}={value!r} is none of the levels {self.levels}")
            return float(self.levels.index(str(value)))
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(
                f"{self.field}={value!r} is no number; if it is a word, list the words as levels"
            )
        return number
