"""What is easy enough for now, by a threshold that rises from round to round."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from research.core.parts import part, require
from research.curriculum.ordering import (
    ARRANGE,
    rounded,
    shuffled,
)
from research.curriculum.state import PoolState


@part
class SelfPaced:
    """Select every example whose score is below threshold_nats * growth^round.

    For given parameters this is the exact minimiser over v in {0, 1}^X of
    sum_i v_i (L_i - lambda), lambda the threshold: with the steps of the round in between, the
    alternate minimisation of self-paced learning. The score must so be a loss.

    Attributes:
      threshold_nats: lambda of the first round, 1 / K in the paper; about the median of the first
        scores is usual.
      growth: the factor on it from one round to the next.

    Source: Kumar et al. 2010, "Self-paced learning for latent variable models", equation 2.
    Weighted sources are refused: a threshold keeps no shares.

    Reach: every id once the threshold has passed its loss.
    Law: the selection is what minimises the sum above; a larger threshold selects no less.
    """

    threshold_nats: float
    growth: float = 1.3

    fraction = 1.0
    whole_pool = False
    has_rounds = True
    uses_scores = True
    takes_unscored = False

    def __post_init__(self) -> None:
        require(
            self,
            (
                self.threshold_nats > 0,
                f"threshold_nats={self.threshold_nats} must be positive, as losses are",
            ),
            (
                self.growth >= 1,
                f"growth={self.growth}: expected at least 1; a falling threshold forgets",
            ),
        )

    def select(
        self,
        state: PoolState,
        eligible_X: Bool[np.ndarray, " X"],
        quota_G: Int[np.ndarray, " G"],
        seed: int,
    ) -> Int[np.ndarray, " N"]:
        """Take whoever is below the threshold.

        Raises:
          ValueError: nobody is, or an example has no score.
        """
        del quota_G, seed
        score_X, threshold = rounded(state.score_X), self.threshold_nats * self.growth**state.round
        if missing := int(np.isnan(score_X[eligible_X]).sum()):
            raise ValueError(f"{missing} examples have no score; SelfPaced needs all of them")
        ids = np.flatnonzero(eligible_X & (score_X < threshold))
        if not len(ids):
            raise ValueError(
                f"round {state.round}: no loss is below {threshold:.4g} nats, the lowest is "
                f"{np.min(score_X[eligible_X], initial=np.inf):.4g}; raise threshold_nats"
            )
        return ids

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
