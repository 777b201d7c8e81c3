"""Experts stay on their devices, tokens travel: an all-to-all there and one back."""

from __future__ import annotations

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from research.core.grouped import missing_kernel
from research.core.layout import Placement
from research.core.parts import part, require
from research.models.moe.bank import Experts
from research.models.moe.dispatch import (
    Moves,
    by_rows,
    collect,
    expert_axes,
    expert_shards,
    sort_by_expert,
    spread,
    weights_at,
)
from research.models.moe.routing import Routing


@part
class ExpertParallel:
    """Each device sends every row to the device of its expert, which runs it and sends it back.

    Nothing is dropped: a message has room for all that one device can send to another, which is
    its tokens x min(experts_per_token, experts a device). So a device holds (devices x that) rows
    of width D twice, of which only 1 / devices are used at balanced load; products run over the
    used ones alone.

    Source: Lepikhin et al. 2020 (GShard), arXiv 2006.16668, section 3.
    Law: equals `Dropless` on one device.
    """

    breaks: ClassVar[tuple[str, ...]] = ()

    def require(self, num_experts: int, place: Placement) -> None:
        """Refuse a layout whose mesh does not divide the experts, or does not split the rows."""
        axes, shards = expert_axes(place), expert_shards(place)
        rows = dict(place.layout.activations).get("B", ())
        missing = missing_kernel(place.platform)
        require(
            self,
            (missing is None, str(missing)),
            (
                bool(axes),
                "the layout's weights do not split E over a mesh axis; add ('E', ('expert',)), or "
                "choose Dropless",
            ),
            (
                num_experts % shards == 0,
                f"num_experts={num_experts} is no multiple of mesh axes {axes} of size {shards}; "
                "change the mesh axis to a divisor",
            ),
            (
                set(axes) <= set(rows),
                f"the layout's activations split B over {rows}, not over {axes}, where the experts "
                f"are: every row would be sent {shards} times; add {axes} to B",
            ),
        )

    def __call__(
        self, x_MD: jax.Array, routing: Routing, experts: Experts, place: Placement
    ) -> tuple[jax.Array, jax.Array]:
        """Exchange rows, run the local experts; see `Dispatch`."""
        num_experts = routing.probability_ME.shape[1]
        self.require(num_experts, place)
        axes, shards = expert_axes(place), expert_shards(place)
        local = functools.partial(_exchange, axes=axes, shards=shards, num_experts=num_experts)
        out_MD = by_rows(local, x_MD, routing, experts, place, split=axes)
        return out_MD, routing.kept_MA & False


def _exchange(
    x_MD: jax.Array,
    routing: Routing,
    experts: Experts,
    *,
    axes: tuple[str, ...],
    shards: int,
    num_experts: int,
) -> jax.Array:
    num_tokens, slots = routing.experts_MA.shape
    owned = num_experts // shards
    room = num_tokens * min(slots, owned)
    swap = functools.partial(
        jax.lax.all_to_all, axis_name=axes, split_axis=0, concat_axis=0, tiled=True
    )
    order = sort_by_expert(routing.experts_MA, routing.kept_MA, num_experts)
    sizes_PE = order.sizes_E.reshape(shards, owned)  # P: the device that an expert lives on
    counts_P = jnp.sum(sizes_PE, axis=1)
    first_P = jnp.cumsum(counts_P) - counts_P
    at_PN = first_P[:, None] + jnp.arange(room)
    slot_PN = order.slot_N.at[at_PN].get(mode="clip")
    slot_N = jnp.where(jnp.arange(room) < counts_P[:, None], slot_PN, x_MD.shape[0] * slots)
    slot_N = slot_N.reshape(-1)
    owner_MA = routing.experts_MA // owned
    place_MA = owner_MA * room + order.place_MA - first_P[owner_MA]
    moves = Moves(
        source_N=slot_N // slots,
        place_MA=jnp.where(routing.kept_MA, place_MA, shards * room),
        rows=num_tokens,
    )
    sent_ND = swap(spread(x_MD, moves))
    y_ND = swap(_run(sent_ND, swap(sizes_PE), experts))
    return collect(y_ND * weights_at(routing, slot_N, y_ND.dtype), moves)


def _run(x_ND: jax.Array, sizes_PE: jax.Array, experts: Experts) -> jax.Array:
    """Run what came from each device, sorted by expert with `sizes_PE`, on the experts here."""
    shards, owned = sizes_PE.shape
    ends_PE = jnp.cumsum(sizes_PE, axis=1)
    row = jnp.arange(x_ND.shape[0] // shards)
    expert_N = jnp.sum(row[None, :, None] >= ends_PE[:, None, :], axis=-1).reshape(-1, 1)
    order = sort_by_expert(expert_N, expert_N < owned, owned)
    moves = Moves(source_N=order.slot_N, place_MA=order.place_MA, rows=x_ND.shape[0])
    return collect(experts.grouped(spread(x_ND, moves), order.sizes_E), moves)
