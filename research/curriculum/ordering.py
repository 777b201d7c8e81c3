"""How ids are drawn, ranked, shared among groups and shuffled: pure functions of NumPy arrays.

All of it is integer arithmetic on the host, so every process and every machine gets the same ids.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from research.curriculum.state import PoolState

RESOLUTION = 1e-4  # of nats, or of what else a score counts: nearer ones are ties; noise is 1e-6

Unscored = Literal["error", "first", "last"]
RoundOrder = Literal["shuffled", "descending", "ascending"]

SELECT, ARRANGE, EPOCH, RESCORE, FLOOR, AHEAD = range(6)  # named streams of draws


def fraction_check(fraction: float) -> tuple[bool, str]:
    """Give the check of a selected fraction, for `require`."""
    return 0 < fraction <= 1, f"fraction={fraction}: expected 0 < fraction <= 1"


def order_check(order: str) -> tuple[bool, str]:
    """Give the check of an in-round order, for `require`."""
    return order in get_args(RoundOrder), f"order={order!r}: choose from {get_args(RoundOrder)}"


def unscored_check(unscored: str) -> tuple[bool, str]:
    """Give the check of where unscored examples go, for `require`."""
    allowed = get_args(Unscored)
    return unscored in allowed, f"unscored={unscored!r}: choose from {allowed}"


def draws(size: int, *stream: int) -> UInt64[np.ndarray, " {size}"]:
    """Give `size` random words of the stream (seed, purpose, ...).

    Raw words of a counter-based generator: unlike permutations, NumPy promises never to change
    them.
    """
    return np.random.Philox(np.random.SeedSequence(stream)).random_raw(size)


def rounded(score_X: Float[np.ndarray, " X"]) -> Float[np.ndarray, " X"]:
    """Round scores to 1e-4 of their unit, in float64: float noise between machines is gone."""
    return np.rint(np.asarray(score_X, np.float64) / RESOLUTION) * RESOLUTION


def uniforms(size: int, *stream: int) -> Float[np.ndarray, " {size}"]:
    """Give `size` numbers of the stream in (0, 1), neither end included."""
    return ((draws(size, *stream) >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def shuffled(ids: Int[np.ndarray, " N"], *stream: int) -> Int[np.ndarray, " N"]:
    """Permute `ids`."""
    return ids[np.argsort(draws(len(ids), *stream), kind="stable")]


def ranked(
    ids: Int[np.ndarray, " N"],
    score_X: Float[np.ndarray, " X"],
    draw_X: UInt64[np.ndarray, " X"],
    *,
    descending: bool,
    unscored: Unscored,
) -> Int[np.ndarray, " N"]:
    """Order `ids` by score, rounded to 1e-4 nats, ties by id; the unscored by `draw_X`.

    Raises:
      ValueError: some have no score and `unscored` is "error".
    """
    missing = np.isnan(score_X[ids])
    if missing.any() and unscored == "error":
        raise ValueError(
            f"{int(missing.sum())} of {len(ids)} examples have no score, first ids "
            f"{ids[missing][:5].tolist()}; score them, or say where they go with unscored='first' "
            "or 'last'"
        )
    value = rounded(np.where(missing, 0.0, score_X[ids]))
    value = -value if descending else value
    drawn = np.where(missing, draw_X[ids], 0)
    place = missing if unscored == "last" else ~missing
    return ids[np.lexsort((ids, drawn, value, place))]


def quotas(total: int, share_G: Float[np.ndarray, " G"]) -> Int[np.ndarray, " G"]:
    """Divide `total` by shares: largest remainders, ties to the first group.

    Law: the quotas add up to `total`, and each is within one of its exact share.
    """
    exact_G = total * share_G / share_G.sum()
    quota_G = np.floor(exact_G).astype(np.int64)
    order = np.argsort(-(exact_G - quota_G), kind="stable")
    quota_G[order[: total - int(quota_G.sum())]] += 1
    return quota_G


def first_of_groups(
    ids: Int[np.ndarray, " N"], group_X: Int[np.ndarray, " X"], quota_G: Int[np.ndarray, " G"]
) -> Int[np.ndarray, " M"]:
    """Keep the first `quota_G[g]` ids of each group, in the given order."""
    kept = [np.flatnonzero(group_X[ids] == group)[:quota] for group, quota in enumerate(quota_G)]
    return ids[np.sort(np.concatenate(kept))]


def epoch_of_groups(
    group_X: Int[np.ndarray, " X"], quota_G: Int[np.ndarray, " G"], epoch: int, *stream: int
) -> Int[np.ndarray, " N"]:
    """Give the ids of one epoch over the whole pool, quota by quota.

    Each group is an endless chain of its own permutations, of which every epoch takes the next
    `quota_G[g]`: an example comes a second time only after all others of its group came once.
    """
    taken = []
    for group, quota in enumerate(quota_G.tolist()):
        members = np.flatnonzero(group_X == group)
        first, last = epoch * quota, (epoch + 1) * quota
        passes = range(first // len(members), -(-last // len(members))) if quota else range(0)
        chain = [shuffled(members, *stream, group, number) for number in passes]
        if chain:
            start = first - passes[0] * len(members)
            taken.append(np.concatenate(chain)[start : start + quota])
    return np.concatenate(taken)


def drawn(
    ids: Int[np.ndarray, " N"], state: PoolState, seed: int, purpose: int = SELECT
) -> Int[np.ndarray, " N"]:
    """Put ascending ids in an order that is drawn for the round."""
    draw_X = draws(state.num_examples, seed, purpose, state.round)
    return ids[np.argsort(draw_X[ids], kind="stable")]


def ranked_for_round(
    state: PoolState,
    eligible_X: Bool[np.ndarray, " X"],
    seed: int,
    *,
    descending: bool,
    unscored: Unscored,
) -> Int[np.ndarray, " N"]:
    """Rank whoever may be selected by score, the order of the unscored drawn for the round."""
    draw_X = draws(state.num_examples, seed, SELECT, state.round)
    ids = np.flatnonzero(eligible_X)
    return ranked(ids, state.score_X, draw_X, descending=descending, unscored=unscored)


def arranged(
    ids: Int[np.ndarray, " N"],
    state: PoolState,
    order: RoundOrder,
    unscored: Unscored,
    seed: int,
) -> Int[np.ndarray, " N"]:
    """Put a round's selection in its in-round order, a shuffled one anew each epoch."""
    stream = (seed, ARRANGE, state.round, state.epoch)
    if order == "shuffled":
        return shuffled(ids, *stream)
    draw_X = draws(state.num_examples, *stream)
    return ranked(ids, state.score_X, draw_X, descending=order == "descending", unscored=unscored)
