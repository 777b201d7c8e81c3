"""What a curriculum remembers of its pool: NumPy arrays on the host, in every checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from research.core.records import record

NEVER = -1


@record
class PoolState:
    """Scores, counts and the round's queue; X is the pool index of an example.

    Attributes:
      score_X: the last signal of each example in nats (float32); NaN: never scored.
      signal_YX: the last value of each measurement that the estimator is made of (float32); one
        row for a plain estimator, whose value is the score.
      scored_round_X: the round for which `score_X` was measured, -1: never. Its age in rounds is
        the difference to `round`.
      scored_step_X: how many updates the weights had made that measured `score_X`, -1: never, or
        unknown, as where training itself reported it. Scores that were taken ahead are older than
        the round that they are for.
      ahead_YX: what was measured already for the next round, a row for each row of `signal_YX`;
        NaN: nothing yet.
      ahead_step_X: how many updates the weights had made that measured it, -1: nothing yet.
      selected_round_X: the last round whose selection held the example, -1: none.
      times_used_X: how often the example was handed out for training.
      group_X: the source group of each example.
      share_G: which share of every selection a group gets; one group: no quotas. A policy that
        mixes moves it from round to round.
      memory: what an adaptive policy knows of the rounds before, in a form of its own.
      queue: ids in the order in which they are handed out; never empty once a round is open.
      cursor: the next place of `queue`.
      round: the open round, -1 before the first.
      epoch: how often the round's selection has been queued, from 0.
      settings: digest of the estimator whose scores these are.
      scored_rows: rows scored so far, over all rounds.
      scoring_flops: what they cost, analytically.
    """

    score_X: Float[np.ndarray, " X"]
    signal_YX: Float[np.ndarray, "Y X"]
    scored_round_X: Int[np.ndarray, " X"]
    scored_step_X: Int[np.ndarray, " X"]
    ahead_YX: Float[np.ndarray, "Y X"]
    ahead_step_X: Int[np.ndarray, " X"]
    selected_round_X: Int[np.ndarray, " X"]
    times_used_X: Int[np.ndarray, " X"]
    group_X: Int[np.ndarray, " X"]
    share_G: Float[np.ndarray, " G"]
    memory: Float[np.ndarray, "*memory"]
    queue: Int[np.ndarray, " Q"]
    cursor: int
    round: int
    epoch: int
    settings: UInt8[np.ndarray, " digest"]
    scored_rows: int
    scoring_flops: float

    @property
    def num_examples(self) -> int:
        """The size X of the pool."""
        return len(self.score_X)

    def selection(self) -> Int[np.ndarray, " N"]:
        """Give the ids that the open round selected, ascending."""
        if self.round == NEVER:
            return np.zeros(0, np.int64)
        return np.flatnonzero(self.selected_round_X == self.round)

    def waiting(self) -> Int[np.ndarray, " Q"]:
        """Give the ids that are queued and not yet handed out, in order."""
        return self.queue[self.cursor :]

    def arrays(self) -> dict[str, np.ndarray]:
        """Give the state as named arrays, for a checkpoint."""
        return {name: np.asarray(value) for name, value in vars(self).items()}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> PoolState:
    """Undo `PoolState.arrays`.

    Raises:
      ValueError: names are missing or unknown.
    """
    names = {field.name for field in dataclasses.fields(PoolState)}
    if names != set(arrays):
        raise ValueError(
            f"curriculum state lacks {sorted(names - set(arrays))} and has unknown "
            f"{sorted(set(arrays) - names)}; it was written by another version: start the run anew"
        )
    scalars = {
        "cursor": int,
        "round": int,
        "epoch": int,
        "scored_rows": int,
        "scoring_flops": float,
    }
    return PoolState(
        **{name: scalars.get(name, np.asarray)(value) for name, value in arrays.items()}
    )


def replaced(values_X: np.ndarray, ids: np.ndarray, new: Any) -> np.ndarray:
    """Copy `values_X` with the entries `ids` replaced."""
    values_X = values_X.copy()
    values_X[ids] = new
    return values_X
