"""Tokens sorted by expert, one grouped product over them: nothing is dropped, nothing is padded."""

from __future__ import annotations

from typing import ClassVar

import jax

from research.core.grouped import missing_kernel
from research.core.layout import Placement
from research.core.parts import part, require
from research.models.moe.bank import Experts
from research.models.moe.dispatch import (
    Moves,
    by_rows,
    collect,
    sort_by_expert,
    spread,
    weights_at,
)
from research.models.moe.routing import Routing


@part
class Dropless:
    """Sort slots by expert and run every expert on its own rows.

    On a mesh each device sorts the rows it has and sees all experts, gathered for the layer;
    `ExpertParallel` leaves the experts where they are and moves the rows.

    Source: Gale et al. 2022 (MegaBlocks), arXiv 2211.15841.
    Law: equals `Dense` whatever the load.
    """

    breaks: ClassVar[tuple[str, ...]] = ()

    def require(self, num_experts: int, place: Placement) -> None:
        """Refuse a platform that has no grouped product."""
        del num_experts
        missing = missing_kernel(place.platform)
        require(self, (missing is None, str(missing)))

    def __call__(
        self, x_MD: jax.Array, routing: Routing, experts: Experts, place: Placement
    ) -> tuple[jax.Array, jax.Array]:
        """Run all slots; see `Dispatch`."""
        self.require(routing.probability_ME.shape[1], place)
        return by_rows(_local, x_MD, routing, experts, place), routing.kept_MA & False


def _local(x_MD: jax.Array, routing: Routing, experts: Experts) -> jax.Array:
    num_tokens, slots = routing.experts_MA.shape
    order = sort_by_expert(routing.experts_MA, routing.kept_MA, routing.probability_ME.shape[1])
    slot_N, place_MA = order.slot_N, order.place_MA
    if routing.num_kept is not None:
        slot_N, place_MA = slot_N[: routing.num_kept], None
    moves = Moves(source_N=slot_N // slots, place_MA=place_MA, rows=num_tokens)
    y_ND = experts.grouped(spread(x_MD, moves), order.sizes_E)
    return collect(y_ND * weights_at(routing, slot_N, y_ND.dtype), moves)
