"""A bandit over difficulties: trains where the loss has been falling most, and keeps trying."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from research.core.parts import part, require
from research.curriculum.expressions import places
from research.curriculum.ordering import (
    ARRANGE,
    drawn,
    first_of_groups,
    fraction_check,
    rounded,
    shuffled,
)
from research.curriculum.state import PoolState

COLUMNS = PULLS, FALLS, REWARD, LAST, SUM, COUNT = range(6)


@part
class Ucb1:
    """Divide each round among arms of difficulty by their upper confidence bounds:

    u_a = r_a + exploration * sqrt(2 ln n / n_a)

    An arm is a level of the scores of the first round: each value by itself where there are at most
    `arms`, else `arms` parts of equal size, ties together. Scores are so taken once. A round is
    `slots` pulls, given one after the other to the arm with the largest bound, whose n_a grows at
    once; unpulled arms come first. Its examples are drawn from the arm at random.

    The reward of an arm is how much the mean loss that training saw of its examples fell from one
    round in which it was pulled to the next; r_a is its mean over pulls, moved to [0, 1] by
    1/2 + r / (2 max |r|) over the arms, as UCB1 presumes. Arms without a fall yet count 1/2.

    Attributes:
      arms: the most arms there are.
      slots: pulls a round.
      exploration: the weight of the bound; 1 is UCB1.

    Source: Auer et al. 2002, "Finite-time analysis of the multiarmed bandit problem", UCB1; a
    bandit over difficulties with learning progress as its reward: Graves et al. 2017,
    arXiv 1704.03003; over data distributions in RL: DUMP, arXiv 2504.09710.
    Reach: every id, while exploration is positive.
    Law: pulls add up to slots * rounds; of two arms pulled alike the one with the larger fall gets
    more of the next round; what it knows is in every checkpoint.
    """

    fraction: float
    arms: int = 4
    slots: int = 16
    exploration: float = 1.0

    whole_pool = False
    has_rounds = True
    uses_scores = True
    takes_unscored = False

    def __post_init__(self) -> None:
        require(
            self,
            fraction_check(self.fraction),
            (self.arms >= 2, f"arms={self.arms}: a choice needs at least 2"),
            (
                self.slots >= self.arms,
                f"slots={self.slots} must be at least arms={self.arms}, so that each is tried",
            ),
            (self.exploration >= 0, f"exploration={self.exploration} must not be negative"),
        )

    def begin(self) -> Float[np.ndarray, "arms 6"]:
        """Start with no pull. Columns: PULLS, FALLS (pulls with a reward), REWARD (summed over
        those), LAST (mean loss when last pulled), then the sum and count of this round's losses."""
        memory = np.zeros((self.arms, len(COLUMNS)))
        memory[:, LAST] = np.nan
        return memory

    def learn(
        self, state: PoolState, ids: Int[np.ndarray, " N"], loss_nats: Float[np.ndarray, " N"]
    ) -> Float[np.ndarray, "arms 6"]:
        """Add a cycle's losses to those of their arms."""
        memory, arm_X = state.memory.copy(), self.arm_of(state.score_X)
        memory[:, SUM] += np.bincount(arm_X[ids], loss_nats, minlength=self.arms)
        memory[:, COUNT] += np.bincount(arm_X[ids], minlength=self.arms)
        return memory

    def reflect(self, state: PoolState) -> Float[np.ndarray, "arms 6"]:
        """Turn the round before into pulls, and its losses into rewards."""
        memory, arm_X = state.memory.copy(), self.arm_of(state.score_X)
        last = state.selected_round_X == state.round - 1
        share_A = np.bincount(arm_X[last], minlength=self.arms) / max(1, int(last.sum()))
        pulls_A = self.slots * share_A
        memory[:, PULLS] += pulls_A
        seen = memory[:, COUNT] > 0
        mean_A = np.divide(
            memory[:, SUM], memory[:, COUNT], out=np.full(self.arms, np.nan), where=seen
        )
        fell = seen & ~np.isnan(memory[:, LAST])
        fall_A = np.where(fell, memory[:, LAST] - mean_A, 0.0)
        memory[:, FALLS] += np.where(fell, pulls_A, 0.0)
        memory[:, REWARD] += np.where(fell, pulls_A * fall_A, 0.0)
        memory[:, LAST] = np.where(seen, mean_A, memory[:, LAST])
        memory[:, [SUM, COUNT]] = 0.0
        return memory

    def arm_of(self, score_X: Float[np.ndarray, " X"]) -> Int[np.ndarray, " X"]:
        """Give the arm of each example.

        Raises:
          ValueError: an example has no score.
        """
        score_X = rounded(score_X)
        if missing := int(np.isnan(score_X).sum()):
            raise ValueError(f"{missing} examples have no score; Ucb1 needs all of them")
        values, level_X = np.unique(score_X, return_inverse=True)
        if len(values) <= self.arms:
            return level_X
        return np.minimum((places(score_X) * self.arms).astype(np.int64), self.arms - 1)

    def select(
        self,
        state: PoolState,
        eligible_X: Bool[np.ndarray, " X"],
        quota_G: Int[np.ndarray, " G"],
        seed: int,
    ) -> Int[np.ndarray, " N"]:
        """Deal the slots, and draw each arm's part."""
        arm_X = self.arm_of(state.score_X)
        ids = drawn(np.flatnonzero(eligible_X), state, seed)
        waiting = [ids[arm_X[ids] == arm] for arm in range(self.arms)]
        size = max(1, -(-int(quota_G.sum()) // self.slots))
        pulls_A, order = state.memory[:, PULLS].copy(), []
        while any(len(queue) for queue in waiting):
            bounds_A = self.bounds(state.memory, pulls_A)
            full_A = np.array([not len(queue) for queue in waiting])
            arm = int(np.argmax(np.where(full_A, -np.inf, bounds_A)))
            order.append(waiting[arm][:size])
            waiting[arm] = waiting[arm][size:]
            pulls_A[arm] += 1.0
        return np.sort(first_of_groups(np.concatenate(order), state.group_X, quota_G))

    def bounds(
        self, memory: Float[np.ndarray, "arms 6"], pulls_A: Float[np.ndarray, " arms"]
    ) -> Float[np.ndarray, " arms"]:
        """Give u_a after so many pulls; unpulled arms have the largest, the first of them most."""
        fell = memory[:, FALLS] > 0
        mean_A = np.divide(memory[:, REWARD], memory[:, FALLS], out=np.zeros(self.arms), where=fell)
        widest = np.abs(mean_A).max(initial=0.0)
        reward_A = 0.5 + (mean_A / (2.0 * widest) if widest > 0 else 0.0)
        n = max(1.0, float(pulls_A.sum()))
        spread_A = np.sqrt(2.0 * np.log(n) / np.maximum(pulls_A, 1e-12))
        bound_A = reward_A + self.exploration * spread_A
        return np.where(pulls_A > 0, bound_A, np.inf)

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
