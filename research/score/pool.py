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
READINGS = 2  # of a program that is measured; the faster one counts
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
      prefill_s: of it, what the host waited while devices read views. Where they also generate, the
        waiting is divided by `Gauge`.
      decode_s: of it, what the host waited while they generated.
      reshard_s: of it, what moving the weights took.
    """

    rows: int = 0
    prefill_tokens: int = 0
    generated_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    reshard_s: float = 0.0

    @property
    def host_s(self) -> float:
        """Seconds in which the host worked: laying out, compiling, dispatching, collecting."""
        return self.seconds - self.prefill_s - self.decode_s - self.reshard_s

    def __str__(self) -> str:
        parts = {
            "prefill": self.prefill_s,
            "decode": self.decode_s,
            "re-shard": self.reshard_s,
            "host": self.host_s,
        }
        shares = (f"{name} {s / self.seconds:.0%}" for name, s in parts.items() if s > 0)
        return f"{self.rows:,} rows in {self.seconds:,.1f} s: {', '.join(shares)}"

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of `ids_N`, in the same order, and what they took."""

    ids_N: Int[np.ndarray, " N"]
    score_N: Float[np.ndarray, " N"]
    cost: Cost


class Gauge:
    """Seconds in which devices read the prompt of a row, measured once for each program.

    Reading and generating are one program. It is run again over rows without ids, which are read
    and not continued: nothing is compiled for it.
    """

    def __init__(self) -> None:
        self._row_s: dict[Any, float] = {}

    def knows(self, program: Any) -> bool:
        """Whether this program was measured."""
        return program in self._row_s

    def measure(self, program: Any, rows: int, read: Callable[[], Array]) -> float:
        """Time a program that reads `rows` prompts, on idle devices; give the seconds spent."""
        taken = []
        for _ in range(READINGS):
            begun = time.perf_counter()
            jax.block_until_ready(read())
            taken.append(time.perf_counter() - begun)
        self._row_s[program] = min(taken) / rows
        return sum(taken)

    def seconds(self, program: Any, rows: int) -> float:
        """Give what reading `rows` prompts takes."""
        return self._row_s[program] * rows


class Asked:
    """Scores that were asked for: batches on the devices, and what has come back of them.

    Attributes:
      cost: what they take, but for the time.
      worked_s: seconds in which the host asked.
      waited_s: seconds in which it waited.
      reading_s: seconds in which devices read prompts.
    """

    def __init__(
        self,
        estimator: Estimator,
        views: Views,
        ids: Int[np.ndarray, " N"],
        round_: int,
        watch: Watch | None,
    ) -> None:
        self.estimator, self.views, self.ids, self.round = estimator, views, ids, round_
        self.cost = Cost()
        self.worked_s = self.waited_s = self.reading_s = 0.0
        self._score_X = np.full(len(views.longest), np.nan, np.float32)
        self._pending: list[tuple[np.ndarray, Array]] = []
        self._watch, self._done = watch, 0

    def add(self, batch_ids: Int[np.ndarray, " B"], score_B: Array) -> None:
        """Note a batch that is on its way."""
        self._pending.append((batch_ids, score_B))

    def collect(self, most: int = 0) -> None:
        """Wait until no more than `most` batches are on their way."""
        begun = time.perf_counter()
        while len(self._pending) > most:
            batch_ids, score_B = self._pending.pop(0)
            self._score_X[batch_ids] = np.asarray(score_B)[: len(batch_ids)]
            self._done += len(batch_ids)
            if self._watch is not None:
                self._watch(self._done, len(self.ids))
        self.waited_s += time.perf_counter() - begun

    def read_more(self, seconds: float) -> None:
        """Note that prompts were read once more, to measure what that takes."""
        self.waited_s += seconds
        self.reading_s += seconds

    def finish(self) -> Scored:
        """Wait for all scores.

        Raises:
          ScoringError: one is missing or not finite.
        """
        self.collect()
        score_N = self._score_X[self.ids]
        _check(score_N, self.ids, self.views, self.round)
        return Scored(ids_N=self.ids, score_N=score_N, cost=self.cost + self._seconds())

    def _seconds(self) -> Cost:
        """Give the time that was spent, by what it was for."""
        total, waited = self.worked_s + self.waited_s, self.waited_s
        if self.estimator.new_tokens is None:
            return Cost(seconds=total)
        read = min(waited, self.reading_s) if self.estimator.new_tokens > 1 else waited
        return Cost(seconds=total, prefill_s=read, decode_s=waited - read)


def ask_pool(
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
    gauge: Gauge | None = None,
    in_flight: int | None = IN_FLIGHT,
) -> Asked:
    """Begin to score `ids`, one example a row, unpacked; `finish` of what it gives waits for them.

    Rows are sorted by length, the longest first, and cut into batches of one size; each batch is
    padded to a bucket, so there are at most as many programs as buckets, in all rounds together.
    The last batch is filled up with empty rows. Where answers are generated, rows wait in line
    (`as_it_decodes`), and first tokens that the whole pool shares are read once.

    Once this has returned, the weights may be given away to another program: what reads them here
    was queued before it.

    Args:
      params: the tree the model is applied to: adapters joined, dropout off.
      views: `render_views(estimator, pool)`.
      key: of the scoring stream; a row's own key is fold_in(fold_in(key, round), id).
      rows_per_batch: rounded up to a multiple of the row shards of `place`.
      buckets: row lengths to pad to; None: powers of two.
      watch: called with (rows done, rows in all) as batches come back.
      guide: the rows that a guided estimator compares with.
      first_id: where the views begin in a pool of which they are a part; keys are by its ids.
      gauge: what is known of these programs; None: they are measured anew.
      in_flight: batches that may be on their way while the host lays out the next; None: all.

    Raises:
      ScoringError: by `finish`: a score is missing or not finite.
      ValueError: an id comes twice, or a row is longer than every bucket.

    Law: a score depends on params, view, key, round and id; not on batch-mates, bucket, order or
    device count, within float noise.
    """
    begun, gauge = time.perf_counter(), gauge or Gauge()
    ids = np.asarray(ids, np.int64)
    if len(np.unique(ids)) != len(ids):
        raise ValueError(f"{len(ids) - len(np.unique(ids))} ids come twice; score each once")
    if isinstance(estimator, Differentiating):
        place = with_whole_rows(place)
        model = dataclasses.replace(model, place=place)
    rows = place.divisible(rows_per_batch)
    model, waiting = as_it_decodes(estimator, model, views, rows)
    against = () if guide is None else (_direction(estimator, model, params, guide, place, rows),)
    asked = Asked(estimator, views, ids, round_, watch)

    def run(batch_ids: np.ndarray, bucket: int, names: np.ndarray) -> Array:
        shown = functools.partial(_lay_out, views, batch_ids, bucket, names)
        batches = place.put_rows(waiting, shown)
        return score_batch(estimator, model, place, stop_ids, params, batches, key, round_, against)

    for batch_ids, bucket in batches_of(views.longest, ids, waiting, buckets):
        asked.add(batch_ids, run(batch_ids, bucket, batch_ids + first_id))
        if (estimator.new_tokens or 0) > 1:
            program = (estimator, model, bucket, waiting)
            if not gauge.knows(program):
                asked.collect()
                nameless = functools.partial(run, batch_ids, bucket, np.full_like(batch_ids, -1))
                asked.read_more(gauge.measure(program, len(batch_ids), nameless))
            asked.reading_s += gauge.seconds(program, len(batch_ids))
        if in_flight is not None:
            asked.collect(in_flight)
    asked.cost = Cost(
        rows=len(ids),
        prefill_tokens=int(views.counts[:, ids].sum()),
        generated_tokens=(estimator.new_tokens or 0) * int((views.counts[:, ids] > 0).sum()),
        flops=float(scoring_flops(estimator, model.arch, params, views)[ids].sum())
        + guide_flops(estimator, model.arch, params, guide),
    )
    asked.worked_s = time.perf_counter() - begun - asked.waited_s
    return asked


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
    views: Views,
    ids: Int[np.ndarray, " N"],
    bucket: int,
    names: Int[np.ndarray, " N"],
    part: slice,
) -> tuple:
    """Lay out a range of a batch's rows in each view, with the ids that it is to have."""
    return tuple(
        single_rows([view[x] for x in ids], names.tolist(), bucket, part) for view in views.examples
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
        (batch,) = place.put_rows(rows, functools.partial(_lay_out, guide, ids, bucket, ids))
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
