"""Scores for the next round, taken while this one trains: what to measure when, kept until then."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from research.curriculum.curriculum import Curriculum
from research.curriculum.ordering import AHEAD, draws
from research.curriculum.state import NEVER, PoolState, replaced


def ids_ahead(
    curriculum: Curriculum, state: PoolState, done: int, of: int, multiple: int, seed: int
) -> Int[np.ndarray, " N"]:
    """Give what is to be measured now for the next round, ascending.

    Who is measured when is drawn, so that an age has nothing to do with a place in the pool. It
    depends on what was measured already and on how far the round has come, so that a resumed run
    asks for what it would have asked for.

    Args:
      done, of: updates that the round will have made when this is asked again, and all of its own.
      multiple: rows of a batch, of which only the last part of a round may be no multiple.
    """
    if not curriculum.score_ahead or state.round + 1 >= curriculum.rounds:
        return np.zeros(0, np.int64)
    ids = curriculum.ids_to_score(state, state.round + 1, seed)
    draw_X = draws(state.num_examples, seed, AHEAD, state.round + 1)
    ids = ids[np.argsort(draw_X[ids], kind="stable")]
    due = len(ids) * done // of
    ids = ids[: due - due % multiple if done < of else due]
    return np.sort(ids[state.ahead_step_X[ids] == NEVER])


def note_ahead(
    curriculum: Curriculum,
    state: PoolState,
    ids: Int[np.ndarray, " N"],
    signals: Float[np.ndarray, "*measured N"],
    step: int,
    flops: float,
) -> PoolState:
    """Keep measurements for the next round, which nobody looks at before it opens.

    Args:
      step: how many updates the weights had made.

    Raises:
      ValueError: a signal is not finite, or ids and signals do not match.
    """
    ids, signal_YN = curriculum.checked(ids, signals, state.round + 1)
    ahead_YX = state.ahead_YX.copy()
    for term, signal_N in zip(curriculum.measured, signal_YN, strict=True):
        ahead_YX[curriculum.terms.index(term), ids] = signal_N
    return dataclasses.replace(
        state,
        ahead_YX=ahead_YX,
        ahead_step_X=replaced(state.ahead_step_X, ids, step),
        scored_rows=state.scored_rows + len(ids),
        scoring_flops=state.scoring_flops + float(flops),
    )


def take_ahead(curriculum: Curriculum, state: PoolState, round_: int) -> PoolState:
    """Take over what was measured for a round that is about to open; it was paid for then."""
    ids = np.flatnonzero(state.ahead_step_X != NEVER)
    measured = [curriculum.terms.index(term) for term in curriculum.measured]
    taken = curriculum.rescore(
        state, ids, state.ahead_YX[measured][:, ids], round_, step=state.ahead_step_X[ids]
    )
    return dataclasses.replace(
        taken,
        ahead_YX=np.full_like(state.ahead_YX, np.nan),
        ahead_step_X=np.full_like(state.ahead_step_X, NEVER),
        scored_rows=state.scored_rows,
    )
