"""The engine that asks: an evaluator's items measured, then summed over all and over slices."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.core.layout import Placement
from research.core.protocols import Evaluator, Tree
from research.core.records import Total
from research.data.pool import Data, Pool, open_pool
from research.data.tokenizer import Tokenizer
from research.evaluate.results import Estimate, Evaluation
from research.evaluate.statistics import ratio_interval
from research.evaluate.subject import Subject
from research.models.transformer import Transformer

Item = Mapping[str, Any]  # metric -> Total; anything else is a note that is kept in the item's row


def checks_of(evaluator: Evaluator) -> tuple[tuple[bool, str], ...]:
    """Give the checks that every evaluator makes of its own settings."""
    return (
        (
            bool(re.fullmatch(r"\w[\w.-]*", evaluator.name)),
            f"name={evaluator.name!r} is a file's name too; use letters, digits, '.', '_' and '-'",
        ),
        (
            not evaluator.data.pack,
            "data.pack=True takes no effect: items are evaluated one a row; set pack=False",
        ),
    )


def evaluate(
    evaluator: Evaluator,
    model: Transformer,
    params: Tree,
    tokenizer: Tokenizer | None,
    place: Placement,
    progress: Callable[[int, int], None] | None = None,
    *,
    stop_ids: tuple[int, ...] | None = None,
    start: Callable[[], Tree] | None = None,
) -> Evaluation:
    """Ask one question of a model.

    Args:
      params: the tree the model is applied to: adapters joined, dropout off.
      progress: called with (rows done, rows in all).
      stop_ids: tokens that end a generated answer; None: the tokenizer's EOS alone.
      start: makes the weights that training started from, for evaluators that compare with them.

    Raises:
      ValueError: an item cannot be asked, or a slice's field is missing; with the row's place.
    """
    if stop_ids is None:
        eos = None if tokenizer is None else tokenizer.eos_id
        stop_ids = () if eos is None else (eos,)
    pool = opened(evaluator.data, tokenizer, model.arch.vocab_size)
    pool.require_fit(model.arch.longest_text)
    subject = Subject(
        model=model,
        params=params,
        tokenizer=tokenizer,
        place=place,
        stop_ids=stop_ids,
        progress=progress,
        start=start,
    )
    items = evaluator.measure(subject, pool)
    return Evaluation(
        name=evaluator.name,
        metrics=summed(items),
        slices={
            name: summed([items[x] for x in members])
            for name, members in slices_of(pool, evaluator.slice_by).items()
        },
        rows=tuple(_row(id, item) for id, item in zip(pool.ids, items, strict=True)),
    )


@functools.lru_cache(maxsize=8)
def opened(data: Data, tokenizer: Tokenizer | None, vocab_size: int) -> Pool:
    """Open an evaluation's items; asking again gives the same pool without reading again."""
    return open_pool(data, tokenizer, vocab_size=vocab_size)


def summed(items: Sequence[Item]) -> dict[str, Estimate]:
    """Estimate every metric over the items that have it; a loss brings its perplexity.

    Law: perplexity = exp(loss), interval included.
    """
    names = dict.fromkeys(
        name for item in items for name, value in item.items() if isinstance(value, Total)
    )
    metrics: dict[str, Estimate] = {}
    for name in names:
        totals = [item[name] for item in items if name in item]
        metrics[name] = ratio_interval([t.sum for t in totals], [t.count for t in totals])
        if name == "loss_nats":
            loss = metrics[name]
            metrics["perplexity"] = Estimate(
                value=_exp(loss.value), count=loss.count, low=_exp(loss.low), high=_exp(loss.high)
            )
    return metrics


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf


def slices_of(pool: Pool, fields: Sequence[str]) -> dict[str, list[int]]:
    """Group items by the value of each field: "field=value" -> pool indices.

    Raises:
      ValueError: a row lacks the field.
    """
    found: dict[str, list[int]] = {}
    for field in fields:
        for x, example in enumerate(pool.examples):
            if field not in example.row:
                raise ValueError(
                    f"{example.where} has no field {field!r} to slice by; it has "
                    f"{sorted(example.row)}"
                )
            found.setdefault(f"{field}={example.row[field]}", []).append(x)
    return dict(sorted(found.items()))


def _row(id: str, item: Item) -> dict[str, Any]:
    """Give an item's row: values, their counts where they are not 1, and notes as they are."""
    row: dict[str, Any] = {"id": id}
    for name, value in item.items():
        if not isinstance(value, Total):
            row[name] = value
        else:
            row[name] = value.mean
            if value.count != 1:
                row[f"{name}_count"] = value.count
    return row
