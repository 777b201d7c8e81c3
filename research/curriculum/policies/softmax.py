"""Chance that grows with the score: harder examples are likelier, none is certain."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from research.core.parts import part, require
from research.curriculum.expressions import standard
from research.curriculum.ordering import (
    SELECT,
    RoundOrder,
    Unscored,
    arranged,
    draws,
    first_of_groups,
    fraction_check,
    order_check,
    ranked,
    rounded,
    uniforms,
    unscored_check,
)
from research.curriculum.state import PoolState


@part
class Softmax:
    """Draw `fraction` of the pool without replacement, with weights exp(z / temperature), z the
    standardised score.

    Drawing k of n by the largest z / temperature + g, g = - ln(- ln u) of one uniform u each, is
    drawing them one after the other by their weights.

    Attributes:
      temperature: of the weights; towards 0 `TopFraction`, large `RoundWiseUniform`. Negative: low
        scores are likelier.
      order: how the selection is handed out; "shuffled" anew each epoch.
      unscored: examples without a score are an error, or come before or after all others, in
        random order.

    Source: Gumbel top-k: Vieira 2014; Kool et al. 2019, arXiv 1903.06059.
    Law: every id is reachable in every round; the first drawn is i with probability proportional to
    its weight.
    """

    fraction: float
    temperature: float = 1.0
    order: RoundOrder = "shuffled"
    unscored: Unscored = "error"

    whole_pool = False
    has_rounds = True
    uses_scores = True

    def __post_init__(self) -> None:
        require(
            self,
            fraction_check(self.fraction),
            (
                self.temperature != 0,
                f"temperature={self.temperature} chooses nothing at random; say TopFraction",
            ),
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
        """Take the largest perturbed scores of each group."""
        size, ids = state.num_examples, np.flatnonzero(eligible_X)
        gumbel_X = -np.log(-np.log(uniforms(size, seed, SELECT, state.round)))
        key_X = standard(rounded(state.score_X)) / self.temperature + gumbel_X
        draw_X = draws(size, seed, SELECT, state.round)
        ids = ranked(ids, key_X, draw_X, descending=True, unscored=self.unscored)
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
