"""A part of every selection left to chance, so that every example stays reachable."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from research.core.parts import part, require
from research.curriculum.ordering import (
    FLOOR,
    drawn,
    first_of_groups,
)
from research.curriculum.state import PoolState


@part
class UniformFloor:
    """Let another policy select 1 - epsilon of a round, and draw the rest from who is left.

    Attributes:
      policy: whose selection it is otherwise, and whose order: a part of `policies/`.
      epsilon: the share of every round that is drawn at random.

    Source: epsilon-greedy exploration, Sutton & Barto, section 2.2.
    Reach: every eligible id, in every round.
    Law: epsilon of N, rounded up, are drawn uniformly from those that the policy left.
    """

    policy: Any
    epsilon: float

    has_rounds = True
    whole_pool = False

    def __post_init__(self) -> None:
        inner = type(self.policy).__name__
        require(
            self,
            (0 < self.epsilon < 1, f"epsilon={self.epsilon}: expected 0 < epsilon < 1"),
            (
                not self.policy.whole_pool and self.policy.fraction < 1,
                f"policy={inner} selects the whole pool; nothing is left to draw from",
            ),
            (
                self.policy.uses_scores and not hasattr(self.policy, "learn"),
                f"policy={inner} explores by itself; say it without a floor",
            ),
            (
                not hasattr(self.policy, "mix"),
                f"policy={inner} moves shares; put the floor inside it: "
                f"{inner}(policy=UniformFloor(...))",
            ),
        )

    @property
    def fraction(self) -> float:
        return self.policy.fraction

    @property
    def uses_scores(self) -> bool:
        return self.policy.uses_scores

    @property
    def takes_unscored(self) -> bool:
        return self.policy.takes_unscored

    def select(
        self,
        state: PoolState,
        eligible_X: Bool[np.ndarray, " X"],
        quota_G: Int[np.ndarray, " G"],
        seed: int,
    ) -> Int[np.ndarray, " N"]:
        """Take the policy's part, then the rest by chance."""
        drawn_G = np.ceil(self.epsilon * quota_G - 1e-9).astype(np.int64)
        chosen = self.policy.select(state, eligible_X, quota_G - drawn_G, seed)
        left_X = eligible_X.copy()
        left_X[chosen] = False
        ids = drawn(np.flatnonzero(left_X), state, seed, FLOOR)
        return np.sort(np.concatenate([chosen, first_of_groups(ids, state.group_X, drawn_G)]))

    def arrange(
        self,
        state: PoolState,
        ids: Int[np.ndarray, " N"],
        quota_G: Int[np.ndarray, " G"],
        seed: int,
    ) -> Int[np.ndarray, " N"]:
        """Leave the order to the policy."""
        return self.policy.arrange(state, ids, quota_G, seed)
