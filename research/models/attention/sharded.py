"""Attention under a mesh: every device attends over its own rows and heads."""

from __future__ import annotations

import dataclasses

import jax

from research.core.layout import Placement
from research.models.attention.visibility import AttentionBackend, Visibility


@dataclasses.dataclass(frozen=True)
class Sharded:
    """A back-end inside `jax.shard_map`: rows and heads are independent, so nothing is exchanged.

    The compiler cannot split a kernel (splash, cuDNN) by itself. Letters other than B, K, G and T
    are gathered. Where queries are split along T (context parallelism), each device attends from
    its own queries to all keys, gathered; positions and segments say who sees whom, so that packed
    rows stay apart.
    """

    backend: AttentionBackend
    place: Placement

    def __call__(
        self,
        query_BTKGH: jax.Array,
        key_BSKH: jax.Array,
        value_BSKH: jax.Array,
        seen: Visibility,
        *,
        scale: float,
        soft_cap: float | None = None,
        sinks_KG: jax.Array | None = None,
    ) -> jax.Array:
        def attend(query, key, value, seen, sinks):
            return self.backend(
                query, key, value, seen, scale=scale, soft_cap=soft_cap, sinks_KG=sinks
            )

        rules = {k: axes for k, axes in self.place.layout.activations if k in "BKGT"}
        if "T" in rules:
            seen = dataclasses.replace(seen, ordered=False)

        def spec(letters: str) -> jax.P:
            return jax.P(*(rules.get(letter) for letter in letters))

        seen_specs = dataclasses.replace(
            seen,
            query_positions_BT=spec("BT"),
            query_segments_BT=spec("BT"),
            key_positions_BS=spec("BS"),
            key_segments_BS=spec("BS"),
        )
        return jax.shard_map(
            attend,
            mesh=self.place.mesh,
            in_specs=(spec("BTKGH"), spec("BSKH"), spec("BSKH"), seen_specs, spec("KG")),
            out_specs=spec("BTKGH"),
            check_vma=False,
        )(query_BTKGH, key_BSKH, value_BSKH, seen, sinks_KG)
