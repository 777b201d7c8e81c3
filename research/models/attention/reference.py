"""Attention as the formula says it: every score at once. The one the others are tested against."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.core.parts import part
from research.models.attention.visibility import Visibility, masked_softmax


@part
class Reference:
    """softmax(cap(q k^T scale)) v with O(T S) memory, on any platform."""

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
        scores_BKGTS = jnp.einsum(
            "BTKGH,BSKH->BKGTS", query_BTKGH, key_BSKH, preferred_element_type=jnp.float32
        )
        scores_BKGTS = scores_BKGTS * scale
        if soft_cap is not None:
            scores_BKGTS = soft_cap * jnp.tanh(scores_BKGTS / soft_cap)
        sinks = None if sinks_KG is None else sinks_KG[None, :, :, None, None]
        weights_BKGTS = masked_softmax(scores_BKGTS, seen.mask()[:, None, None], sinks)
        return jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS.astype(value_BSKH.dtype), value_BSKH)
