"""Easy first, with a competence that grows: the pool opens from its easy end."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Int

from research.core.parts import part, require
from research.curriculum.ordering import (
    ARRANGE,
    SELECT,
    draws,
    first_of_groups,
    fraction_check,
    ranked,
    shuffled,
)
from research.curriculum.state import PoolState


@part
class Competence:
    """Draw at random from the easiest c(t) of the pool, t the round:

    c(t) = min(1, sqrt(t (1 - c0^2) / T + c0^2))

    A round hands out `fraction` of the pool, or all that is open where that is less.

    Attributes:
      initial: c0, the competence of the first round.
      rounds_to_full: T, after so many rounds the whole pool is open.

    Source: Platanios et al. 2019, arXiv 1903.09848, the square-root form; there t counts steps,
    here rounds, since the pool is scored once a round.
    Reach: every id from round T on.
    Law: c(0) = c0, c(T) = 1, c never falls; no selected score is above the c(t) quantile.
    """

    fraction: float
    initial: float
    rounds_to_full: int

    whole_pool = False
    has_rounds = True
    uses_scores = True
    takes_unscored = False

    def __post_init__(self) -> None:
        require(
            self,
            fraction_check(self.fraction),
            (0 < self.initial <= 1, f"initial={self.initial}: expected 0 < initial <= 1"),
            (
                self.rounds_to_full >= 1,
                f"rounds_to_full={self.rounds_to_full} must be at least 1; if all is open at once, "
                "say RoundWiseUniform",
            ),
        )

    def competence(self, round_: int) -> float:
        """Give c(t), the part of the pool that is open in a round."""
        square = self.initial**2
        return min(1.0, math.sqrt(round_ * (1.0 - square) / self.rounds_to_full + square))

    def select(
        self,
        state: PoolState,
        eligible_X: Bool[np.ndarray, " X"],
        quota_G: Int[np.ndarray, " G"],
        seed: int,
    ) -> Int[np.ndarray, " N"]:
        """Draw the quota of each group from its easiest part."""
        draw_X = draws(state.num_examples, seed, SELECT, state.round)
        everyone = np.arange(state.num_examples)
        ids = ranked(everyone, state.score_X, draw_X, descending=False, unscored="error")
        size_G = np.bincount(state.group_X, minlength=len(quota_G))
        open_G = np.ceil(self.competence(state.round) * size_G - 1e-9).astype(np.int64)
        ids = first_of_groups(ids, state.group_X, open_G)
        ids = ids[eligible_X[ids]]
        ids = ids[np.lexsort((ids, draw_X[ids]))]
        return np.sort(first_of_groups(ids, state.group_X, quota_G))

    def arrange(
        self,
        state: PoolState,
        ids: Int[np.ndarray, " N"],
        quota_G: Int[np.ndarray, " G"],
        seed: int,
    ) -> Int[np.ndarray, " N"]:
        """Shuffle the selection, anew each epoch."""
        del quota_G
        return shuffled(ids, seed, ARRANGE, state.round, state.epoch)
