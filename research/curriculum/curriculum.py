"""Which example comes next: an estimator says what is hard, a policy what follows from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from research.core.parts import describe, part, require
from research.core.protocols import (
    Combination,
    Delegating,
    Estimator,
    Guided,
    Recorder,
    Stated,
)
from research.curriculum.budget import EqualCompute, EqualSteps
from research.curriculum.estimators.free import Free
from research.curriculum.ordering import RESCORE, draws, quotas
from research.curriculum.state import NEVER, PoolState, replaced
from research.curriculum.terms import terms_of, value_of

Measure = Estimator | Guided | Recorder | Stated | Delegating | Combination


class Policy(Protocol):
    """Who is trained on, and in which order: a part of pure functions of the pool's state."""

    @property
    def fraction(self) -> float:
        """Which part of the pool a round selects, at most."""
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


@runtime_checkable
class Adaptive(Protocol):
    """A policy that learns from what training reports; its memory is in every checkpoint."""

    def begin(self) -> Float[np.ndarray, "*memory"]:
        """Give the memory before the first round."""
        ...

    def learn(
        self, state: PoolState, ids: Int[np.ndarray, " N"], loss_nats: Float[np.ndarray, " N"]
    ) -> Float[np.ndarray, "*memory"]:
        """Take in the mean loss of each example of a cycle, as it was when training saw it."""
        ...

    def reflect(self, state: PoolState) -> Float[np.ndarray, "*memory"]:
        """Close the round before, when `state.round` has just been opened."""
        ...


@runtime_checkable
class Mixing(Protocol):
    """A policy that moves the shares of the source groups from round to round."""

    def mix(self, state: PoolState) -> Float[np.ndarray, " G"]:
        """Give the shares of the round that has just been opened; they sum to 1."""
        ...


@part
class Curriculum:
    """A policy, what it is told, and the four switches that decide whether arms compare fairly.

    Attributes:
      estimator: what is hard: a measurement, or an expression of several
        (`research/curriculum/expressions.py`); None: nothing is measured. An estimator beside a
        policy that uses no scores is measured for the record alone.
      rounds: how often the pool is scored and selected from; the clock divides its steps by it.
      reset_optimizer_each_round: a fresh optimiser state at the start of every round but the first.
      allow_repeats: whether an example may be trained on more than once in the whole run.
      budget: `EqualSteps()` or `EqualCompute()`, against a control that scores nothing.
      rescore_fraction: which part of the pool is scored again in every later round, the oldest
        scores first; 1: all of it; 0: scores of the first round stay. The first round scores all.
      cool_down_rounds: rounds that an example rests after a round that selected it.
      score_ahead: whether scores for the next round are taken while this one trains, a part of them
        as each cycle begins, with the weights of that moment; then only the first round begins with
        a scoring. Scores are up to a round old (`PoolState.scored_step_X`).
    """

    policy: Policy
    estimator: Measure | None
    rounds: int
    reset_optimizer_each_round: bool
    allow_repeats: bool
    budget: EqualSteps | EqualCompute
    rescore_fraction: float
    cool_down_rounds: int = 0
    score_ahead: bool = False

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
                self.estimator is None or bool(self.terms),
                f"estimator={self.estimator} measures nothing; put an estimator into it",
            ),
            (
                not policy.uses_scores or policy.takes_unscored or not self.recorders,
                f"{self._names(self.recorders)} has no score before an example was trained on; "
                f"set {name}.unscored to 'first' or 'last'",
            ),
            (
                0 <= self.rescore_fraction <= 1,
                f"rescore_fraction={self.rescore_fraction}: expected 0 to 1",
            ),
            (
                bool(self.scorers) or self.rescore_fraction == 0,
                f"rescore_fraction={self.rescore_fraction} takes no effect: nothing that the model "
                "in training could say anew is scored by this estimator; set it to 0.0",
            ),
            (
                self.rescore_fraction == 0 or not isinstance(policy, Adaptive),
                f"rescore_fraction={self.rescore_fraction}: the arms of {name} are levels of the "
                "first scores, so scores are taken once; set it to 0.0",
            ),
            (
                not self.score_ahead or (self.rounds > 1 and self.rescore_fraction > 0),
                f"score_ahead=True takes no effect with rounds={self.rounds} and rescore_fraction="
                f"{self.rescore_fraction}: no later round scores anything; set it to False",
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
    def terms(self) -> tuple[Any, ...]:
        """The measurements that the estimator is made of, each once."""
        return terms_of(self.estimator)

    @property
    def measured(self) -> tuple[Any, ...]:
        """Those of them that are run or read when a round opens, in order."""
        return tuple(term for term in self.terms if not isinstance(term, Recorder))

    @property
    def recorders(self) -> tuple[Recorder, ...]:
        """Those that read what training itself reports."""
        return tuple(term for term in self.terms if isinstance(term, Recorder))

    @property
    def scorers(self) -> tuple[Estimator, ...]:
        """Those that the model in training computes, which may so change in every round."""
        return tuple(term for term in self.measured if not isinstance(term, (Delegating, Stated)))

    @property
    def scorer(self) -> Estimator | None:
        """The costliest of `scorers`, which generates most; None: there is none."""
        return max(self.scorers, key=lambda term: term.new_tokens or 0, default=None)

    @property
    def scores_pool(self) -> bool:
        """Whether anything is run or read when a round opens."""
        return bool(self.measured)

    @property
    def records(self) -> bool:
        """Whether scores, or a part of them, are read from what training itself reports."""
        return bool(self.recorders)

    def num_selected(self, num_examples: int) -> int:
        """How many examples a round selects, at most: the fraction of the pool, rounded down, but
        at least 1."""
        return max(1, math.floor(self.policy.fraction * num_examples + 1e-9))

    def rows_to_score(self, num_examples: int, round_: int) -> int:
        """How many rows are scored when a round opens."""
        if round_ == 0:
            return num_examples if self.scores_pool else 0
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
          ValueError: a group is too small for what the rounds take from it, or there is one group
            and a policy that divides rounds among groups.
        """
        groups = np.zeros(num_examples) if group_X is None else group_X
        groups = np.asarray(groups).astype(np.int32)
        shares = np.asarray([1.0] if share_G is None else share_G, np.float64)
        shares = shares / shares.sum()
        if isinstance(self.policy, Mixing) and len(shares) < 2:
            raise ValueError(
                f"{type(self.policy).__name__} moves the shares of weighted sources, and there is "
                "one group; give data.sources as Weighted(source=..., weight=...), two at least"
            )
        self._check_groups(np.bincount(groups, minlength=len(shares)), shares)
        unknown_YX = np.full((max(1, len(self.terms)), num_examples), np.nan, np.float32)
        never_X = np.full(num_examples, NEVER, np.int32)
        return PoolState(
            score_X=np.full(num_examples, np.nan, np.float32),
            signal_YX=unknown_YX,
            scored_round_X=never_X,
            scored_step_X=never_X,
            ahead_YX=unknown_YX,
            ahead_step_X=never_X,
            selected_round_X=never_X,
            times_used_X=np.zeros(num_examples, np.int32),
            group_X=groups,
            share_G=shares,
            memory=self.policy.begin() if isinstance(self.policy, Adaptive) else np.zeros(1),
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

    def measurements(self, state: PoolState) -> Float[np.ndarray, "measured X"]:
        """Give the last value of each of `measured`."""
        return state.signal_YX[[self.terms.index(term) for term in self.measured]]

    def rescore(
        self,
        state: PoolState,
        ids: Int[np.ndarray, " N"],
        signals: Float[np.ndarray, "*measured N"],
        round_: int,
        flops: float = 0.0,
        *,
        step: int | Int[np.ndarray, " N"] = 0,
    ) -> PoolState:
        """Take new measurements over, with their age and what they cost.

        Args:
          signals: a row for each of `measured`; for a single one, the row itself.
          step: how many updates the weights had made that measured them.

        Raises:
          ValueError: a signal is not finite, or ids and signals do not match.
        """
        self._check_settings(state)
        if not len(ids):
            return state
        ids, signal_YN = self.checked(ids, signals, round_)
        return dataclasses.replace(
            self._signalled(state, self.measured, ids, signal_YN),
            scored_round_X=replaced(state.scored_round_X, ids, round_),
            scored_step_X=replaced(state.scored_step_X, ids, step),
            scored_rows=state.scored_rows + len(ids),
            scoring_flops=state.scoring_flops + float(flops),
        )

    def checked(
        self, ids: Int[np.ndarray, " N"], signals: Float[np.ndarray, "*measured N"], round_: int
    ) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, "measured N"]]:
        """Give ids and a row for each of `measured`.

        Raises:
          ValueError: a signal is not finite, or ids and signals do not match.
        """
        ids, signal_YN = np.asarray(ids), np.atleast_2d(np.asarray(signals, np.float32))
        shape = (len(self.measured), len(ids))
        if signal_YN.shape != shape or len(np.unique(ids)) != len(ids):
            raise ValueError(
                f"{len(ids)} ids (each once) and {shape[0]} measurements need as many scores, got "
                f"{signal_YN.shape}"
            )
        if not np.isfinite(signal_YN).all():
            bad = ids[~np.isfinite(signal_YN).all(axis=0)]
            raise ValueError(f"round {round_}: scores of ids {bad[:5].tolist()} are not finite")
        return ids, signal_YN

    def open_round(self, state: PoolState, round_: int, seed: int) -> PoolState:
        """Move what the policy learned, select the round's examples and queue them.

        Raises:
          ValueError: rounds are opened out of order, an example that needs a score has none, or
            the round selects nobody.
        """
        self._check_settings(state)
        if round_ != state.round + 1:
            raise ValueError(f"round {round_} cannot follow round {state.round}")
        state = dataclasses.replace(state, round=round_, epoch=0)
        if round_ > 0 and isinstance(self.policy, Adaptive):
            state = dataclasses.replace(state, memory=self.policy.reflect(state))
        if round_ > 0 and isinstance(self.policy, Mixing):
            state = dataclasses.replace(state, share_G=self.policy.mix(state))
        eligible_X = self._eligible(state)
        ids = self.policy.select(state, eligible_X, self._quotas(state), seed)
        if not len(ids):
            raise ValueError(
                f"round {round_} selects none of the {np.count_nonzero(eligible_X)} examples that "
                "may be trained on: raise fraction, or lower cool_down_rounds"
            )
        selected_round_X = replaced(state.selected_round_X, ids, round_)
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
        """Take over what training reported of each example, where estimator or policy read it.

        An example seen several times keeps its last value; values that are not finite belong to
        withheld updates and say nothing.
        """
        rows = {name: np.asarray(rows[name]) for name in rows}
        for recorder in self.recorders:
            ids, signal = _known(*recorder.read(rows))
            last = len(ids) - 1 - np.unique(ids[::-1], return_index=True)[1]
            ids, signal = ids[last], signal[last].astype(np.float32)
            state = self._signalled(state, (recorder,), ids, signal[None])
            if not self.measured:
                held = replaced(state.scored_round_X, ids, state.round)
                state = dataclasses.replace(state, scored_round_X=held)
        if isinstance(self.policy, Adaptive):
            memory = self.policy.learn(state, *_known(*Free(of="loss").read(rows)))
            state = dataclasses.replace(state, memory=memory)
        return state

    def _signalled(
        self,
        state: PoolState,
        terms: Sequence[Any],
        ids: Int[np.ndarray, " N"],
        signal_YN: Float[np.ndarray, "Y N"],
    ) -> PoolState:
        """Write down some measurements of some examples; give the scores that follow for all."""
        signal_YX = state.signal_YX.copy()
        for term, signal_N in zip(terms, signal_YN, strict=True):
            signal_YX[self.terms.index(term), ids] = signal_N
        by_term = dict(zip(self.terms, signal_YX, strict=True))
        score_X = value_of(self.estimator, by_term).astype(np.float32)
        return dataclasses.replace(state, signal_YX=signal_YX, score_X=score_X)

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

    @staticmethod
    def _names(terms: Sequence[Any]) -> str:
        return ", ".join(type(term).__name__ for term in terms)

    def _settings(self) -> np.ndarray:
        text = json.dumps(describe(self.estimator), sort_keys=True)
        return np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], np.uint8)

    def _check_settings(self, state: PoolState) -> None:
        if not np.array_equal(state.settings, self._settings()):
            raise ValueError(
                "the scores in this state were made by an estimator with other settings; restore "
                "with the estimator of the run, or start a new one"
            )


def _known(
    ids: Int[np.ndarray, " N"], signal: Float[np.ndarray, " N"]
) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Keep what belongs to an example and is finite."""
    known = (ids >= 0) & np.isfinite(signal)
    return ids[known], signal[known]
