"""The measurements of a curriculum, each with the model and the rows that it needs."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from jaxtyping import Array, Float, Int

from research.core.layout import Placement
from research.core.protocols import Delegating, Estimator, Guided, Stated, Tree
from research.curriculum.curriculum import Curriculum
from research.data.pool import Pool, open_pool
from research.data.tokenizer import open_tokenizer
from research.huggingface.folder import load, match, open_folder
from research.huggingface.open import tokenizer_folder
from research.huggingface.pretrained import Resolved
from research.huggingface.stops import stop_ids
from research.models.transformer import Transformer
from research.score.pool import IN_FLIGHT, Asked, Cost, Gauge, Watch, ask_pool
from research.score.views import Views, guide_flops, render_views, scoring_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """One measurement of a curriculum.

    Attributes:
      estimator: what is computed; None where the rows state the signal.
      model: as it scores.
      weights: of another model, read when it is asked; None: those of the run, as they are then.
      views: the pool as that model reads it.
      guide: the rows that a guided estimator compares with.
      stop_ids: tokens that end an answer of that model.
      stated_X: what the rows state.
    """

    estimator: Estimator | None = None
    model: Transformer | None = None
    weights: Resolved | None = None
    views: Views | None = None
    guide: Views | None = None
    stop_ids: tuple[int, ...] = ()
    stated_X: Float[np.ndarray, " X"] | None = None

    @property
    def is_static(self) -> bool:
        """Whether its values stay those of the first round."""
        return self.stated_X is not None or self.weights is not None

    def flops(self, params: Tree) -> tuple[Float[np.ndarray, " X"] | float, float]:
        """Give what (each example, the guide) costs a scoring, analytically.

        Args:
          params: of the run, perhaps abstract.
        """
        if self.estimator is None or self.model is None or self.views is None:
            return 0.0, 0.0
        tree = params if self.weights is None else self.model.abstract()
        arch = self.model.arch
        return (
            scoring_flops(self.estimator, arch, tree, self.views),
            guide_flops(self.estimator, arch, tree, self.guide),
        )


def open_terms(
    curriculum: Curriculum, pool: Pool, model: Transformer, stops: tuple[int, ...]
) -> tuple[Term, ...]:
    """Open what every measurement of a curriculum needs; no weights are read.

    Args:
      model: of the run, as it scores.
      stops: its stop tokens.

    Raises:
      ValueError, FileNotFoundError: a row states nothing, or another model cannot be asked.
    """
    return tuple(_open(measure, pool, model, stops) for measure in curriculum.measured)


def _open(measure: Any, pool: Pool, model: Transformer, stops: tuple[int, ...]) -> Term:
    if isinstance(measure, Stated):
        return Term(stated_X=_stated(measure, pool))
    if not isinstance(measure, Delegating):
        return _asked(measure, pool, model, None, stops)
    weights = measure.model.resolve()
    other = Transformer(weights.architecture, model.place, model.compute)
    other.require_place()
    match(open_folder(weights.folder), other)
    read = pool_of(pool, weights, same=measure.same_tokens)
    eos = None if read.tokenizer is None else read.tokenizer.eos_id
    ends = stop_ids(weights.folder, eos)
    return _asked(measure.estimator, read, other.for_scoring(), weights, ends)


def _asked(
    measure: Estimator | Guided,
    pool: Pool,
    model: Transformer,
    weights: Resolved | None,
    ends: tuple[int, ...],
) -> Term:
    estimator, guide = cast(Estimator, measure), None
    if isinstance(measure, Guided):
        size = model.arch.vocab_size
        guide = render_views(estimator, open_pool(measure.guide, pool.tokenizer, vocab_size=size))
    return Term(
        estimator=estimator,
        model=model,
        weights=weights,
        views=render_views(estimator, pool),
        guide=guide,
        stop_ids=ends,
    )


def pool_of(pool: Pool, weights: Resolved, *, same: bool) -> Pool:
    """Show a pool in the tokens of another model.

    Args:
      same: refuse a model that reads other tokens than the pool's.

    Raises:
      ValueError: it does, or it has no such token or position.
    """
    arch, folder = weights.architecture, tokenizer_folder(weights.folder)
    other = pool
    if pool.tokenizer is not None and folder is not None:
        other = pool.read_by(open_tokenizer(str(folder)))
    pairs = zip(pool.examples, other.examples, strict=True)
    strange = [a for a, b in pairs if not np.array_equal(a.tokens, b.tokens)] if same else []
    if strange:
        raise ValueError(
            f"{weights.folder}: {len(strange)} of {len(pool)} rows have other tokens there, first "
            f"{strange[0].where}; losses of the two models are of different tokens. Choose a "
            "reference with the same tokenizer and chat template"
        )
    most = max(int(example.tokens.max(initial=0)) for example in other.examples)
    if most >= arch.vocab_size:
        raise ValueError(f"{weights.folder} has {arch.vocab_size} tokens, the rows token {most}")
    other.require_fit(arch.longest_text)
    return other


def _stated(measure: Stated, pool: Pool) -> Float[np.ndarray, " X"]:
    """Read what the rows say of themselves."""
    values = []
    for example in pool.examples:
        try:
            values.append(measure.of_row(example.row))
        except ValueError as error:
            raise ValueError(f"{example.where}: {error}") from error
    return np.asarray(values, np.float32)


class AskedTerms:
    """Measurements that were asked for, some of them of devices that are still at it."""

    def __init__(self, paid: Cost) -> None:
        self._paid = paid
        self._finish: list[Callable[[], tuple[np.ndarray, Cost]]] = []
        self._asked: list[Asked] = []

    def know(self, signal_N: Float[np.ndarray, " N"]) -> None:
        """Note a measurement that needs nobody."""
        self._finish.append(lambda: (signal_N, Cost()))

    def ask(self, asked: Asked) -> None:
        """Note one that is on its way."""

        def give() -> tuple[np.ndarray, Cost]:
            scored = asked.finish()
            return scored.score_N, scored.cost

        self._asked.append(asked)
        self._finish.append(give)

    def wait(self) -> float:
        """Wait for all of them; give the seconds that this took."""
        begun = time.perf_counter()
        for asked in self._asked:
            asked.collect()
        return time.perf_counter() - begun

    def finish(self) -> tuple[Float[np.ndarray, "Y N"], Cost]:
        """Give (a row for each term, what they took).

        Raises:
          ScoringError: a signal is missing or not finite.
        """
        signals, costs = zip(*(give() for give in self._finish), strict=True)
        return np.stack(signals), functools.reduce(Cost.__add__, costs, self._paid)


def ask_terms(
    terms: tuple[Term, ...],
    before_YX: Float[np.ndarray, "Y X"],
    params: Tree,
    ids: Int[np.ndarray, " N"],
    *,
    round_: int,
    key: Array,
    place: Placement,
    rows_per_batch: int,
    gauge: Gauge,
    in_flight: int | None = IN_FLIGHT,
    watch: Watch | None = None,
    first_id: int = 0,
    paid: Cost | None = None,
) -> AskedTerms:
    """Begin to measure some examples in every term; the weights may be given away meanwhile.

    Args:
      before_YX: what each term said before; a static one that spoke is not asked again.
      params: of the run: adapters joined, dropout off.
      gauge: what is known of the terms' programs.
      in_flight: batches that may be on their way while the next are laid out; None: all of them,
        and all terms together.
      first_id: where the terms' pool begins in one of which it is a part.
      paid: what was spent on it already.

    Raises:
      ScoringError: by `finish`: a signal is missing or not finite.
    """
    together = AskedTerms(paid or Cost())
    for term, before_X in zip(terms, before_YX, strict=True):
        if term.stated_X is not None:
            together.know(term.stated_X[ids])
            continue
        if term.is_static and np.isfinite(before_X[ids]).all():
            together.know(before_X[ids])
            continue
        assert term.estimator is not None
        assert term.model is not None
        assert term.views is not None
        own = params if term.weights is None else load(term.weights.folder, term.model)
        asked = ask_pool(
            term.estimator,
            term.model,
            own,
            term.views,
            ids,
            round_=round_,
            key=key,
            place=place,
            stop_ids=term.stop_ids,
            rows_per_batch=rows_per_batch,
            watch=watch,
            guide=term.guide,
            first_id=first_id,
            gauge=gauge,
            in_flight=in_flight,
        )
        if in_flight is not None:
            asked.collect()
        together.ask(asked)
    return together
