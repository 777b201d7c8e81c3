"""The easiest part of the pool each round: the mirror image of EDCO."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from research.core.parts import part, require
from research.curriculum.ordering import (
    RoundOrder,
    Unscored,
    arranged,
    first_of_groups,
    fraction_check,
    order_check,
    ranked_for_round,
    unscored_check,
)
from research.curriculum.state import PoolState


@part
class BottomFraction:
    """Select the `fraction` of the pool with the lowest scores.

    Attributes:
      order: how the selection is handed out; "shuffled" anew each epoch.
      unscored: examples without a score are an error, or come before or after all others, in
        random order. With "first", a free estimator sees the whole pool once before it repeats.

    Source: the mirror image of EDCO, arXiv 2601.03725.
    Reach: an id that always scores high is never selected, by design; with repeats forbidden all
    are reached after 1 / fraction rounds.
    Law: the selection depends on the order of the scores alone, rounded to 1e-4 nats, ties by id.
    """

    fraction: float
    order: RoundOrder = "shuffled"
    unscored: Unscored = "error"

    whole_pool = False
    has_rounds = True
    uses_scores = True

    def __post_init__(self) -> None:
        require(
            self,
            fraction_check(self.fraction),
            order_check(self.order),
            unscored_check(self.unscored),
        )

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
        """Take the easiest of each group."""
        ids = ranked_for_round(state, eligible_X, seed, descending=False, unscored=self.unscored)
        return np.sort(first_of_groups(ids, state.group_X, quota_G))

    def arrange(
        self,
        state: PoolState,
        ids: Int[np.ndarray, " N"],
        quota_G: Int[np.ndarray, " G"],
        seed: int,
    ) -> Int[np.ndarray, " N"]:
        """Put the selection in its order."""
        del quota_G
        return arranged(ids, state, self.order, self.unscored, seed)
