"""Scores of a data file for people: a row an example, with its loss and entropy a token."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from research.core.layout import Placement
from research.core.protocols import Estimator, Tree
from research.core.records import Batch
from research.core.vocabulary import token_statistics
from research.curriculum.estimators.teacher_forced_loss import TeacherForcedLoss
from research.data.batches import single_rows
from research.data.pool import Pool
from research.models.transformer import Transformer
from research.score.pool import Cost, Gauge, Watch, ask_pool, batches_of
from research.score.stream import forget
from research.score.views import Views, render_views

WINDOW = 4096  # examples whose token lists are held at once


def score_rows(
    estimator: Estimator,
    model: Transformer,
    params: Tree,
    pool: Pool,
    *,
    key: Array,
    place: Placement,
    stop_ids: tuple[int, ...] = (),
    rows_per_batch: int = 32,
    per_token: bool = False,
    watch: Watch | None = None,
    paid: Callable[[Cost], None] = forget,
) -> Iterator[dict[str, Any]]:
    """Give, in the pool's order, a row an example.

    `num_tokens`, `num_scored` and the token lists describe the example as training feeds it,
    whatever the estimator: all its tokens, those that are targets with weight, and, at position t,
    what is said of token t+1. `score_nats` is the estimator's.

    Args:
      per_token: add `token_loss_nats` and `token_entropy_nats`, of length num_tokens - 1.
      paid: called with what every so many examples took; their token lists are not in it.

    Raises:
      ScoringError: a score is not finite.
    """
    views = render_views(estimator, pool)
    fed = render_views(TeacherForcedLoss(), pool)
    gauge = Gauge()
    for first in range(0, len(pool), WINDOW):
        ids = np.arange(first, min(first + WINDOW, len(pool)))
        scored = ask_pool(
            estimator,
            model,
            params,
            views,
            ids,
            round_=0,
            key=key,
            place=place,
            stop_ids=stop_ids,
            rows_per_batch=rows_per_batch,
            gauge=gauge,
            watch=None if watch is None else lambda done, _, f=first: watch(f + done, len(pool)),
        ).finish()
        paid(scored.cost)
        lists = _token_lists(model, params, fed, ids, place, rows_per_batch) if per_token else {}
        for x, score in zip(ids.tolist(), scored.score_N.tolist(), strict=True):
            example = pool.examples[x]
            yield {
                "id": example.id,
                "num_tokens": len(example.tokens),
                "num_scored": int(example.trained[1:].sum()),
                "score_nats": score,
                **lists.get(x, {}),
            }


def _token_lists(
    model: Transformer,
    params: Tree,
    fed: Views,
    ids: np.ndarray,
    place: Placement,
    rows_per_batch: int,
) -> dict[int, dict[str, list[float]]]:
    """Give loss and entropy of every token but the first of each example."""
    lists = {}
    rows = place.divisible(rows_per_batch)
    for batch_ids, bucket in batches_of(fed.longest, ids, rows, None):
        examples = [fed.examples[0][x] for x in batch_ids]
        build = functools.partial(single_rows, examples, batch_ids.tolist(), bucket)
        batch = place.put_rows(rows, build)
        loss_BT, entropy_BT = map(np.asarray, _token_pass(model, place, params, batch))
        for b, (x, example) in enumerate(zip(batch_ids.tolist(), examples, strict=True)):
            last = len(example.tokens) - 1
            lists[x] = {
                "token_loss_nats": loss_BT[b, :last].tolist(),
                "token_entropy_nats": entropy_BT[b, :last].tolist(),
            }
    return lists


@functools.partial(jax.jit, static_argnums=(0, 1))
def _token_pass(
    model: Transformer, place: Placement, params: Tree, batch: Batch
) -> tuple[Array, Array]:
    logprob_BT, entropy_BT = token_statistics(model.apply(params, batch), batch.targets_BT)
    everywhere = functools.partial(jax.lax.with_sharding_constraint, shardings=place.replicated)
    return everywhere(-logprob_BT), everywhere(entropy_BT)
