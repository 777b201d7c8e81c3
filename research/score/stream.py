"""Measurements of a pool that need not fit in memory, a shard at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array

from research.core.layout import Placement
from research.core.parts import vary
from research.core.protocols import Tree
from research.curriculum.curriculum import Curriculum
from research.data.census import BadRowsError
from research.data.pool import Data, Pool, open_pool
from research.data.stream import Shard, one_ahead
from research.data.tokenizer import Tokenizer
from research.models.transformer import Transformer
from research.score.pool import Cost, Gauge
from research.score.terms import ask_terms, open_terms

NEARLY_ALL = 1 - 1e-9  # who asked for the scores says how many rows of the file may be bad


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPool:
    """What became of the rows of a shard.

    Attributes:
      pool: the rows that can be used; None: there are none.
      rows: their places in the shard, in order.
      bad: place -> what is wrong with each other one.
    """

    shard: Shard
    pool: Pool | None
    rows: tuple[int, ...]
    bad: Mapping[int, str]


def nobody(done: int) -> None:
    """Nobody looks on."""


def forget(cost: Cost) -> None:
    """Nobody asks what it took."""


def score_shards(
    curriculum: Curriculum,
    model: Transformer,
    params: Tree,
    tokenizer: Tokenizer | None,
    data: Data,
    shards: Iterable[Shard],
    *,
    usable_before: int,
    key: Array,
    place: Placement,
    stop_ids: tuple[int, ...] = (),
    rows_per_batch: int = 32,
    watch: Callable[[int], None] = nobody,
    paid: Callable[[Cost], None] = forget,
) -> Iterator[list[dict[str, Any]]]:
    """Give, shard by shard and in the file's order, a line a row.

    A line has "row" (its index in the file), "id", "num_tokens" and "signals" (a number for each of
    `curriculum.measured`), or "row" and "bad": what is wrong with it.

    Args:
      data: how rows become examples; the shards are its source.
      usable_before: rows of the file before these shards that were not bad.
      watch: called with the rows of these shards that are done.
      paid: called with what each shard took.

    Raises:
      ScoringError: a signal is not finite.

    Law: signals are those of `score_rows` over the file without its bad rows, bit for bit where the
    shards are as long as its windows. They do not depend on the shard with which this began.
    """
    done, gauge = 0, Gauge()
    pools = (_open(shard, data, tokenizer, model.arch.vocab_size) for shard in shards)
    for opened in one_ahead(pools):
        signal_YN = np.zeros((len(curriculum.measured), 0))
        if opened.pool is not None:
            terms = open_terms(curriculum, opened.pool, model, stop_ids)
            signal_YN, cost = ask_terms(
                terms,
                np.full((len(terms), len(opened.pool)), np.nan, np.float32),
                params,
                np.arange(len(opened.pool)),
                round_=0,
                key=key,
                place=place,
                rows_per_batch=rows_per_batch,
                gauge=gauge,
                watch=lambda scored, _, before=done: watch(before + scored),
                first_id=usable_before,
            ).finish()
            usable_before += len(opened.pool)
            paid(cost)
        done += len(opened.shard.items)
        watch(done)
        yield _lines(opened, signal_YN)


def _open(shard: Shard, data: Data, tokenizer: Tokenizer | None, vocab_size: int) -> ShardPool:
    """Tokenise a shard; a row that cannot be used is named and left out."""
    data = vary(data, {"sources": (shard,), "max_bad_fraction": NEARLY_ALL})
    places = {shard.where(index): index for index in range(len(shard.items))}
    try:
        pool = open_pool(data, tokenizer, vocab_size=vocab_size)
        dropped, examples = pool.census.dropped, pool.examples
    except BadRowsError as error:
        pool, dropped, examples = None, error.dropped, ()
    return ShardPool(
        shard=shard,
        pool=pool,
        rows=tuple(places[example.where] for example in examples),
        bad={places[row.where]: str(row) for row in dropped},
    )


def _lines(opened: ShardPool, signal_YN: np.ndarray) -> list[dict[str, Any]]:
    """Write a line a row, in the file's order."""
    first = opened.shard.first
    lines = {index: {"row": first + index, "bad": why} for index, why in opened.bad.items()}
    examples = () if opened.pool is None else opened.pool.examples
    for index, example, signals in zip(opened.rows, examples, signal_YN.T.tolist(), strict=True):
        lines[index] = {
            "row": first + index,
            "id": example.id,
            "num_tokens": len(example.tokens),
            "signals": signals,
        }
    return [lines[index] for index in sorted(lines)]
