"""What a person should see of the data before training: tables, and one example in colour."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from research.data.examples import Example
from research.data.packing import pack
from research.data.pool import Pool
from research.data.tokenizer import Tokenizer

# Dropped rows, and notes, that are shown; the others are counted.
_NAMED = 8
# Examples that are packed to see how well they pack: half a second's worth.
_PACKED = 4_000


def overview(pool: Pool) -> RenderableType:
    """Show everything: rows read and dropped, lengths, packing, and the first example."""
    example = pool.examples[0]
    heading = Text(f"{example.id} ({example.where}), trained tokens marked", style="bold")
    return Group(census_table(pool), length_table(pool), heading, coloured(example, pool.tokenizer))


def census_table(pool: Pool) -> RenderableType:
    """Show rows read, kept, and dropped by reason, with the first offenders by file and line."""
    census, table = pool.census, Table(title="Rows")
    table.add_column("source")
    table.add_column("rows", justify="right")
    weighted = zip(census.read, census.kept, pool.group_weights, strict=True)
    for number, (read, kept, weight) in enumerate(weighted):
        table.add_row(f"{number}: read", f"{read:,}")
        table.add_row(f"{number}: kept", f"{kept:,}")
        table.add_row(f"{number}: share of what is seen", f"{weight:.1%}")
    for reason, count in census.reasons().items():
        table.add_row(f"dropped: {reason}", f"{count:,}")
    if census.truncated:
        table.add_row(f"cut to {pool.data.row_tokens} tokens", f"{census.truncated:,}")
    dropped = [f"{row.where}: {row.reason}: {row.detail}" for row in census.dropped]
    lines = (*_first(census.notes, "notes"), *_first(dropped, "dropped rows"))
    return Group(table, *(Text(line) for line in lines))


def _first(lines: list[str], what: str) -> list[str]:
    more = len(lines) - _NAMED
    return lines[:_NAMED] + ([f"and {more:,} more {what}"] if more > 0 else [])


def length_table(pool: Pool) -> Table:
    """Show how long examples are, how much of them is trained, and how well they pack."""
    trained_X = np.asarray([int(example.trained.sum()) for example in pool.examples])
    table = Table(title="Tokens an example")
    for name in ("", "min", "median", "p95", "max", "sum"):
        table.add_column(name, justify="right")
    for name, counts in (("fed", pool.lengths_X), ("trained", trained_X)):
        marks = (counts.min(), np.median(counts), np.quantile(counts, 0.95), counts.max())
        table.add_row(name, *(f"{mark:,.0f}" for mark in marks), f"{counts.sum():,}")
    data = pool.data
    rows = f"{data.row_tokens} tokens, at most {data.segments} examples a row"
    table.caption = f"packing efficiency {packing_efficiency(pool):.1%} ({rows})"
    return table


def packing_efficiency(pool: Pool) -> float:
    """Give the share of the positions of rows in use that hold a token.

    The pool's first examples are packed batch by batch, in their own order.
    """
    data, queue = pool.data, list(range(min(len(pool), _PACKED)))
    used = room = 0
    while queue:
        rows, queue = pack(queue, pool.lengths_X, data.rows, data.row_tokens, data.segments)
        used += sum(int(pool.lengths_X[x]) for row in rows for x in row)
        room += sum(bool(row) for row in rows) * data.row_tokens
    return used / room


def runs(example: Example) -> Iterator[tuple[bool, list[int]]]:
    """Cut an example into runs of tokens that are all trained, or all not."""
    edges = np.flatnonzero(np.diff(example.trained)) + 1
    for piece in np.split(np.arange(len(example.tokens)), edges):
        yield bool(example.trained[piece[0]]), example.tokens[piece].tolist()


def coloured(example: Example, tokenizer: Tokenizer | None, max_tokens: int = 400) -> Text:
    """Show an example's tokens: those that are trained in green and between ⟦ and ⟧."""
    text, room = Text(), max_tokens
    for trained, ids in runs(example):
        shown = shown_tokens(ids[:room], tokenizer)
        text.append(f"⟦{shown}⟧" if trained else shown, style="bold green" if trained else "dim")
        room -= len(ids)
        if room <= 0:
            text.append(f" … {len(example.tokens) - max_tokens} more tokens" if room < 0 else "")
            break
    return text


def shown_tokens(ids: list[int], tokenizer: Tokenizer | None) -> str:
    """Give some tokens as text, specials included; without a tokenizer, their numbers."""
    return " ".join(map(str, ids)) if tokenizer is None else tokenizer.show(ids)


def plain(renderable: RenderableType, width: int = 100) -> str:
    """Give a renderable as text without colour, for logs and files."""
    console = Console(width=width, color_system=None, force_terminal=False, record=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()
