"""Wrong answers on purpose: does a curriculum chase noise?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from research.core.parts import part, require
from research.core.protocols import Source
from research.data.choice import answer_index
from research.data.examples import RowError
from research.data.selection import share
from research.data.sources import Opened, notes_of


@part
class Corrupted:
    """A question set some of whose rows name a wrong option as the right one.

    Which rows, and which option, follows from (seed, id) alone, so that arms share their noise and
    a larger fraction corrupts the same rows and more. A corrupted row has `corrupted: True`;
    `answer_text`, where a row has it, follows its answer.

    Attributes:
      fraction: share of the rows.
      by: the field that tells rows apart.
    """

    source: Source
    fraction: float
    seed: int = 0
    by: str = "id"

    def __post_init__(self) -> None:
        require(
            self,
            (0 < self.fraction <= 1, f"fraction={self.fraction}; expected 0 < fraction <= 1"),
            (bool(self.by), "by is empty; name the field that tells rows apart"),
        )

    def open(self) -> Opened:
        """Open the source; a row without options and answer is malformed."""
        rows = self.source.open()

        def read(index: int) -> Mapping[str, Any]:
            row = rows[index]
            missing = [name for name in (self.by, "options", "answer") if name not in row]
            if missing:
                raise RowError("malformed", f"no {missing} to corrupt an answer by")
            name = str(row[self.by])
            wrong = share(f"corrupt {self.seed}", name) < self.fraction
            return self._answered_wrongly(row, name) if wrong else {**row, "corrupted": False}

        note = f"{self.fraction:.0%} of {len(rows)} rows get a wrong answer (seed {self.seed})"
        return Opened(range(len(rows)), read, rows.where, (*notes_of(rows), note))

    def _answered_wrongly(self, row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        options = [str(option) for option in row["options"]]
        gold = answer_index(row["answer"], options)
        others = [k for k, option in enumerate(options) if option.strip() != options[gold].strip()]
        if not others:
            raise RowError("malformed", f"all options say {options[gold]!r}: none is wrong")
        chosen = others[int(share(f"option {self.seed}", name) * len(others))]
        text = {"answer_text": options[chosen]} if "answer_text" in row else {}
        return {**row, "answer": chosen, **text, "corrupted": True}
