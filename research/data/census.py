"""What became of every row: how many were read, which were dropped, where they are and why."""

from __future__ import annotations

import collections
import dataclasses

from research.data.examples import RowError

_NAMED = 8  # bad rows that are named; the others are counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropped:
    """A row that is not in the pool; as text, its place, its id where it has one, and why."""

    where: str
    id: str
    reason: str
    detail: str

    def __str__(self) -> str:
        named = f" (id {self.id!r})" if self.id else ""
        return f"{self.where}: {self.reason}: {self.detail}{named}"


class BadRowsError(ValueError):
    """More rows cannot be used than was allowed.

    Attributes:
      dropped: the rows, in order.
    """

    def __init__(self, message: str, dropped: list[Dropped]):
        super().__init__(f"{message}:{listed(dropped)}")
        self.dropped = dropped


def listed(dropped: list[Dropped]) -> str:
    """Name the first offenders, a line each, and count the others."""
    first = "".join(f"\n  {row}" for row in dropped[:_NAMED])
    return first + (f"\n  and {len(dropped) - _NAMED} more" if len(dropped) > _NAMED else "")


@dataclasses.dataclass
class Census:
    """A count of rows, filled while a pool is opened.

    Attributes:
      read: rows seen, of each source.
      kept: rows that became examples, of each source.
      truncated: examples that were cut to the row's length.
      dropped: the others, in order.
      notes: what the sources say of rows that they left out on purpose.
    """

    read: list[int] = dataclasses.field(default_factory=list)
    kept: list[int] = dataclasses.field(default_factory=list)
    truncated: int = 0
    dropped: list[Dropped] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def drop(self, where: str, id: str, error: RowError) -> None:
        """Note a row that is left out."""
        self.dropped.append(Dropped(where=where, id=id, reason=error.reason, detail=error.detail))

    def reasons(self) -> dict[str, int]:
        """Count the dropped rows by reason, most frequent first."""
        return dict(collections.Counter(row.reason for row in self.dropped).most_common())

    def check(self, max_bad_fraction: float, sources: str) -> None:
        """Stop where too many rows were dropped, or none is left.

        Args:
          sources: what was read, for people.

        Raises:
          BadRowsError: with the counts and the first offenders by file, line and id.
          ValueError: there are no rows.
        """
        read, bad = sum(self.read), len(self.dropped)
        if read and sum(self.kept) and bad <= max_bad_fraction * read:
            return
        if not read:
            raise ValueError(f"the data has no rows: {sources}; name a source that has some")
        raise BadRowsError(
            f"{bad} of {read} rows cannot be used ({self.reasons()}), more than the "
            f"{max_bad_fraction:.2%} that max_bad_fraction allows. Mend or filter them, or raise "
            "max_bad_fraction",
            self.dropped,
        )
