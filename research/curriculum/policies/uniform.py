"""Plain random order: permutations of the pool, epoch after epoch, with no rounds."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from research.core.parts import part
from research.curriculum.ordering import ARRANGE, EPOCH, epoch_of_groups, shuffled
from research.curriculum.state import PoolState


@part
class Uniform:
    """Shuffle the whole pool, again and again; with source weights, by quotas in every epoch.

    Source: shuffling once an epoch is what stochastic gradient descent is run with; the control.
    Law: without weights every id comes once an epoch; with weights every id of a group comes as
    often as any other of it, give or take one. Every id is reachable.
    """

    fraction = 1.0
    whole_pool = True
    has_rounds = False
    uses_scores = False
    takes_unscored = True

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
        """Shuffle one epoch."""
        del ids
        stream = (seed, EPOCH, state.round)
        ids = epoch_of_groups(state.group_X, quota_G, state.epoch, *stream)
        return shuffled(ids, seed, ARRANGE, state.round, state.epoch)
