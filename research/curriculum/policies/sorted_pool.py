"""The whole pool in order of difficulty: the classical curriculum, or its reverse."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from research.core.parts import part, require
from research.curriculum.ordering import (
    ARRANGE,
    EPOCH,
    Unscored,
    draws,
    epoch_of_groups,
    ranked,
    unscored_check,
)
from research.curriculum.state import PoolState


@part
class Sorted:
    """Hand the whole pool out sorted by score, each epoch anew.

    Attributes:
      descending: hard to easy instead of easy to hard.
      unscored: examples without a score are an error, or come before or after all others.

    Source: easy to hard: Bengio et al. 2009, "Curriculum learning".
    Law: every id comes once an epoch; it depends on the order of the scores alone, rounded to
    1e-4 nats, ties by id. A run shorter than an epoch does not reach the end of the order.
    """

    descending: bool = False
    unscored: Unscored = "error"

    fraction = 1.0
    whole_pool = True
    has_rounds = True
    uses_scores = True

    def __post_init__(self) -> None:
        require(self, unscored_check(self.unscored))

    @property
    def takes_unscored(self) -> bool:
        return self.unscored != "error"

    def select(
        self,
        state: PoolState,
        eligible_X: Bool[np.ndarray, " X"],
        quota_G: Int[np.ndarray, " G"],
        seed: int,
    ) -> Int[np.ndarray, " N"]:
        """Select everything."""
        del state, quota_G, seed
        return np.flatnonzero(eligible_X)

    def arrange(
        self,
        state: PoolState,
        ids: Int[np.ndarray, " N"],
        quota_G: Int[np.ndarray, " G"],
        seed: int,
    ) -> Int[np.ndarray, " N"]:
        """Sort one epoch, in which every group has its quota."""
        del ids
        stream = (seed, EPOCH, state.round)
        ids = epoch_of_groups(state.group_X, quota_G, state.epoch, *stream)
        draw_X = draws(state.num_examples, seed, ARRANGE, state.round, state.epoch)
        return ranked(
            ids, state.score_X, draw_X, descending=self.descending, unscored=self.unscored
        )
