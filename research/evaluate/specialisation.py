"""How much the expert that a token takes says about the slice of the data that it comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

PERMUTATIONS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Specialisation:
    """The mutual information between slice and expert, layer by layer, and what chance gives.

    Attributes:
      nats_L: I(slice; expert) over assignments.
      chance_L: its mean where slices are dealt to items at random.
      above_chance_L: the difference: without the bias of finite samples.
      p: how often chance takes some layer as far above `chance_L` as the best layer is; one number,
        so that the choice among layers is paid for.
      slices: their names.
      load_SLE: assignments by slice, layer and expert.
    """

    nats_L: Float[np.ndarray, " L"]
    chance_L: Float[np.ndarray, " L"]
    above_chance_L: Float[np.ndarray, " L"]
    p: float
    slices: tuple[str, ...]
    load_SLE: Float[np.ndarray, "S L E"]


def mutual_information(counts_SLE: Float[np.ndarray, "*X S L E"]) -> Float[np.ndarray, "*X L"]:
    """Give sum_se p(s, e) ln(p(s, e) / (p(s) p(e))) of every layer, in nats.

    Law: 0 where every slice spreads over experts alike; at most ln S and at most ln E.
    """
    total = counts_SLE.sum(axis=(-3, -1), keepdims=True)
    p_SLE = counts_SLE / np.maximum(total, 1)
    by_slice, by_expert = p_SLE.sum(-1, keepdims=True), p_SLE.sum(-3, keepdims=True)
    expected_SLE = by_slice * by_expert
    there = p_SLE > 0
    ratio_SLE = np.where(there, p_SLE, 1.0) / np.where(there, expected_SLE, 1.0)
    return np.sum(p_SLE * np.log(ratio_SLE), axis=(-3, -1))


def specialisation(
    load_XLE: Float[np.ndarray, "X L E"], slice_X: Sequence[str], seed: int = 0
) -> Specialisation:
    """Measure the specialisation of experts over items that each belong to one slice.

    With few tokens, experts seem to specialise by chance alone. Chance is measured by dealing the
    same slices to the items anew, `PERMUTATIONS` times: an item's tokens stay together, since they
    are alike and count for less than as many independent ones.
    """
    load_XLE = np.asarray(load_XLE, np.float64)
    slices = tuple(sorted(set(slice_X)))
    member_SX = np.asarray([[own == name for own in slice_X] for name in slices], np.float64)

    def by_slice(member_SX: np.ndarray) -> np.ndarray:
        return np.tensordot(member_SX, load_XLE, axes=1)

    load_SLE = by_slice(member_SX)
    nats_L = mutual_information(load_SLE)
    rng = np.random.default_rng(seed)
    chance_PL = np.asarray(
        [
            mutual_information(by_slice(member_SX[:, rng.permutation(len(slice_X))]))
            for _ in range(PERMUTATIONS)
        ]
    )
    chance_L = chance_PL.mean(axis=0)
    best, best_P = np.max(nats_L - chance_L), np.max(chance_PL - chance_L, axis=1)
    return Specialisation(
        nats_L=nats_L,
        chance_L=chance_L,
        above_chance_L=nats_L - chance_L,
        p=float(1 + np.sum(best_P >= best - 1e-12)) / (1 + PERMUTATIONS),  # equal sums may tie
        slices=slices,
        load_SLE=load_SLE,
    )
