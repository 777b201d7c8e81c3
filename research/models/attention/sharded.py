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

        def spec(letters: str) -> jax.P:
            return jax.P(*(rules.get(letter) for letter in letters))

        return jax.shard_map(
            attend,
            mesh=self.place.mesh,
            in_specs=(spec("BTKGH"), spec("BSKH"), spec("BSKH"), spec("B"), spec("KG")),
            out_specs=spec("BTKGH"),
            check_vma=False,
        )(query_BTKGH, key_BSKH, value_BSKH, seen, sinks_KG)
