"""A file of scores, a line a row, that a command goes on with after it was killed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.core.parts import differences
from research.report.lines import append, encode

FORMAT = "maktab-scores/1"


class ScoresFile:
    """Scores of the rows of a file, in its order, appended a shard at a time.

    Law: cut at any byte and gone on with, it holds the same bytes as one that never was.

    Attributes:
      settings: everything that decides the scores; they are the file's first line.
      shard_rows: rows of a shard; what a kill leaves of one is scored again.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], shard_rows: int):
        self.path, self.shard_rows = path, shard_rows
        self.settings = json.loads(encode({"format": FORMAT, **settings}))

    def begin(self, rows: int) -> int:
        """Make the file ready to be appended to; give how many of the `rows` are scored in it.

        Raises:
          ValueError: it holds scores of something else; the message says what differs.
        """
        header = encode(self.settings).encode()
        if not self.path.exists() or self._header() is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            append(self.path, [header.decode()])
            return 0
        changed = differences(self._header(), self.settings)
        if changed:
            raise ValueError(
                f"{self.path} holds other scores:\n  " + "\n  ".join(changed) + "\nGive another "
                "--out, remove that file, or ask as before"
            )
        return self._cut(len(header), rows)

    def extend(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append a shard, and wait until it is on the disk."""
        append(self.path, [encode(line) for line in lines])

    def lines(self) -> Iterator[dict[str, Any]]:
        """Give the lines of the rows.

        Raises:
          ValueError: a line is not that of its row.
        """
        with self.path.open("rb") as file:
            file.readline()
            for row, line in enumerate(file):
                try:
                    found = json.loads(line)
                except ValueError:
                    found = {}
                if not isinstance(found, dict) or found.get("row") != row:
                    raise ValueError(
                        f"{self.path}:{row + 2}: expected the scores of row {row}; it is damaged, "
                        "or two commands wrote to it: remove it, and begin again"
                    )
                yield found

    def signals(self, measured: int, rows: int) -> np.ndarray:
        """Give the signals [measured, rows] in float32; NaN where a row is bad."""
        signal_YX = np.full((measured, rows), np.nan, np.float32)
        for line in self.lines():
            signal_YX[:, line["row"]] = line.get("signals", np.nan)
        return signal_YX

    def _header(self) -> Any:
        """Read the first line; None where a kill cut it off."""
        with self.path.open("rb") as file:
            line = file.readline()
        if not line.endswith(b"\n"):
            return None
        try:
            header = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{self.path} is no file of scores; give another --out") from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ValueError(f"{self.path} is no file of scores; give another --out")
        return header

    def _cut(self, header_bytes: int, rows: int) -> int:
        """Keep whole shards; give their rows."""
        kept_rows, kept_bytes = 0, header_bytes
        count, size = 0, header_bytes
        with self.path.open("rb+") as file:
            file.seek(header_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                count, size = count + 1, size + len(line)
                if count % self.shard_rows == 0 or count == rows:
                    kept_rows, kept_bytes = count, size
            file.truncate(kept_bytes)
        return kept_rows
