"""What became of every row: how many were read, which were dropped, where they are and why."""

from __future__ import annotations

import collections
import dataclasses

from research.data.examples import RowError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropped:
    """A row that is not in the pool."""

    where: str
    id: str
    reason: str
    detail: str


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

    def check(self, max_bad_fraction: float) -> None:
        """Stop where too many rows were dropped, or none is left.

        Raises:
          ValueError: with the counts and the first offenders by file and line.
        """
        read, bad = sum(self.read), len(self.dropped)
        if read and sum(self.kept) and bad <= max_bad_fraction * read:
            return
        if not read:
            raise ValueError("the data has no rows; name a source that has some")
        first = "".join(f"\n  {row.where}: {row.reason}: {row.detail}" for row in self.dropped[:8])
        more = f"\n  and {bad - 8} more" if bad > 8 else ""
        raise ValueError(
            f"{bad} of {read} rows cannot be used ({self.reasons()}), more than the "
            f"{max_bad_fraction:.2%} that max_bad_fraction allows. Mend or filter them, or raise "
            f"max_bad_fraction:{first}{more}"
        )
