"""The hard part of the pool without the hardest: what may be noise is left out."""

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
class Window:
    """Drop the `skip` of the pool with the highest scores, and select the next `fraction`.

    Attributes:
      skip: what is dropped, a fraction of what is eligible in each group.
      order: how the selection is handed out; "shuffled" anew each epoch.
      unscored: examples without a score are an error, or come before (none of them is dropped) or
        after all others, in random order.

    Source: high loss and high uncertainty also mark mislabelled rows: the window of edges of
    Swayamdipta et al. 2020, arXiv 2009.10795; dropping the top is the outlier rule of IFD's and
    perplexity's users, Marion et al. 2023, arXiv 2309.04564.
    Reach: an id that always scores highest or low is not selected, by design; where examples rest
    or may not repeat, the dropped come last.
    Law: with skip = 0 it is `TopFraction`; else its selection is what `TopFraction` would select of
    the rest.
    """

    fraction: float
    skip: float
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
                self.skip >= 0 and self.skip + self.fraction <= 1 + 1e-9,
                f"skip={self.skip} and fraction={self.fraction}: expected skip >= 0 and both "
                "together at most 1",
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
        """Take each group from behind its dropped part."""
        ids = ranked_for_round(state, eligible_X, seed, descending=True, unscored=self.unscored)
        return np.sort(first_of_groups(self._dropped_last(ids, state), state.group_X, quota_G))

    def _dropped_last(self, ids: Int[np.ndarray, " N"], state: PoolState) -> np.ndarray:
        """Move the highest scores of each group behind all others."""
        scored = ~np.isnan(state.score_X[ids])
        drop = np.zeros(len(ids), bool)
        for group in range(len(state.share_G)):
            members = np.flatnonzero(scored & (state.group_X[ids] == group))
            drop[members[: int(self.skip * len(members) + 1e-9)]] = True
        return np.concatenate([ids[~drop], ids[drop]])

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
