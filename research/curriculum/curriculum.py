"""Which example comes next: an estimator says what is hard, a policy what follows from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
from jaxtyping import Bool, Float, Int

from research.core.parts import describe, part, require
from research.core.protocols import Estimator, Recorder
from research.curriculum.budget import EqualCompute, EqualSteps
from research.curriculum.ordering import RESCORE, draws, quotas
from research.curriculum.state import NEVER, PoolState


class Policy(Protocol):
    """Who is trained on, and in which order: a part of pure functions of the pool's state."""

    @property
    def fraction(self) -> float:
        """Which part of the pool a round selects."""
        ...

    @property
    def whole_pool(self) -> bool:
        """Whether a round selects everything; source weights then repeat examples."""
        ...

    @property
    def has_rounds(self) -> bool:
        """Whether it means anything to open a second round."""
        ...

    @property
    def uses_scores(self) -> bool:
        """Whether scores decide anything."""
        ...

    @property
    def takes_unscored(self) -> bool:
        """Whether examples may come without a score."""
        ...

    def select(
        self,
        state: PoolState,
        eligible_X: Bool[np.ndarray, " X"],
        quota_G: Int[np.ndarray, " G"],
        seed: int,
    ) -> Int[np.ndarray, " N"]:
        """Give the ids of the round that has just been opened, ascending, each once."""
        ...

    def arrange(
        self,
        state: PoolState,
        ids: Int[np.ndarray, " N"],
        quota_G: Int[np.ndarray, " G"],
        seed: int,
    ) -> Int[np.ndarray, " M"]:
        """Queue a selection for epoch `state.epoch` of the round."""
        ...


@part
class Curriculum:
    """A policy, what it is told, and the four switches that decide whether arms compare fairly.

    Attributes:
      estimator: what is hard; None: nothing is measured. An estimator beside a policy that uses no
        scores is measured for the record alone.
      rounds: how often the pool is scored and selected from; the clock divides its steps by it.
      reset_optimizer_each_round: a fresh optimiser state at the start of every round but the first.
      allow_repeats: whether an example may be trained on more than once in the whole run.
      budget: `EqualSteps()` or `EqualCompute()`, against a control that scores nothing.
      rescore_fraction: which part of the pool is scored again in every later round, the oldest
        scores first; 1: all of it; 0: scores of the first round stay. The first round scores all.
      cool_down_rounds: rounds that an example rests after a round that selected it.
    """

    policy: Policy
    estimator: Estimator | Recorder | None
    rounds: int
    reset_optimizer_each_round: bool
    allow_repeats: bool
    budget: EqualSteps | EqualCompute
    rescore_fraction: float
    cool_down_rounds: int = 0

    def __post_init__(self) -> None:
        policy, name = self.policy, type(self.policy).__name__
        resting = min(self.rounds, self.cool_down_rounds + 1) if self.allow_repeats else self.rounds
        require(
            self,
            (self.rounds >= 1, f"rounds={self.rounds} must be at least 1"),
            (
                self.rounds == 1 or policy.has_rounds,
                f"rounds={self.rounds}, but {name} has none: set rounds=1, or use RoundWiseUniform",
            ),
            (
                self.rounds > 1 or not self.reset_optimizer_each_round,
                "reset_optimizer_each_round=True takes no effect with rounds=1; set it to False",
            ),
            (
                self.estimator is not None or not policy.uses_scores,
                f"{name} orders by scores, but estimator is None; choose one",
            ),
            (
                policy.takes_unscored or not self.records,
                f"{type(self.estimator).__name__} has no score before an example was trained on; "
                f"set {name}.unscored to 'first' or 'last'",
            ),
            (
                0 <= self.rescore_fraction <= 1,
                f"rescore_fraction={self.rescore_fraction}: expected 0 to 1",
            ),
            (
                self.scores_pool or self.rescore_fraction == 0,
                f"rescore_fraction={self.rescore_fraction} takes no effect: nothing is scored by "
                "this estimator; set it to 0.0",
            ),
            (self.cool_down_rounds >= 0, f"cool_down_rounds={self.cool_down_rounds} must be >= 0"),
            (
                self.allow_repeats or self.cool_down_rounds == 0,
                "cool_down_rounds takes no effect where allow_repeats=False; set it to 0",
            ),
            (
                resting * policy.fraction <= 1 + 1e-9,
                f"{resting} rounds in a row select {policy.fraction} of the pool each without "
                "repeating one: lower fraction, rounds or cool_down_rounds, or allow repeats",
            ),
        )

    @property
    def scorer(self) -> Estimator | None:
        """The estimator that is run over the pool when a round opens; None: nothing is run."""
        runs = self.estimator is not None and bool(self.estimator.views)
        return cast(Estimator, self.estimator) if runs else None

    @property
    def scores_pool(self) -> bool:
        """Whether the scorer runs when a round opens."""
        return self.scorer is not None

    @property
    def records(self) -> bool:
        """Whether scores are read from what training itself reports."""
        return self.estimator is not None and not self.estimator.views

    def num_selected(self, num_examples: int) -> int:
        """How many examples a round selects: the fraction of the pool, rounded down, at least 1."""
        return max(1, math.floor(self.policy.fraction * num_examples + 1e-9))

    def rows_to_score(self, num_examples: int, round_: int) -> int:
        """How many rows are scored when a round opens."""
        if not self.scores_pool:
            return 0
        if round_ == 0:
            return num_examples
        return math.ceil(self.rescore_fraction * num_examples - 1e-9)

    def init(
        self,
        num_examples: int,
        group_X: Sequence[int] | np.ndarray | None = None,
        share_G: Sequence[float] | np.ndarray | None = None,
    ) -> PoolState:
        """Start with no scores and no round.

        Args:
          group_X, share_G: source group of each example and each group's share of every
            selection; None: one group, the policy alone decides.

        Raises:
          ValueError: a group is too small for what the rounds take from it.
        """
        groups = np.zeros(num_examples) if group_X is None else group_X
        groups = np.asarray(groups).astype(np.int32)
        shares = np.asarray([1.0] if share_G is None else share_G, np.float64)
        shares = shares / shares.sum()
        self._check_groups(np.bincount(groups, minlength=len(shares)), shares)
        return PoolState(
            score_X=np.full(num_examples, np.nan, np.float32),
            scored_round_X=np.full(num_examples, NEVER, np.int32),
            selected_round_X=np.full(num_examples, NEVER, np.int32),
            times_used_X=np.zeros(num_examples, np.int32),
            group_X=groups,
            share_G=shares,
            queue=np.zeros(0, np.int64),
            cursor=0,
            round=NEVER,
            epoch=0,
            settings=self._settings(),
            scored_rows=0,
            scoring_flops=0.0,
        )

    def ids_to_score(self, state: PoolState, round_: int, seed: int) -> Int[np.ndarray, " N"]:
        """Give the ids to score before round `round_` opens, ascending.

        The first round scores all; later ones `rescore_fraction` of the pool, the oldest scores
        first (an example that has none is the oldest), ties drawn.
        """
        self._check_settings(state)
        count = self.rows_to_score(state.num_examples, round_)
        draw_X = draws(state.num_examples, seed, RESCORE, round_)
        return np.sort(np.lexsort((draw_X, state.scored_round_X))[:count])

    def rescore(
        self,
        state: PoolState,
        ids: Int[np.ndarray, " N"],
        scores: Float[np.ndarray, " N"],
        round_: int,
        flops: float = 0.0,
    ) -> PoolState:
        """Take new scores over, with their age and what they cost.

        Raises:
          ValueError: a score is not finite, or ids and scores do not match.
        """
        self._check_settings(state)
        ids, scores = np.asarray(ids), np.asarray(scores, np.float32)
        if ids.shape != scores.shape or len(np.unique(ids)) != len(ids):
            raise ValueError(f"{len(ids)} ids (each once) need as many scores, got {len(scores)}")
        if not np.isfinite(scores).all():
            bad = ids[~np.isfinite(scores)]
            raise ValueError(f"round {round_}: scores of ids {bad[:5].tolist()} are not finite")
        return dataclasses.replace(
            state,
            score_X=_with(state.score_X, ids, scores),
            scored_round_X=_with(state.scored_round_X, ids, round_),
            scored_rows=state.scored_rows + len(ids),
            scoring_flops=state.scoring_flops + float(flops),
        )

    def open_round(self, state: PoolState, round_: int, seed: int) -> PoolState:
        """Select the round's examples and queue them.

        Raises:
          ValueError: rounds are opened out of order, or an example that needs a score has none.
        """
        self._check_settings(state)
        if round_ != state.round + 1:
            raise ValueError(f"round {round_} cannot follow round {state.round}")
        state = dataclasses.replace(state, round=round_, epoch=0)
        ids = self.policy.select(state, self._eligible(state), self._quotas(state), seed)
        selected_round_X = _with(state.selected_round_X, ids, round_)
        state = dataclasses.replace(state, selected_round_X=selected_round_X)
        return dataclasses.replace(state, queue=self._epoch(state, seed), cursor=0)

    def plan(
        self, state: PoolState, count: int, seed: int
    ) -> tuple[Int[np.ndarray, " count"], PoolState]:
        """Hand out the next `count` ids; where the queue ends, the round's next epoch follows.

        Where repeats are forbidden there is no next epoch: then fewer come, when the selection has
        run out.

        Raises:
          ValueError: no round is open, or repeats are forbidden and nothing is left.
        """
        if state.round == NEVER:
            raise ValueError("no round is open; call open_round first")
        while len(state.waiting()) < count and self.allow_repeats:
            state = dataclasses.replace(state, epoch=state.epoch + 1)
            queue = np.concatenate([state.waiting(), self._epoch(state, seed)])
            state = dataclasses.replace(state, queue=queue, cursor=0)
        ids = state.waiting()[:count].copy()
        if count and not len(ids):
            raise ValueError(
                f"round {state.round} has handed out its {len(state.queue)} examples and "
                "allow_repeats=False; make fewer steps a round, select more, or allow repeats"
            )
        used_X = state.times_used_X + np.bincount(ids, minlength=state.num_examples)
        return ids, dataclasses.replace(
            state, cursor=state.cursor + len(ids), times_used_X=used_X.astype(np.int32)
        )

    def put_back(self, state: PoolState, ids: Sequence[int] | np.ndarray) -> PoolState:
        """Return ids of the last plan that found no place: they come first the next time.

        Raises:
          ValueError: these ids were not handed out by the last plan.
        """
        ids = np.asarray(ids, np.int64)
        handed_out = state.queue[: state.cursor]
        if not np.isin(ids, handed_out).all():
            raise ValueError(
                f"ids {np.setdiff1d(ids, handed_out)[:5].tolist()} were not handed out"
            )
        used_X = state.times_used_X - np.bincount(ids, minlength=state.num_examples)
        queue = state.queue.copy()
        queue[state.cursor - len(ids) : state.cursor] = ids
        return dataclasses.replace(
            state,
            queue=queue,
            cursor=state.cursor - len(ids),
            times_used_X=used_X.astype(np.int32),
        )

    def observe(self, state: PoolState, rows: Mapping[str, Any]) -> PoolState:
        """Take over what training reported of each example, if that is what the estimator reads.

        An example seen several times keeps its last value; values that are not finite belong to
        withheld updates and say nothing.
        """
        if not self.records:
            return state
        recorder: Any = self.estimator
        ids, signal = recorder.read({name: np.asarray(rows[name]) for name in rows})
        known = (ids >= 0) & np.isfinite(signal)
        ids, signal = ids[known], signal[known].astype(np.float32)
        last = len(ids) - 1 - np.unique(ids[::-1], return_index=True)[1]
        ids, signal = ids[last], signal[last]
        return dataclasses.replace(
            state,
            score_X=_with(state.score_X, ids, signal),
            scored_round_X=_with(state.scored_round_X, ids, state.round),
        )

    def _epoch(self, state: PoolState, seed: int) -> np.ndarray:
        quota_G = self._quotas(state)
        return self.policy.arrange(state, state.selection(), quota_G, seed).astype(np.int64)

    def _quotas(self, state: PoolState) -> np.ndarray:
        return quotas(self.num_selected(state.num_examples), state.share_G)

    def _eligible(self, state: PoolState) -> np.ndarray:
        """Whoever was never trained on where repeats are forbidden; else whoever does not rest."""
        if not self.allow_repeats:
            return state.times_used_X == 0
        rested = state.selected_round_X < state.round - self.cool_down_rounds
        return rested | (state.selected_round_X == NEVER)

    def _check_groups(self, size_G: np.ndarray, share_G: np.ndarray) -> None:
        """Refuse groups that cannot fill their quota in every round without an early repeat."""
        quota_G = quotas(self.num_selected(int(size_G.sum())), share_G)
        resting = min(self.rounds, self.cool_down_rounds + 1) if self.allow_repeats else self.rounds
        repeats = self.policy.whole_pool and self.allow_repeats
        short = np.flatnonzero(
            (size_G == 0) & (quota_G > 0) if repeats else resting * quota_G > size_G
        )
        if len(size_G) != len(share_G) or len(short):
            raise ValueError(
                f"groups of {size_G.tolist()} examples, shares {share_G.tolist()}, cannot give "
                f"{quota_G.tolist()} a round for {resting} rounds without a repeat; change the "
                "weights, the fraction, the rounds or the cool-down"
            )

    def _settings(self) -> np.ndarray:
        text = json.dumps(describe(self.estimator), sort_keys=True)
        return np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], np.uint8)

    def _check_settings(self, state: PoolState) -> None:
        if not np.array_equal(state.settings, self._settings()):
            raise ValueError(
                "the scores in this state were made by an estimator with other settings; restore "
                "with the estimator of the run, or start a new one"
            )


def _with(values_X: np.ndarray, ids: np.ndarray, new: Any) -> np.ndarray:
    """Copy `values_X` with the entries `ids` replaced."""
    values_X = values_X.copy()
    values_X[ids] = new
    return values_X
