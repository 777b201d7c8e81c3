"""Rows of a file that need not fit in memory, a shard at a time."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import gzip
import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from research.data.sources import Opened, parse_line

T = TypeVar("T")
BLOCK = 1_024  # Parquet rows that are decoded at once


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """Some rows of a file that follow one another: a source.

    Attributes:
      first: index of its first row in the file.
      items: (file, number, row), numbers counted from 1; the row as bytes where it is a line.
    """

    first: int
    items: Sequence[tuple[Path, int, Any]]

    def open(self) -> Opened:
        """Give the rows, which are in memory already."""
        return Opened(self.items, _row, self.where)

    def where(self, index: int) -> str:
        """Name a row for people."""
        path, number, _ = self.items[index]
        return f"{path}:{number}"


def _row(item: tuple[Path, int, Any]) -> Mapping[str, Any]:
    return parse_line(item) if isinstance(item[2], bytes) else item[2]


def shards(path: Path, rows: int, first: int = 0) -> Iterator[Shard]:
    """Read a file from row `first` on, `rows` at a time; blank lines are no rows.

    Law: the rows are those of `Jsonl` or `Parquet`, in their order.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: a .gz or .parquet file is damaged.
    """
    items = itertools.islice(_items(path), first, None)
    while held := list(itertools.islice(items, rows)):
        yield Shard(first=first, items=held)
        first += len(held)


def _items(path: Path) -> Iterator[tuple[Path, int, Any]]:
    if path.suffix == ".parquet":
        yield from ((path, number, row) for number, row in enumerate(_table(path), start=1))
        return
    for number, line in enumerate(_lines(path), start=1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if line.strip():
            yield path, number, line.removesuffix(b"\n")


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    opener: Callable[..., Any] = gzip.open if zipped else open
    try:
        with opener(path, "rb") as file:
            yield from file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file ({error}); fetch it again") from error


def _table(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for block in file.iter_batches(batch_size=BLOCK):
                yield from block.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file ({error})") from error


def survey(path: Path) -> tuple[int, str]:
    """Read a file once: (number of its rows, hash of its bytes).

    Raises:
      FileNotFoundError, ValueError: as `shards`.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return sum(1 for _ in _items(path)), f"sha256:{digest}"


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Make the next item in a thread while the last one is used."""
    nothing: Any = object()
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as worker:
        coming = worker.submit(next, items, nothing)
        while (item := coming.result()) is not nothing:
            coming = worker.submit(next, items, nothing)
            yield item
