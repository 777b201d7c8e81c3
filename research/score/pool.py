"""The scorer: an estimator over a pool, in a few static shapes, every example exactly once."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.core.generation import Decoding
from research.core.layout import Placement
from research.core.protocols import Differentiating, Estimator, Tree
from research.core.records import Batch, Total
from research.data.batches import single_rows
from research.data.examples import Example
from research.models.transformer import Transformer
from research.score.views import Views, guide_flops, scoring_flops

SMALLEST_BUCKET = 16  # shorter rows are not worth a program of their own
QUEUED = 16  # batches that one program decodes: its last rows idle for a sixteenth of the time
ADMISSIONS = 4  # a quarter of the rows has ended when as many prompts are read
WORTH_SHARING = 0.25  # of the mean prompt: shared tokens are attended to without a fused kernel
IN_FLIGHT = 2  # batches queued on the devices while the host lays out the next

Watch = Callable[[int, int], None]  # (rows done, rows in all)


class ScoringError(RuntimeError):
    """A round's scores are incomplete or not finite: nothing can be selected by them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What scoring took.

    Attributes:
      rows: examples scored.
      prefill_tokens: tokens of their views, padding not counted.
      generated_tokens: tokens charged for generation; early ends are not discounted.
      flops: analytic; see `scoring_flops`.
      seconds: wall time, compilation included.
    """

    rows: int
    prefill_tokens: int
    generated_tokens: int
    flops: float
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of `ids_N`, in the same order, and what they took."""

    ids_N: Int[np.ndarray, " N"]
    score_N: Float[np.ndarray, " N"]
    cost: Cost


def score_pool(
    estimator: Estimator,
    model: Transformer,
    params: Tree,
    views: Views,
    ids: Sequence[int] | np.ndarray,
    *,
    round_: int,
    key: Array,
    place: Placement,
    stop_ids: tuple[int, ...] = (),
    rows_per_batch: int = 32,
    buckets: Sequence[int] | None = None,
    watch: Watch | None = None,
    guide: Views | None = None,
    first_id: int = 0,
) -> Scored:
    """Score `ids`, one example a row, unpacked.

    Rows are sorted by length, the longest first, and cut into batches of one size; each batch is
    padded to a bucket, so there are at most as many programs as buckets, in all rounds together.
    The last batch is filled up with empty rows. Where answers are generated, rows wait in line
    (`as_it_decodes`), and first tokens that the whole pool shares are read once.

    Args:
      params: the tree the model is applied to: adapters joined, dropout off.
      views: `render_views(estimator, pool)`.
      key: of the scoring stream; a row's own key is fold_in(fold_in(key, round), id).
      rows_per_batch: rounded up to a multiple of the row shards of `place`.
      buckets: row lengths to pad to; None: powers of two.
      watch: called with (rows done, rows in all) as batches come back.
      guide: the rows that a guided estimator compares with.
      first_id: where the views begin in a pool of which they are a part; keys are by its ids.

    Raises:
      ScoringError: a score is missing or not finite.
      ValueError: an id comes twice, or a row is longer than every bucket.

    Law: a score depends on params, view, key, round and id; not on batch-mates, bucket, order or
    device count, within float noise.
    """
    start = time.perf_counter()
    ids = np.asarray(ids, np.int64)
    if len(np.unique(ids)) != len(ids):
        raise ValueError(f"{len(ids) - len(np.unique(ids))} ids come twice; score each once")
    if isinstance(estimator, Differentiating):
        place = with_whole_rows(place)
        model = dataclasses.replace(model, place=place)
    shards = place.num_row_shards
    rows = -(-rows_per_batch // shards) * shards
    model, waiting = as_it_decodes(estimator, model, views, rows)
    against = () if guide is None else (_direction(estimator, model, params, guide, place, rows),)
    score_X = np.full(len(views.longest), np.nan, np.float32)
    pending: list[tuple[np.ndarray, Array]] = []
    done = 0

    def collect(most: int) -> None:
        nonlocal done
        while len(pending) > most:
            batch_ids, score_B = pending.pop(0)
            score_X[batch_ids] = np.asarray(score_B)[: len(batch_ids)]
            done += len(batch_ids)
            if watch is not None:
                watch(done, len(ids))

    for batch_ids, bucket in batches_of(views.longest, ids, waiting, buckets):
        shown = functools.partial(_lay_out, views, batch_ids, bucket, first_id)
        batches = place.put_rows(waiting, shown)
        score_B = score_batch(
            estimator, model, place, stop_ids, params, batches, key, round_, against
        )
        pending.append((batch_ids, score_B))
        collect(IN_FLIGHT)
    collect(0)
    _check(score_X[ids], ids, views, round_)
    prefix = estimator.new_tokens or 0
    return Scored(
        ids_N=ids,
        score_N=score_X[ids],
        cost=Cost(
            rows=len(ids),
            prefill_tokens=int(views.counts[:, ids].sum()),
            generated_tokens=prefix * int((views.counts[:, ids] > 0).sum()),
            flops=float(scoring_flops(estimator, model.arch, params, views)[ids].sum())
            + guide_flops(estimator, model.arch, params, guide),
            seconds=time.perf_counter() - start,
        ),
    )


def as_it_decodes(
    estimator: Estimator, model: Transformer, views: Views, rows: int
) -> tuple[Transformer, int]:
    """Give (the model as it decodes for an estimator, how many rows it is handed at once).

    An estimator that generates is handed several batches, of which `rows` are in flight: a row that
    has ended makes room for the next (`Compute.scoring_refill`). Tokens that all prompts begin with
    are read once if they are a good part of the prompts.
    """
    if len(views.examples) != 1 or (estimator.new_tokens or 0) < 2:
        return model, rows
    shards, pool = model.place.num_row_shards, len(views.longest)
    waiting = min(QUEUED, -(-pool // rows)) * rows
    shared = shared_tokens(views.examples[0])
    if shared < max(SMALLEST_BUCKET, WORTH_SHARING * float(views.longest.mean())):
        shared = 0
    if not model.compute.scoring_refill or waiting == rows:
        decoding = Decoding(shared_tokens=shared)
        return dataclasses.replace(model, decoding=decoding), rows
    admitted = max(1, rows // shards // ADMISSIONS) * shards
    decoding = Decoding(rows=rows, admitted=admitted, shared_tokens=shared)
    return dataclasses.replace(model, decoding=decoding), waiting


def shared_tokens(examples: Sequence[Example]) -> int:
    """Count the first tokens that all texts have in common, at least one token short of each."""
    first = examples[0].tokens
    shared = len(first) - 1
    for example in examples:
        shared = min(shared, len(example.tokens) - 1)
        differs = np.flatnonzero(first[:shared] != example.tokens[:shared])
        shared = int(differs[0]) if len(differs) else shared
    return max(shared, 0)


def with_whole_rows(place: Placement) -> Placement:
    """Give the same mesh with rows that are not split over it: every device computes all of them,
    one by one, which is how gradients of single rows are taken where weights are split."""
    rules = [(letter, axes) for letter, axes in place.layout.activations if letter != "B"]
    layout = dataclasses.replace(place.layout, activations=tuple(rules))
    return Placement(layout, place.mesh)


def _lay_out(
    views: Views, ids: Int[np.ndarray, " N"], bucket: int, first_id: int, part: slice
) -> tuple:
    """Lay out a range of a batch's rows in each view."""
    names = (ids + first_id).tolist()
    return tuple(
        single_rows([view[x] for x in ids], names, bucket, part) for view in views.examples
    )


def batches_of(
    lengths_X: Int[np.ndarray, " X"],
    ids: Int[np.ndarray, " N"],
    rows: int,
    buckets: Sequence[int] | None,
) -> Iterator[tuple[Int[np.ndarray, " rows"], int]]:
    """Cut ids into batches of `rows`, the longest first: (ids, bucket that holds them).

    Raises:
      ValueError: a row is longer than every bucket.
    """
    longest = int(lengths_X.max(initial=1))
    buckets = powers_of_two(longest) if buckets is None else sorted(buckets)
    if longest > buckets[-1]:
        raise ValueError(
            f"a view has {longest} tokens, the largest bucket {buckets[-1]}; add a larger one"
        )
    ids = np.sort(ids)
    ids = ids[np.argsort(-lengths_X[ids], kind="stable")]
    for first in range(0, len(ids), rows):
        batch_ids = ids[first : first + rows]
        yield batch_ids, next(b for b in buckets if b >= lengths_X[batch_ids[0]])


def powers_of_two(longest: int) -> tuple[int, ...]:
    """Give bucket lengths from 16 up to the first that holds `longest`."""
    buckets = [SMALLEST_BUCKET]
    while buckets[-1] < longest:
        buckets.append(2 * buckets[-1])
    return tuple(buckets)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def score_batch(
    estimator: Estimator,
    model: Transformer,
    place: Placement,
    stop_ids: tuple[int, ...],
    params: Tree,
    batches: tuple,
    key: Array,
    round_: int,
    against: tuple = (),
) -> Float[Array, " B"]:
    """Score a batch, each row with its own key, and give the scores to every device.

    Args:
      against: what the guide says, for a guided estimator.
    """
    key = jax.random.fold_in(key, round_)
    key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, batches[0].ids_BZ[:, 0])
    score_B = estimator.score(model, params, batches, key_B, stop_ids, *against)
    return jax.lax.with_sharding_constraint(score_B.astype(jnp.float32), place.replicated)


def _direction(
    estimator: Estimator,
    model: Transformer,
    params: Tree,
    guide: Views,
    place: Placement,
    rows: int,
) -> Total:
    """Add up what all guide rows say."""
    totals = []
    for ids, bucket in batches_of(guide.longest, np.arange(len(guide.longest)), rows, None):
        (batch,) = place.put_rows(rows, functools.partial(_lay_out, guide, ids, bucket, 0))
        totals.append(_direction_of(estimator, model, params, batch))
    return functools.reduce(Total.__add__, totals)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _direction_of(estimator: Any, model: Transformer, params: Tree, batch: Batch) -> Total:
    return estimator.direction(model, params, batch)


def _check(score_N: np.ndarray, ids: np.ndarray, views: Views, round_: int) -> None:
    """Fail the round: by a part of the scores nobody may be selected."""
    bad = ids[~np.isfinite(score_N)]
    if len(bad):
        names = [f"{views.examples[0][x].id} ({views.examples[0][x].where})" for x in bad[:5]]
        raise ScoringError(
            f"round {round_}: {len(bad)} of {len(ids)} scores are missing or not finite, first "
            f"{', '.join(names)}; look at these rows: is the view empty, or has the model diverged?"
        )
