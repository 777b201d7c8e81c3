"""The fair control of a round-wise curriculum: a random part of the pool each round."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from research.core.parts import part, require
from research.curriculum.ordering import (
    ARRANGE,
    drawn,
    first_of_groups,
    fraction_check,
    shuffled,
)
from research.curriculum.state import PoolState


@part
class RoundWiseUniform:
    """Select `fraction` of the pool at random, anew each round, without repeats inside it.

    Source: the control that EDCO, arXiv 2601.03725, needs: its rounds without its choice.
    Law: every id is reachable: each is as likely as any other of its group, every round.
    """

    fraction: float

    whole_pool = False
    has_rounds = True
    uses_scores = False
    takes_unscored = True

    def __post_init__(self) -> None:
        require(self, fraction_check(self.fraction))

    def select(
        self,
        state: PoolState,
        eligible_X: Bool[np.ndarray, " X"],
        quota_G: Int[np.ndarray, " G"],
        seed: int,
    ) -> Int[np.ndarray, " N"]:
        """Draw the quota of each group."""
        ids = drawn(np.flatnonzero(eligible_X), state, seed)
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
