"""Medium first, then hard: a change of difficulty in the middle of the run."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from research.core.parts import part, require
from research.curriculum.ordering import (
    RoundOrder,
    arranged,
    first_of_groups,
    fraction_check,
    order_check,
    ranked_for_round,
)
from research.curriculum.state import PoolState


@part
class TwoStage:
    """Select, for `medium_rounds` rounds, the `fraction` of the pool that lies about the quantile
    `medium`; after them, the `fraction` with the highest scores.

    Attributes:
      medium: the quantile that counts as medium; 0.5: the median.
      order: how the selection is handed out; "shuffled" anew each epoch.

    Source: the difficulty stages of GLM-4.5, arXiv 2508.06471, which are of RL prompts by their
    pass rate; this is their order, for any score.
    Reach: not those that always score low, by design.
    Law: the first stage's selection is a run of neighbours in the order of scores, about the
    quantile; the second is that of `TopFraction`.
    """

    fraction: float
    medium_rounds: int
    medium: float = 0.5
    order: RoundOrder = "shuffled"

    whole_pool = False
    has_rounds = True
    uses_scores = True
    takes_unscored = False

    def __post_init__(self) -> None:
        require(
            self,
            fraction_check(self.fraction),
            (
                self.medium_rounds >= 1,
                f"medium_rounds={self.medium_rounds}: with no first stage, say TopFraction",
            ),
            (0 <= self.medium <= 1, f"medium={self.medium}: expected a quantile from 0 to 1"),
            order_check(self.order),
        )

    def select(
        self,
        state: PoolState,
        eligible_X: Bool[np.ndarray, " X"],
        quota_G: Int[np.ndarray, " G"],
        seed: int,
    ) -> Int[np.ndarray, " N"]:
        """Take each group's middle, or its top."""
        ids = ranked_for_round(state, eligible_X, seed, descending=True, unscored="error")
        if state.round < self.medium_rounds:
            ids = np.concatenate(
                [
                    self._nearest(ids[state.group_X[ids] == group], quota)
                    for group, quota in enumerate(quota_G.tolist())
                ]
            )
        return np.sort(first_of_groups(ids, state.group_X, quota_G))

    def _nearest(self, ids: Int[np.ndarray, " N"], count: int) -> Int[np.ndarray, " count"]:
        """Take `count` neighbours of an order from hard to easy, about the quantile."""
        middle = (1.0 - self.medium) * len(ids)
        first = int(np.clip(np.rint(middle - count / 2), 0, max(0, len(ids) - count)))
        return ids[first : first + count]

    def arrange(
        self,
        state: PoolState,
        ids: Int[np.ndarray, " N"],
        quota_G: Int[np.ndarray, " G"],
        seed: int,
    ) -> Int[np.ndarray, " N"]:
        """Put the selection in its order."""
        del quota_G
        return arranged(ids, state, self.order, "error", seed)
