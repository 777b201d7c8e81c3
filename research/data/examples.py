"""An example: one row as tokens, with what is trained, its stable id and where it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


class RowError(ValueError):
    """A row that cannot become an example.

    Attributes:
      reason: one of the census's headings, such as "malformed" or "too long".
      detail: what is wrong with this row, what was expected and what to do.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One row as the model sees it.

    Attributes:
      id: stable name of the row: its own id field, or a hash of its content.
      tokens: int32 [n], all tokens that are fed.
      trained: bool [n]; True where the token is a target with weight. The first never is.
      row: the raw row.
      where: the row's place, for people: `file:line`.
      group: number of the source it came from.
    """

    id: str
    tokens: np.ndarray
    trained: np.ndarray
    row: Mapping[str, Any]
    where: str
    group: int = 0
