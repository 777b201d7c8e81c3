"""Shares of the sources that follow what there is left to learn in each."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from research.core.parts import part, require
from research.curriculum.ordering import (
    quotas,
    rounded,
)
from research.curriculum.state import PoolState


@part
class Mixture:
    """Move the shares of weighted sources by exponentiated gradient, once a round:

    a_g <- a_g exp(rate * e_g), a <- a / sum a, a <- (1 - smoothing) a + smoothing / G
    e_g  = mean over the group's examples of max(score, 0)

    With `ExcessLoss(reference=...)` for a score this is the domain reweighting of DoReMi, at the
    pace of rounds and with means over examples; DoReMi takes them over tokens and moves every step.
    With `Free()` it costs nothing and follows the loss that training saw.

    Attributes:
      policy: who selects inside the shares: a part of `policies/`.
      rate: the step of the update, an inverse of nats.
      smoothing: the part of the shares that stays uniform, so that no source is lost.

    Source: Xie et al. 2023 (DoReMi), arXiv 2305.10429, algorithm 1.
    Reach: that of `policy`, in every source.
    Law: shares sum to 1 and none is below smoothing / G; of two sources with equal shares the one
    with more left to learn gets more. The first round has the sources' own weights.
    """

    policy: Any
    rate: float = 1.0
    smoothing: float = 1e-3

    has_rounds = True
    whole_pool = False
    uses_scores = True

    def __post_init__(self) -> None:
        inner = type(self.policy).__name__
        require(
            self,
            (self.rate > 0, f"rate={self.rate} must be positive; 0 moves nothing"),
            (0 <= self.smoothing <= 1, f"smoothing={self.smoothing}: expected 0 to 1"),
            (
                self.policy.has_rounds and not self.policy.whole_pool,
                f"policy={inner} selects the whole pool; say RoundWiseUniform or TopFraction",
            ),
            (
                not hasattr(self.policy, "learn") and not hasattr(self.policy, "mix"),
                f"policy={inner} divides the rounds by itself; give one that does not",
            ),
        )

    @property
    def fraction(self) -> float:
        return self.policy.fraction

    @property
    def takes_unscored(self) -> bool:
        return not self.policy.uses_scores or self.policy.takes_unscored

    def mix(self, state: PoolState) -> Float[np.ndarray, " G"]:
        """Give the new shares."""
        num_groups = len(state.share_G)
        score_X = np.maximum(rounded(state.score_X), 0.0)
        excess_G = np.zeros(num_groups)
        for group in range(num_groups):
            known = score_X[(state.group_X == group) & ~np.isnan(score_X)]
            excess_G[group] = known.mean() if len(known) else 0.0
        share_G = state.share_G * np.exp(self.rate * (excess_G - excess_G.max()))
        share_G = share_G / share_G.sum()
        return (1.0 - self.smoothing) * share_G + self.smoothing / num_groups

    def select(
        self,
        state: PoolState,
        eligible_X: Bool[np.ndarray, " X"],
        quota_G: Int[np.ndarray, " G"],
        seed: int,
    ) -> Int[np.ndarray, " N"]:
        """Let the policy select; a share beyond what its source still has goes to the others."""
        left_G = np.bincount(state.group_X[eligible_X], minlength=len(quota_G))
        return self.policy.select(state, eligible_X, filled(quota_G, left_G), seed)

    def arrange(
        self,
        state: PoolState,
        ids: Int[np.ndarray, " N"],
        quota_G: Int[np.ndarray, " G"],
        seed: int,
    ) -> Int[np.ndarray, " N"]:
        """Leave the order to the policy."""
        return self.policy.arrange(state, ids, quota_G, seed)


def filled(quota_G: Int[np.ndarray, " G"], left_G: Int[np.ndarray, " G"]) -> Int[np.ndarray, " G"]:
    """Cut quotas to what each group has left, and give the rest to the groups with room.

    Law: the total stays, as far as there is room for it.
    """
    held_G = np.minimum(quota_G, left_G)
    while (missing := int(quota_G.sum() - held_G.sum())) and (held_G < left_G).any():
        room_G = left_G - held_G
        more_G = quotas(min(missing, int(room_G.sum())), room_G.astype(np.float64))
        held_G = held_G + np.minimum(more_G, room_G)
    return held_G
