"""A fixed number of places an expert: what overflows is dropped, and counted."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from research.core.layout import Placement
from research.core.parts import part, require
from research.models.moe.bank import Experts
from research.models.moe.dispatch import Moves, collect, sort_by_expert, spread, weights_at
from research.models.moe.routing import Routing


@part
class Capacity:
    """Every expert has c = ceil(factor x slots / num_experts) places; earlier tokens come first.

    A slot that finds no place adds nothing to its token. Places are given in the order of tokens,
    row by row, so that a token never depends on later ones of its row, but on earlier rows.

    Attributes:
      factor: 1 is room for exactly balanced loads.

    Source: Fedus et al. 2021, arXiv 2101.03961, section 2.2, equation 3.
    """

    breaks: ClassVar[tuple[str, ...]] = ("batch_invariance",)

    factor: float = 1.25

    def __post_init__(self) -> None:
        require(self, (self.factor > 0, f"factor={self.factor} must be positive"))

    def require(self, num_experts: int, place: Placement) -> None:
        """Any placement will do."""
        del num_experts, place

    def __call__(
        self, x_MD: jax.Array, routing: Routing, experts: Experts, place: Placement
    ) -> tuple[jax.Array, jax.Array]:
        """Run what finds a place; see `Dispatch`."""
        del place
        num_tokens, width = x_MD.shape
        num_experts, num_slots = routing.probability_ME.shape[1], routing.experts_MA.size
        wanted = num_slots if routing.num_kept is None else routing.num_kept
        capacity = min(math.ceil(self.factor * wanted / num_experts), num_tokens)
        order = sort_by_expert(routing.experts_MA, routing.kept_MA, num_experts)
        first_E = jnp.cumsum(order.sizes_E) - order.sizes_E
        rank_MA = order.place_MA - first_E[routing.experts_MA]
        placed_MA = routing.kept_MA & (rank_MA < capacity)
        filled_EC = jnp.arange(capacity) < order.sizes_E[:, None]
        slot_EC = order.slot_N.at[first_E[:, None] + jnp.arange(capacity)].get(mode="clip")
        slot_N = jnp.where(filled_EC, slot_EC, num_slots).reshape(-1)
        place_MA = routing.experts_MA * capacity + rank_MA
        moves = Moves(
            source_N=slot_N // routing.experts_MA.shape[1],
            place_MA=jnp.where(placed_MA, place_MA, num_experts * capacity),
            rows=num_tokens,
        )
        x_ECD = spread(x_MD, moves).reshape(num_experts, capacity, width)
        y_ND = experts.banked(x_ECD).reshape(-1, width)
        out_MD = collect(y_ND * weights_at(routing, slot_N, y_ND.dtype), moves)
        return out_MD, routing.kept_MA & ~placed_MA
