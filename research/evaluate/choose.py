"""Which questions the rows of a file allow."""

from __future__ import annotations

from research.core.protocols import Evaluator
from research.data.pool import Data, Pool
from research.data.rows import kind_of
from research.evaluate.choice import MultipleChoice
from research.evaluate.generation import ExactMatch, SlotAccuracy
from research.evaluate.likelihood import Likelihood


def evaluators_for(
    pool: Pool, *, max_new_tokens: int = 128, pattern: str = "", slice_by: tuple[str, ...] = ()
) -> tuple[Evaluator, ...]:
    """Give the evaluators that every row of a pool can answer, on the pool's own data.

    All rows allow a likelihood; question, options and answer allow multiple choice; a prompt with
    its completion as text allows exact match (with `pattern`, of what it extracts); and with a
    meaning representation in `mr`, slot accuracy.
    """
    data: Data = pool.data
    rows = [example.row for example in pool.examples]
    kinds = {kind_of(row) for row in rows}
    found: list[Evaluator] = [Likelihood(data=data, slice_by=slice_by)]
    if kinds == {"choice"}:
        found.append(MultipleChoice(data=data, slice_by=slice_by))
    if kinds == {"completion"} and all(isinstance(row.get("completion"), str) for row in rows):
        found.append(
            ExactMatch(data=data, slice_by=slice_by, pattern=pattern, max_new_tokens=max_new_tokens)
        )
        if all(isinstance(row.get("mr"), str) for row in rows):
            found.append(SlotAccuracy(data=data, slice_by=slice_by, max_new_tokens=max_new_tokens))
    return tuple(found)
