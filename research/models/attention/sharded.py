"""Attention under a mesh: every device attends over its own rows and heads."""

from __future__ import annotations

import dataclasses

import jax

from research.core.layout import Placement
from research.models.attention.visibility import AttentionBackend, Visibility


@dataclasses.dataclass(frozen=True)
class Sharded:
    """A back-end inside `jax.shard_map`: rows and heads are independent, so nothing is exchanged.

    The compiler cannot split a kernel (splash, cuDNN) by itself; and a loop over blocks (blockwise)
    should not be split along T. Letters other than B, K and G are gathered.
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

        rules = {k: axes for k, axes in self.place.layout.activations if k in ("B", "K", "G")}

        def spec(x: jax.Array, letters: str) -> jax.P:
            return self.place.spec(letters, x.shape, rules, f"attention {letters}")

        queries, keys = spec(query_BTKGH, "BTKGH"), spec(key_BSKH, "BSKH")
        seen_spec = spec(seen.query_segments_BT, "BT")
        sinks_spec = jax.P() if sinks_KG is None else spec(sinks_KG, "KG")
        return jax.shard_map(
            attend,
            mesh=self.place.mesh,
            in_specs=(queries, keys, keys, seen_spec, sinks_spec),
            out_specs=queries,
            check_vma=False,
        )(query_BTKGH, key_BSKH, value_BSKH, seen, sinks_KG)
